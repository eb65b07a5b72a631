// The kernels of linear.cu, sample.cu, attention_plain.cu and the gradient of the embedding, emulated, against float64.
#include <algorithm>
#include <tuple>

#include "emulator/attention_rig.h"
// The emulator comes before the kernels.
#include "../../cuda/attention_plain.cu"
#include "../../cuda/linear.cu"
#include "../../cuda/sample.cu"

using rig::Buffer;
using rig::kBf16;
using rig::kFloat32;
using rig::Values;
using tokenring::AttentionTile;
using tokenring::kPageTokens;
using namespace tokenring::cuda;
using Row = std::vector<Bf16>;

namespace {

Values floats(const Row& row) {
  Values values;
  for (const Bf16& x : row) values.push_back(static_cast<float>(rig::value(x)));
  return values;
}

std::vector<double> wide(const Values& x) { return {x.begin(), x.end()}; }

}  // namespace

TEST(cuda_round_rows_match_the_host) {
  for (const auto [m, n, stride] : {std::tuple{1, 1, 1}, {5, 77, 90}, {4, 264, 264}}) {
    const Values x = rig::random_floats(static_cast<size_t>(m * n), 1);
    const Buffer<float> dx(x);
    const Buffer<Bf16> dy(static_cast<size_t>(m * stride));
    round_rows(nullptr, m, n, dx.data(), dy.data(), stride);
    const Row y = dy.read();
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) CHECK(y[i * stride + j].bits == to_bf16(x[i * n + j]).bits);
    for (int i = 0; i < m; ++i)
      for (int j = n; j < stride; ++j) CHECK(y[i * stride + j].bits == 0xffff);  // untouched
  }
}

TEST(cuda_sum_of_rows_matches_float64) {
  for (const auto [m, n] : {std::tuple{1, 1}, {70, 33}, {3, 1100}}) {
    const Row dy = rig::random_bf16(static_cast<size_t>(m * n), 1);
    const Values db = rig::random_floats(static_cast<size_t>(n), 2);
    const auto [got] = rig::on_two_schedules([&] {
      const Buffer<Bf16> d(dy);
      const Buffer<float> to(db);
      const Buffer<char> workspace(sum_of_rows_workspace(m, n));
      sum_of_rows(nullptr, m, n, d.data(), to.data(), workspace.data());
      return std::tuple{to.read()};
    });
    std::vector<double> expected = wide(db);
    for (int i = 0; i < m * n; ++i) expected[i % n] += rig::value(dy[i]);
    rig::check_close("db", got, expected, kFloat32, 1);
  }
}

// Tokens that come once, often, and in every second row; more rows than blocks, than a warp has lanes, and than few
// buckets are for.
TEST(cuda_embedding_backward_adds_in_the_order_of_rows) {
  for (const auto [m, h, v] : {std::tuple{1, 5, 3}, {70, 24, 9}, {40, 264, 50}, {4100, 8, 700}}) {
    std::vector<int32_t> tokens = rig::random_ids(static_cast<size_t>(m), 1, v);
    for (int i = 0; i < m; i += 2) tokens[i] = 2;
    const Row dy = rig::random_bf16(static_cast<size_t>(m * h), 2);
    const Values table = rig::random_floats(static_cast<size_t>(v * h), 3);
    const auto [got] = rig::on_two_schedules([&] {
      const Buffer<int32_t> ids(tokens);
      const Buffer<Bf16> d(dy);
      const Buffer<float> to(table);
      const Buffer<char> workspace(embedding_backward_workspace(m));
      embedding_backward(nullptr, m, h, ids.data(), d.data(), to.data(), workspace.data());
      return std::tuple{to.read()};
    });
    Values expected = table;
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < h; ++j) expected[tokens[i] * h + j] += static_cast<float>(rig::value(dy[i * h + j]));
    CHECK(rig::same_bits(got, expected));
  }
}

