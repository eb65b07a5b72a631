// Attention of some queries on some keys, against attention within packed documents: alone it has the same bits, in
// parts that are merged it is the same within rounding.
#include <cmath>
#include <limits>

#include "harness.h"
#include "ops_fixture.h"

using fixture::Bench;
using fixture::random_floats;
using tokenring::AttentionHeads;
using tokenring::AttentionTile;
using tokenring::DType;
using tokenring::HeadRows;
using tokenring::Span;
using tokenring::Tensor;

namespace {

constexpr int kHeads = 4, kKvHeads = 2, kHeadDim = 64;
constexpr int64_t kWidth = kHeads * kHeadDim, kKvWidth = kKvHeads * kHeadDim, kLd = kWidth + 2 * kKvWidth;
const AttentionHeads kShape{kHeads, kKvHeads, kHeadDim, 0.125f};
const std::vector<int> kLengths = {1, 63, 200, 30};
constexpr int64_t kTokens = 294;

HeadRows rows(const Tensor& t) { return {t.data, DType::f32, t.shape[0], t.shape[1]}; }

// Columns [begin, begin + width) of qkv, the documents in reverse order behind `gap` rows of NaN.
std::vector<float> reversed(const std::vector<float>& qkv, int64_t begin, int64_t width, int64_t gap) {
  std::vector<float> y((gap + kTokens) * width, std::numeric_limits<float>::quiet_NaN());
  int64_t from = 0, to = gap + kTokens;
  for (int n : kLengths) {
    to -= n;
    for (int i = 0; i < n; ++i)
      std::copy_n(qkv.begin() + (from + i) * kLd + begin, width, y.begin() + (to + i) * width);
    from += n;
  }
  return y;
}

// For each document, its keys in positions [low, high): rows of the packed queries against rows of reversed keys.
std::vector<AttentionTile> tiles(int low, int high, int gap) {
  std::vector<AttentionTile> list;
  int from = 0, to = gap + static_cast<int>(kTokens);
  for (int n : kLengths) {
    to -= n;
    const int begin = std::min(low, n), end = std::min(high, n);
    list.push_back({{from, n, 0}, {to + begin, end - begin, begin}});
    from += n;
  }
  return list;
}

struct Whole {
  std::vector<float> out, lse, dq, dk, dv, delta;
};

std::vector<float> columns(const std::vector<float>& x, int64_t begin, int64_t width) {
  std::vector<float> y;
  for (int64_t i = 0; i < kTokens; ++i)
    y.insert(y.end(), x.begin() + i * kLd + begin, x.begin() + i * kLd + begin + width);
  return y;
}

Whole packed(Bench& b, const std::vector<float>& qkv, const std::vector<float>& dout) {
  std::vector<AttentionTile> list;
  int row = 0;
  for (int n : kLengths) {
    list.push_back({{row, n, 0}, {row, n, 0}});
    row += n;
  }
  const Tensor x = b.f32({kTokens, kLd}, qkv), d = b.f32({kTokens, kWidth}, dout);
  const Tensor out = b.f32({kTokens, kWidth}), lse = b.f32({kTokens, kHeads}), dx = b.f32({kTokens, kLd});
  const Tensor delta = b.f32({kTokens, kHeads});
  const Tensor work = b.bytes(b.ops().attention_workspace({}, kTokens, kHeads, kKvHeads, kHeadDim));
  b.ops().attention_forward(b.stream(), x, list, kHeads, kKvHeads, kHeadDim, kShape.scale, out, lse, work);
  b.ops().attention_backward(b.stream(), d, x, out, lse, list, kHeads, kKvHeads, kHeadDim, kShape.scale, dx, work);
  b.ops().attention_delta(b.stream(), d, out, kHeads, delta);
  const std::vector<float> all = b.read(dx);
  return {b.read(out),
          b.read(lse),
          columns(all, 0, kWidth),
          reversed(all, kWidth, kKvWidth, 0),
          reversed(all, kWidth + kKvWidth, kKvWidth, 0),
          b.read(delta)};
}

// The same over keys cut at these positions, the parts in this order.
struct Cut {
  int low, high;
};
Whole apart(Bench& b, const std::vector<float>& qkv, const std::vector<float>& dout, const std::vector<Cut>& parts,
            int gap) {
  // Queries read out of qkv, keys and values lie apart.
  const Tensor x = b.f32({kTokens, kLd}, qkv), d = b.f32({kTokens, kWidth}, dout);
  const HeadRows q{x.data, DType::f32, kTokens, kLd};
  const Tensor k = b.f32({gap + kTokens, kKvWidth}, reversed(qkv, kWidth, kKvWidth, gap));
  const Tensor v = b.f32({gap + kTokens, kKvWidth}, reversed(qkv, kWidth + kKvWidth, kKvWidth, gap));
  const Tensor out = b.f32({kTokens, kWidth}), lse = b.f32({kTokens, kHeads}), delta = b.f32({kTokens, kHeads});
  const Tensor dx = b.f32({kTokens, kLd}, std::vector<float>(kTokens * kLd));
  const std::vector<float> zeros((gap + kTokens) * kKvWidth);
  const Tensor dk = b.f32({gap + kTokens, kKvWidth}, zeros), dv = b.f32({gap + kTokens, kKvWidth}, zeros);
  bool merge = false;
  for (const Cut& part : parts) {
    b.ops().attention_block_forward(b.stream(), kShape, q, rows(k), rows(v), tiles(part.low, part.high, gap), merge,
                                    out, lse);
    merge = true;
  }
  b.ops().attention_delta(b.stream(), d, out, kHeads, delta);
  for (const Cut& part : parts)
    b.ops().attention_block_backward(b.stream(), kShape, d, q, rows(k), rows(v), lse, delta,
                                     tiles(part.low, part.high, gap), {dx.data, DType::f32, kTokens, kLd}, rows(dk),
                                     rows(dv));
  const auto behind_gap = [&](const Tensor& t) {
    const std::vector<float> all = b.read(t);
    for (int64_t i = 0; i < gap * kKvWidth; ++i) CHECK(all[i] == 0.0f);
    return std::vector<float>(all.begin() + gap * kKvWidth, all.end());
  };
  return {b.read(out), b.read(lse), columns(b.read(dx), 0, kWidth), behind_gap(dk), behind_gap(dv), b.read(delta)};
}

double relative(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    error += std::pow(double{a[i]} - b[i], 2);
    norm += std::pow(double{b[i]}, 2);
  }
  return a.size() == b.size() ? std::sqrt(error / norm) : INFINITY;
}

