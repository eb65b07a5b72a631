// Decoding on emulated CUDA: single rows on keys in pages, against float64 and against themselves.
#include <tuple>

#include "core/ops.h"
#include "emulator/rig.h"
// After the emulator.
#include "../../cuda/attention_paged.cu"

namespace {

using namespace tokenring::cuda;
using rig::Buffer;
using tokenring::kPageTokens;

struct Decode {
  int heads, kv_heads, head_dim;
  std::vector<int32_t> lengths;  // keys of each row, the row's own among them

  int64_t width() const { return int64_t{kv_heads} * head_dim; }
  int64_t stride() const { return int64_t{heads} * head_dim + 2 * width(); }
  int rows() const { return static_cast<int>(lengths.size()); }
};

struct Inputs {
  std::vector<Bf16> qkv, pool;
  std::vector<PagedRow> rows;
  std::vector<int32_t> pages;
};

// Pages in a mixed order; what no row has written is NaN.
Inputs inputs_of(const Decode& c, uint64_t seed) {
  Inputs in{rig::random_bf16(static_cast<size_t>(c.rows() * c.stride()), seed, -2, 2), {}, {}, {}};
  int32_t count = 0;
  for (int i = 0; i < c.rows(); ++i) {
    in.rows.push_back({i, c.lengths[i] - 1, static_cast<int32_t>(in.pages.size())});
    for (int32_t n = 0; n < c.lengths[i]; n += kPageTokens) in.pages.push_back(count++);
  }
  for (int32_t& page : in.pages) page = (page * 7 + 3) % count;
  if (count % 7 == 0)
    for (int32_t i = 0; i < count; ++i) in.pages[i] = count - 1 - i;
  in.pool.assign(static_cast<size_t>(count * 2 * kPageTokens * c.width()), Bf16{0x7fff});
  const std::vector<Bf16> numbers = rig::random_bf16(in.pool.size(), seed + 1, -2, 2);
  for (int i = 0; i < c.rows(); ++i)
    for (int32_t at = 0; at < c.lengths[i]; ++at)
      for (const int64_t part : {0, kPageTokens}) {
        const int64_t page = in.pages[in.rows[i].first + at / kPageTokens];
        const int64_t from = (page * 2 * kPageTokens + part + at % kPageTokens) * c.width();
        std::copy_n(&numbers[from], c.width(), &in.pool[from]);
      }
  return in;
}

std::vector<Bf16> decode(const Decode& c, const Inputs& in) {
  const int most = *std::max_element(c.lengths.begin(), c.lengths.end());
  const Buffer<Bf16> qkv(in.qkv), pool(in.pool), out(static_cast<size_t>(c.rows() * c.heads * c.head_dim));
  const Buffer<PagedRow> rows(in.rows);
  const Buffer<int32_t> pages(in.pages);
  const Buffer<char> workspace(attention_decode_workspace(c.rows(), c.heads, c.head_dim, most));
  attention_decode(nullptr, {c.heads, c.kv_heads, c.head_dim, rows.data(), c.rows(), pages.data()}, most, 0.125f,
                   qkv.data(), pool.data(), out.data(), workspace.data());
  return out.read();
}

std::vector<double> expected_of(const Decode& c, const Inputs& in) {
  std::vector<double> expected;
  for (int i = 0; i < c.rows(); ++i)
    for (int head = 0; head < c.heads; ++head) {
      const auto key_at = [&](int32_t at, int64_t part) {
        const int64_t page = in.pages[in.rows[i].first + at / kPageTokens];
        return &in.pool[(page * 2 * kPageTokens + part + at % kPageTokens) * c.width() +
                        head / (c.heads / c.kv_heads) * c.head_dim];
      };
      std::vector<double> scores, out(c.head_dim);
      double sum = 0, top = -INFINITY;
      for (int32_t at = 0; at < c.lengths[i]; ++at) {
        double dot = 0;
        for (int d = 0; d < c.head_dim; ++d)
          dot += rig::value(in.qkv[i * c.stride() + head * c.head_dim + d]) * rig::value(key_at(at, 0)[d]);
        scores.push_back(dot * 0.125);
        top = std::max(top, scores.back());
      }
      for (int32_t at = 0; at < c.lengths[i]; ++at) {
        const double p = std::exp(scores[at] - top);
        sum += p;
        for (int d = 0; d < c.head_dim; ++d) out[d] += p * rig::value(key_at(at, kPageTokens)[d]);
      }
      for (const double x : out) expected.push_back(x / sum);
    }
  return expected;
}

}  // namespace

// Lengths at the edges of pages and of splits; groups that fill warps in part, and that are wider than a block takes.
TEST(cuda_decode_matches_float64) {
  for (const Decode& c : {Decode{4, 2, 64, {1, 64, 65, 7}}, Decode{7, 1, 128, {63, 130}}, Decode{3, 3, 128, {40}},
                          Decode{12, 1, 64, {100}}, Decode{5, 1, 64, {1024, 1025, 9, 2049}}}) {
    const Inputs in = inputs_of(c, static_cast<uint64_t>(c.heads));
    const auto [got] = rig::on_two_schedules([&] { return std::tuple{decode(c, in)}; });
    rig::check_close("out", got, expected_of(c, in), rig::kBf16, 0.05);
  }
}

TEST(cuda_decode_of_a_row_does_not_depend_on_the_others) {
  const Decode c{2, 1, 64, {1300, 5, 70}};
  const Inputs in = inputs_of(c, 3);
  const std::vector<Bf16> together = decode(c, in);
  for (int i = 0; i < c.rows(); ++i) {
    Decode one = c;
    one.lengths = {c.lengths[i]};
    Inputs alone = in;
    alone.rows = {{0, in.rows[i].position, in.rows[i].first}};
    alone.qkv.assign(in.qkv.begin() + i * c.stride(), in.qkv.begin() + (i + 1) * c.stride());
    const std::vector<Bf16> got = decode(one, alone);
    const auto from = together.begin() + i * c.heads * c.head_dim;
    CHECK(rig::same_bits(got, std::vector<Bf16>(from, from + c.heads * c.head_dim)));
  }
}

TEST(cuda_gathered_pages_are_rows_of_keys_and_values) {
  const Decode c{2, 2, 64, {150}};
  const Inputs in = inputs_of(c, 5);
  const Buffer<Bf16> pool(in.pool), to(static_cast<size_t>(150 * 2 * c.width()));
  const Buffer<int32_t> pages(in.pages);
  gather_pages(nullptr, 150, c.width(), pages.data(), pool.data(), to.data());
  const std::vector<Bf16> got = to.read();
  for (int32_t at = 0; at < 150; ++at)
    for (int64_t j = 0; j < 2 * c.width(); ++j) {
      const int64_t part = j < c.width() ? 0 : kPageTokens, page = in.pages[at / kPageTokens];
      const Bf16 expected = in.pool[(page * 2 * kPageTokens + part + at % kPageTokens) * c.width() + j % c.width()];
      if (got[at * 2 * c.width() + j].bits == expected.bits) continue;
      harness::report(__FILE__, __LINE__, "position ", at, ", column ", j);
      return;
    }
}

TEST(cuda_decode_says_what_it_does_not_take) {
  CHECK_FAILS("INVALID_ARGUMENT",
              attention_decode(nullptr, {2, 1, 96, nullptr, 1, nullptr}, 5, 1, nullptr, nullptr, nullptr, nullptr));
}