// Against the running sum in float64; where the uniform lies within rounding of an edge, either neighbour is right.
TEST(cuda_sample_matches_float64) {
  for (const auto [r, v] : {std::tuple{5, 1}, {7, 40}, {6, 1000}, {2, 5000}}) {
    Values z = rig::random_floats(static_cast<size_t>(r * v), 1, -6, 6), t, u = rig::random_floats(r, 2, 0, 1);
    if (v > 5)
      for (int j = 0; j < v; j += 3) z[j] = -INFINITY;
    u[0] = 0;
    u[r - 1] = 0x1.fffffep-1f;
    for (int i = 0; i < r; ++i) t.push_back(i % 3 == 2 ? 0.0f : 0.5f + 0.5f * static_cast<float>(i % 2));
    const auto [tokens, logprob] = rig::on_two_schedules([&] {
      const Buffer<float> dz(z), dt(t), du(u), lp(r);
      const Buffer<int32_t> ids(r);
      sample(nullptr, r, v, dz.data(), dt.data(), du.data(), ids.data(), lp.data());
      return std::tuple{ids.read(), lp.read()};
    });
    for (int i = 0; i < r; ++i) {
      const float* row = z.data() + static_cast<size_t>(i * v);
      const double scale = t[i] == 0 ? 1.0 : t[i];
      double high = -INFINITY, sum = 0;
      for (int j = 0; j < v; ++j) high = std::max(high, row[j] * scale);
      for (int j = 0; j < v; ++j) sum += std::exp(row[j] * scale - high);
      const int token = tokens[i];
      CHECK(token >= 0 && token < v);
      CHECK_NEAR(logprob[i], row[token] * scale - high - std::log(sum), 1e-5);
      if (t[i] == 0) {
        CHECK(token == std::max_element(row, row + v) - row);
        continue;
      }
      double before = 0;
      for (int j = 0; j < token; ++j) before += std::exp(row[j] * scale - high);
      const double after = before + std::exp(row[token] * scale - high);
      CHECK(u[i] * sum >= before - 1e-5 * sum && u[i] * sum <= after + 1e-5 * sum && after > before);
    }
  }
}

TEST(cuda_sample_of_ties_and_of_nothing) {
  const Values z = {1, 3, 3, 2, /**/ NAN, 1, 2, 3, /**/ 0, -INFINITY, 0, -INFINITY};
  const Buffer<float> dz(z), t(Values{0, 1, 1}), u(Values{0.5f, 0.5f, 0.75f}), lp(3);
  const Buffer<int32_t> ids(3);
  sample(nullptr, 3, 4, dz.data(), t.data(), u.data(), ids.data(), lp.data());
  CHECK((ids.read() == std::vector<int32_t>{1, 0, 2}));
  CHECK(std::isnan(lp.read()[1]));
}

namespace {

// What the plain kernels make of a case, from T, with all rows of lse and delta.
template <class T>
struct Plain {
  const rig::AttentionCase& c;
  Buffer<T> qkv, out;
  Buffer<float> lse, delta;

  Plain(const rig::AttentionCase& c, const std::vector<T>& values)
      : c(c), qkv(values), out(c.outputs()), lse(c.statistics()), delta(c.statistics()) {}

  PlainHeads heads() const {
    return {c.heads,
            c.kv_heads,
            c.head_dim,
            c.scale(),
            sizeof(T) == 4,
            qkv.data(),
            qkv.data() + c.heads * c.head_dim,
            qkv.data() + (c.heads + c.kv_heads) * c.head_dim,
            c.width(),
            c.width()};
  }

  void forward(const std::vector<AttentionTile>& list, bool merge) {
    const ForwardPlan plan = plan_forward(list, kPlainRows, true, c.rows, c.rows);
    const Buffer<QueryTile> tiles(plan.tiles);
    const Buffer<tokenring::Span> keys(plan.keys);
    PlainForward work{heads(), tiles.data(), static_cast<int>(plan.tiles.size()), keys.data(), nullptr, nullptr,
                      merge,   lse.data()};
    if constexpr (sizeof(T) == 4)
      work.out_f32 = out.data();
    else
      work.out = out.data();
    attention_plain_forward(nullptr, work);
  }