std::vector<float> inputs() { return random_floats(kTokens * kLd, 71, -2, 2); }
std::vector<float> slopes() { return random_floats(kTokens * kWidth, 72); }

}  // namespace

TEST(attention_block_has_the_packed_bits) {
  Bench b;
  const Whole expected = packed(b, inputs(), slopes());
  for (int gap : {0, 7}) {
    const Whole got = apart(b, inputs(), slopes(), {{0, 1000}}, gap);
    CHECK(fixture::same_bits(got.out, expected.out));
    CHECK(fixture::same_bits(got.lse, expected.lse));
    CHECK(fixture::same_bits(got.delta, expected.delta));
    CHECK(fixture::same_bits(got.dq, expected.dq));
    CHECK(fixture::same_bits(got.dk, expected.dk));
    CHECK(fixture::same_bits(got.dv, expected.dv));
  }
}

// Parts in any order; the first may hold no key that a row sees, and a part may be empty.
TEST(attention_block_merges_parts) {
  Bench b;
  const Whole expected = packed(b, inputs(), slopes());
  const std::vector<std::vector<Cut>> orders = {
      {{0, 64}, {64, 1000}}, {{37, 100}, {100, 1000}, {0, 37}, {500, 600}}, {{190, 1000}, {1, 190}, {0, 1}}};
  for (const auto& parts : orders) {
    const Whole got = apart(b, inputs(), slopes(), parts, 0);
    // Each part adds a rounding or two of float32 (2^-24) to what it carries on.
    CHECK_NEAR(relative(got.out, expected.out), 0.0, 5e-7);
    CHECK_NEAR(relative(got.lse, expected.lse), 0.0, 5e-7);
    CHECK_NEAR(relative(got.dq, expected.dq), 0.0, 2e-6);
    CHECK_NEAR(relative(got.dk, expected.dk), 0.0, 2e-6);
    CHECK_NEAR(relative(got.dv, expected.dv), 0.0, 2e-6);
  }
}