  // [dq | dk | dv], beginning with zeros.
  std::vector<T> backward(const std::vector<T>& dout) {
    const Buffer<T> d(dout), gradient(std::vector<T>(static_cast<size_t>(c.rows * c.width())));
    if constexpr (sizeof(T) == 4)
      attention_delta_f32(nullptr, c.rows, c.heads, c.head_dim, d.data(), out.data(), delta.data());
    else
      attention_delta(nullptr, c.rows, c.heads, c.head_dim, d.data(), out.data(), delta.data());
    const ForwardPlan forward = plan_forward(c.tiles, kPlainRows, true, c.rows, c.rows);
    const BackwardPlan backward = plan_backward(c.tiles, kPlainRows, kPlainRows, true, c.rows, c.rows);
    const Buffer<QueryTile> query_tiles(forward.tiles);
    const Buffer<tokenring::Span> keys(forward.keys);
    const Buffer<KeyTile> key_tiles(backward.tiles);
    const Buffer<QueryRange> ranges(backward.ranges);
    T* to = gradient.data();
    attention_plain_backward(
        nullptr,
        {heads(), d.data(), lse.data(), delta.data(), query_tiles.data(), static_cast<int>(forward.tiles.size()),
         keys.data(), key_tiles.data(), static_cast<int>(backward.tiles.size()), ranges.data(), to,
         to + c.heads * c.head_dim, to + (c.heads + c.kv_heads) * c.head_dim, c.width(), sizeof(T) == 4});
    return gradient.read();
  }
};

// The gradients in float64 by the formulas of attention.h.
std::vector<double> gradients(const rig::AttentionCase& c, const Values& x, const std::vector<double>& lse,
                              const std::vector<double>& out, const Values& dout) {
  std::vector<double> g(x.size(), 0.0);
  for (const AttentionTile& tile : c.tiles)
    for (int64_t i = 0; i < tile.q.rows; ++i)
      for (int64_t j = 0; j < tile.k.rows; ++j)
        for (int h = 0; h < c.heads; ++h) {
          if (tile.k.position + j > tile.q.position + i) continue;
          const int64_t q = tile.q.row + i, k = tile.k.row + j;
          const int kv = h / c.group();
          double s = 0, dp = 0, delta = 0;
          for (int d = 0; d < c.head_dim; ++d) {
            const size_t o = c.out_at(q, h, d);
            s += static_cast<double>(x[c.q_at(q, h, d)]) * x[c.k_at(k, kv, d)];
            dp += static_cast<double>(dout[o]) * x[c.v_at(k, kv, d)];
            delta += dout[o] * out[o];
          }
          const double p = std::exp(s * c.scale() - lse[static_cast<size_t>(q * c.heads + h)]), ds = p * (dp - delta);
          for (int d = 0; d < c.head_dim; ++d) {
            g[c.q_at(q, h, d)] += ds * c.scale() * x[c.k_at(k, kv, d)];
            g[c.k_at(k, kv, d)] += ds * c.scale() * x[c.q_at(q, h, d)];
            g[c.v_at(k, kv, d)] += p * dout[c.out_at(q, h, d)];
          }
        }
  return g;
}

const rig::AttentionCase kCases[] = {
    {16, 2, 1, true, 45, rig::packed({40, 1, 4})},
    {20, 4, 2, true, 9, rig::packed({9})},
    {264 - 8, 1, 1, true, 34, rig::packed({34})},
    // Keys in two spans, one of them of another document's rows; queries that see nothing.
    {24, 2, 2, true, 30, {{{0, 10, 20}, {0, 10, 20}}, {{0, 10, 20}, {10, 12, 0}}, {{22, 8, 3}, {0, 0, 0}}}},
};

}  // namespace

TEST(cuda_attention_plain_matches_float64) {
  for (const rig::AttentionCase& c : kCases) {
    const Row qkv = rig::normal_bf16(static_cast<size_t>(c.rows * c.width()), 1),
              dout = rig::normal_bf16(c.outputs(), 3);
    const Values x = floats(qkv), dx = floats(dout);
    const rig::AttentionResult expected = rig::attend(c, qkv);
    {
      const auto [out, lse, gradient] = rig::on_two_schedules([&] {
        Plain<float> plain(c, x);
        plain.forward(c.tiles, false);
        const auto gradient = plain.backward(dx);
        return std::tuple{plain.out.read(), plain.lse.read(), gradient};
      });
      CHECK(rig::relative_error(out, expected.out) < 1e-6);
      for (size_t i = 0; i < lse.size(); ++i)
        CHECK(std::isnan(expected.lse[i]) ? std::isnan(lse[i])
                                          : lse[i] == expected.lse[i] || std::abs(lse[i] - expected.lse[i]) < 1e-5);
      CHECK(rig::relative_error(gradient, gradients(c, x, expected.lse, expected.out, dx)) < 1e-5);
    }
    emulator::seed(3);
    Plain<Bf16> plain(c, qkv);
    plain.forward(c.tiles, false);
    CHECK(rig::relative_error(plain.out.read(), expected.out) < 3e-3);
    CHECK(rig::relative_error(plain.backward(dout), gradients(c, x, expected.lse, expected.out, dx)) < 3e-3);
  }
}

// Keys of later rows, then those of earlier ones merged in.
TEST(cuda_attention_plain_merges_parts) {
  const rig::AttentionCase c{16, 2, 1, true, 50, rig::packed({50})};
  const Row qkv = rig::normal_bf16(static_cast<size_t>(c.rows * c.width()), 1);
  const rig::AttentionResult expected = rig::attend(c, qkv);
  Plain<float> plain(c, floats(qkv));
  plain.forward({{{0, 20, 0}, {0, 20, 0}}, {{20, 30, 20}, {20, 30, 20}}}, false);
  plain.forward({{{20, 30, 20}, {0, 20, 0}}}, true);
  CHECK(rig::relative_error(plain.out.read(), expected.out) < 1e-6);
}

// Sequences of several pages, in pages out of order, some of whose rows came earlier: the bits of the whole document.
TEST(cuda_attention_paged_has_the_bits_of_the_document) {
  const std::vector<int32_t> lengths = {70, 3};
  const rig::AttentionCase c{16, 2, 1, true, 73, rig::packed(lengths)};
  const Row qkv = rig::normal_bf16(static_cast<size_t>(c.rows * c.width()), 1);
  Plain<Bf16> whole(c, qkv);
  whole.forward(c.tiles, false);
  const Buffer<Bf16> pool(size_t{4} * 2 * kPageTokens * 16), out(c.outputs());
  const Buffer<int32_t> pages(std::vector<int32_t>{3, 1, 2});
  std::vector<PagedRow> rows;
  int row = 0;
  for (int s = 0; s < 2; ++s)
    for (int i = 0; i < lengths[s]; ++i) rows.push_back({row++, i, s == 0 ? 0 : 2});
  std::reverse(rows.begin(), rows.end());
  const Buffer<PagedRow> all(rows);
  // The last rows of the list, the first of the sequence, go in first.
  for (const auto [from, count] : {std::pair{10, 63}, {0, 10}}) {
    const PagedHeads at{2, 1, 16, all.data() + from, count, pages.data()};
    kv_append(nullptr, at, qkv.empty() ? nullptr : whole.qkv.data(), pool.data());
    attention_paged(nullptr, at, c.scale(), whole.qkv.data(), pool.data(), out.data());
  }
  CHECK(rig::same_bits(out.read(), whole.out.read()));
}