TEST(attention_block_without_keys_gives_nothing) {
  Bench b;
  const Tensor q = b.f32({3, kWidth}, random_floats(3 * kWidth, 1)), k = b.f32({2, kKvWidth}), out = b.f32({3, kWidth});
  const Tensor lse = b.f32({3, kHeads});
  // Keys behind the queries, and no keys.
  const std::vector<AttentionTile> none = {{{0, 1, 5}, {0, 2, 6}}, {{1, 2, 0}, {0, 0, 0}}};
  b.ops().attention_block_forward(b.stream(), kShape, rows(q), rows(k), rows(k), none, false, out, lse);
  CHECK(b.read(out) == std::vector<float>(3 * kWidth, 0.0f));
  CHECK(b.read(lse) == std::vector<float>(3 * kHeads, -std::numeric_limits<float>::infinity()));
  // To merge nothing changes nothing.
  const std::vector<float> before = random_floats(3 * kWidth, 2);
  const Tensor kept = b.f32({3, kWidth}, before), some = b.f32({3, kHeads}, random_floats(3 * kHeads, 3));
  b.ops().attention_block_forward(b.stream(), kShape, rows(q), rows(k), rows(k), none, true, kept, some);
  CHECK(fixture::same_bits(b.read(kept), before));
}

TEST(attention_block_is_the_same_everywhere) {
  fixture::same_everywhere("merged attention", [](Bench& b) {
    const Whole got = apart(b, inputs(), slopes(), {{37, 100}, {100, 1000}, {0, 37}}, 3);
    std::vector<float> all = got.out;
    for (const auto* part : {&got.lse, &got.dq, &got.dk, &got.dv}) all.insert(all.end(), part->begin(), part->end());
    return all;
  });
}

TEST(attention_block_refuses_wrong_shapes) {
  Bench b;
  const Tensor q = b.f32({10, kWidth}), k = b.f32({6, kKvWidth}), out = b.f32({10, kWidth}), lse = b.f32({10, kHeads});
  const auto run = [&](HeadRows queries, HeadRows keys, HeadRows values, Span key) {
    b.ops().attention_block_forward(b.stream(), kShape, queries, keys, values, {{{0, 10, 0}, key}}, false, out, lse);
  };
  CHECK_FAILS("INVALID_ARGUMENT", run(rows(q), rows(k), rows(k), {0, 7, 0}));
  CHECK_FAILS("INVALID_ARGUMENT", run(rows(k), rows(k), rows(k), {0, 6, 0}));
  CHECK_FAILS("INVALID_ARGUMENT", run(rows(q), rows(k), {k.data, DType::f32, 5, kKvWidth}, {0, 6, 0}));
  CHECK_FAILS("INVALID_ARGUMENT", run(rows(q), {nullptr, DType::f32, 6, kKvWidth}, rows(k), {0, 6, 0}));
  CHECK_FAILS("INVALID_ARGUMENT", run(rows(q), {k.data, DType::bf16, 6, kKvWidth}, rows(k), {0, 6, 0}));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().attention_delta(b.stream(), out, out, 5, lse));
}
