// Attention: packed forward and backward against float64, pages against packed, and what each row may depend on.
#include <cmath>
#include <limits>

#include "harness.h"
#include "ops_fixture.h"

using fixture::Bench;
using fixture::random_floats;
using tokenring::AttentionTile;
using tokenring::kPageTokens;
using tokenring::PagedSequence;
using tokenring::Span;
using tokenring::Tensor;

namespace {

struct Shape {
  int heads, kv_heads, head_dim;
  int64_t ld() const { return int64_t{heads + 2 * kv_heads} * head_dim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
};

std::vector<AttentionTile> documents(const std::vector<int>& lengths) {
  std::vector<AttentionTile> tiles;
  int row = 0;
  for (int length : lengths) {
    tiles.push_back({{row, length, 0}, {row, length, 0}});
    row += length;
  }
  return tiles;
}

int total(const std::vector<int>& lengths) {
  int sum = 0;
  for (int length : lengths) sum += length;
  return sum;
}

// Attention in float64 over a list of tiles, and its gradients given dout.
struct Reference {
  std::vector<double> out, lse, dqkv;
};

Reference reference(const Shape& s, const std::vector<AttentionTile>& tiles, int64_t m, const std::vector<float>& qkv,
                    const std::vector<float>& dout) {
  const int64_t width = int64_t{s.heads} * s.head_dim;
  Reference r{std::vector<double>(m * width),
              std::vector<double>(m * s.heads, -std::numeric_limits<double>::infinity()),
              std::vector<double>(m * s.ld())};
  // Keys of every query row, as (row of the key).
  std::vector<std::vector<int64_t>> keys(m);
  for (const AttentionTile& t : tiles)
    for (int i = 0; i < t.q.rows; ++i)
      for (int j = 0; j < t.k.rows; ++j)
        if (t.k.position + j <= t.q.position + i) keys[t.q.row + i].push_back(t.k.row + j);
  for (int64_t i = 0; i < m; ++i)
    for (int h = 0; h < s.heads; ++h) {
      const int kv = h / (s.heads / s.kv_heads);
      const int64_t qi = i * s.ld() + h * s.head_dim, k0 = (s.heads + kv) * s.head_dim,
                    v0 = (s.heads + s.kv_heads + kv) * s.head_dim;
      std::vector<double> p;
      double high = -std::numeric_limits<double>::infinity(), sum = 0;
      for (int64_t j : keys[i]) {
        double dot = 0;
        for (int d = 0; d < s.head_dim; ++d) dot += double{qkv[qi + d]} * qkv[j * s.ld() + k0 + d];
        p.push_back(dot * s.scale());
        high = std::max(high, p.back());
      }
      for (double& x : p) sum += (x = std::exp(x - high));
      if (p.empty()) continue;
      r.lse[i * s.heads + h] = high + std::log(sum);
      double delta = 0;
      for (size_t n = 0; n < p.size(); ++n) {
        p[n] /= sum;
        for (int d = 0; d < s.head_dim; ++d)
          r.out[i * width + h * s.head_dim + d] += p[n] * qkv[keys[i][n] * s.ld() + v0 + d];
      }
      if (dout.empty()) continue;
      const int64_t o0 = i * width + h * s.head_dim;
      for (int d = 0; d < s.head_dim; ++d) delta += r.out[o0 + d] * dout[o0 + d];
      for (size_t n = 0; n < p.size(); ++n) {
        const int64_t j = keys[i][n] * s.ld();
        double dp = 0;
        for (int d = 0; d < s.head_dim; ++d) dp += double{dout[o0 + d]} * qkv[j + v0 + d];
        const double ds = p[n] * (dp - delta) * s.scale();
        for (int d = 0; d < s.head_dim; ++d) {
          r.dqkv[j + v0 + d] += p[n] * dout[o0 + d];
          r.dqkv[j + k0 + d] += ds * qkv[qi + d];
          r.dqkv[qi + d] += ds * qkv[j + k0 + d];
        }
      }
    }
  return r;
}

struct Forward {
  Tensor qkv, out, lse, workspace;
};

Forward forward(Bench& b, const Shape& s, const std::vector<AttentionTile>& tiles, int64_t m,
                const std::vector<float>& qkv) {
  Forward f{b.f32({m, s.ld()}, qkv), b.f32({m, int64_t{s.heads} * s.head_dim}), b.f32({m, s.heads}),
            b.bytes(b.ops().attention_workspace({}, m, s.heads, s.kv_heads, s.head_dim))};
  b.ops().attention_forward(b.stream(), f.qkv, tiles, s.heads, s.kv_heads, s.head_dim, s.scale(), f.out, f.lse,
                            f.workspace);
  return f;
}

Tensor backward(Bench& b, const Shape& s, const std::vector<AttentionTile>& tiles, const Forward& f,
                const std::vector<float>& dout) {
  const Tensor d = b.f32({f.out.shape[0], f.out.shape[1]}, dout), dqkv = b.f32({f.qkv.shape[0], f.qkv.shape[1]});
  b.ops().attention_backward(b.stream(), d, f.qkv, f.out, f.lse, tiles, s.heads, s.kv_heads, s.head_dim, s.scale(),
                             dqkv, f.workspace);
  return dqkv;
}

const Shape kShapes[] = {{4, 2, 64}, {2, 2, 16}, {6, 1, 48}, {3, 3, 128}};

// Scores of inputs in [-2, 2] reach about +-20, so that the softmax is peaked and the running maximum moves.
std::vector<float> inputs(int64_t m, const Shape& s, uint64_t seed) { return random_floats(m * s.ld(), seed, -2, 2); }

}  // namespace

TEST(attention_forward_and_backward_match_float64) {
  for (const Shape& s : kShapes) {
    const std::vector<int> lengths = {1, 63, 64, 65, 17, 200};
    const auto tiles = documents(lengths);
    const int64_t m = total(lengths);
    const auto qkv = inputs(m, s, 11), dout = random_floats(m * s.heads * s.head_dim, 12);
    const Reference r = reference(s, tiles, m, qkv, dout);
    Bench b;
    const Forward f = forward(b, s, tiles, m, qkv);
    const Tensor dqkv = backward(b, s, tiles, f, dout);
    // Outputs are means of numbers in [-2, 2]; scores near 20 carry 2^-19 of absolute error into the exponent.
    CHECK_NEAR(fixture::error(b.read(f.out), r.out), 0.0, 1e-5, "head_dim ", s.head_dim);
    CHECK_NEAR(fixture::error(b.read(f.lse), r.lse), 0.0, 1e-6);
    CHECK_NEAR(fixture::error(b.read(dqkv), r.dqkv), 0.0, 2e-5, "head_dim ", s.head_dim);
  }
}

// The sampler's way: keys appended in chunks, attention over pages in shuffled order, and garbage behind the last key.
TEST(attention_paged_gives_the_packed_bits) {
  for (const Shape& s : kShapes) {
    const int length = 211;
    const auto qkv = inputs(length, s, 21);
    Bench b;
    const auto expected = b.read(forward(b, s, documents({length}), length, qkv).out);
    for (const std::vector<int>& chunks : {std::vector<int>{211}, {1, 62, 1, 1, 63, 64, 10, 9}, {200, 11}}) {
      const std::vector<int32_t> pages = {5, 0, 3, 2};
      const size_t page = b.ops().page_bytes(s.kv_heads, s.head_dim);
      const Tensor pool = b.bytes(page * 6);
      std::vector<float> got;
      int at = 0;
      for (int rows : chunks) {
        const std::vector<float> part(qkv.begin() + at * s.ld(), qkv.begin() + (at + rows) * s.ld());
        const Tensor x = b.f32({rows, s.ld()}, part), out = b.f32({rows, int64_t{s.heads} * s.head_dim});
        const std::vector<PagedSequence> list = {{{0, rows, at}, pages}};
        b.ops().kv_append(b.stream(), x, list, s.heads, s.kv_heads, s.head_dim, pool.data);
        b.ops().attention_paged(b.stream(), x, list, s.heads, s.kv_heads, s.head_dim, s.scale(), pool.data, out);
        const auto values = b.read(out);
        got.insert(got.end(), values.begin(), values.end());
        at += rows;
      }
      CHECK(fixture::same_bits(got, expected));
    }
  }
}

// A document cut into segments of 64, as context parallelism does, the rows of the segments in another order.
TEST(attention_over_segments_gives_the_whole_document) {
  const Shape s{4, 2, 32};
  const int length = 200;
  const auto qkv = inputs(length, s, 31), dout = random_floats(length * s.heads * s.head_dim, 32);
  const std::vector<Span> segments = {{128 - 64 + 8, 64, 0}, {8, 64, 64}, {136, 64, 128}, {0, 8, 192}};
  std::vector<AttentionTile> tiles;
  for (int q : {3, 0, 2, 1})
    for (int k : {2, 3, 1, 0})
      if (k <= q) tiles.push_back({segments[q], segments[k]});
  // Row of each position in the segmented tensor.
  std::vector<int> row(length);
  for (const Span& span : segments)
    for (int i = 0; i < span.rows; ++i) row[span.position + i] = span.row + i;
  const auto permuted = [&](const std::vector<float>& x, int64_t width) {
    std::vector<float> y(x.size());
    for (int p = 0; p < length; ++p) std::copy_n(x.begin() + p * width, width, y.begin() + row[p] * width);
    return y;
  };
  Bench b;
  const int64_t width = int64_t{s.heads} * s.head_dim;
  const Forward whole = forward(b, s, documents({length}), length, qkv);
  const Tensor whole_d = backward(b, s, documents({length}), whole, dout);
  const Forward cut = forward(b, s, tiles, length, permuted(qkv, s.ld()));
  const Tensor cut_d = backward(b, s, tiles, cut, permuted(dout, width));
  CHECK(fixture::same_bits(b.read(cut.out), permuted(b.read(whole.out), width)));
  CHECK(fixture::same_bits(b.read(cut.lse), permuted(b.read(whole.lse), s.heads)));
  CHECK(fixture::same_bits(b.read(cut_d), permuted(b.read(whole_d), s.ld())));
}

// Segments that do not start on a tile are right within rounding; queries without any key give 0 and -infinity.
TEST(attention_over_ragged_segments_matches_float64) {
  const Shape s{2, 1, 16};
  const int m = 150;
  const auto qkv = inputs(m, s, 41), dout = random_floats(m * s.heads * s.head_dim, 42);
  const std::vector<AttentionTile> tiles = {{{0, 70, 30}, {0, 70, 30}},
                                            {{70, 50, 100}, {0, 70, 30}},
                                            {{70, 50, 100}, {70, 50, 100}},
                                            {{120, 30, 0}, {0, 70, 30}}};
  Reference r = reference(s, tiles, m, qkv, dout);
  Bench b;
  const Forward f = forward(b, s, tiles, m, qkv);
  const Tensor dqkv = backward(b, s, tiles, f, dout);
  CHECK_NEAR(fixture::error(b.read(f.out), r.out), 0.0, 1e-5);
  CHECK_NEAR(fixture::error(b.read(dqkv), r.dqkv), 0.0, 2e-5);
  const auto lse = b.read(f.lse);
  for (int i = 0; i < m * s.heads; ++i) {
    if (std::isinf(r.lse[i]))
      CHECK(lse[i] == -std::numeric_limits<float>::infinity());
    else
      CHECK_NEAR(lse[i], r.lse[i], 1e-5);
  }
}

TEST(attention_of_a_document_does_not_depend_on_its_neighbours) {
  const Shape s{4, 2, 64};
  const std::vector<int> lengths = {90, 33, 130};
  const int64_t m = total(lengths), width = int64_t{s.heads} * s.head_dim;
  const auto qkv = inputs(m, s, 51), dout = random_floats(m * width, 52);
  Bench b;
  const Forward all = forward(b, s, documents(lengths), m, qkv);
  const auto out = b.read(all.out), lse = b.read(all.lse), dqkv = b.read(backward(b, s, documents(lengths), all, dout));
  int64_t row = 0;
  for (int n : lengths) {
    const auto part = [&](const std::vector<float>& x, int64_t w) {
      return std::vector<float>(x.begin() + row * w, x.begin() + (row + n) * w);
    };
    const Forward f = forward(b, s, documents({n}), n, part(qkv, s.ld()));
    CHECK(fixture::same_bits(b.read(f.out), part(out, width)));
    CHECK(fixture::same_bits(b.read(f.lse), part(lse, s.heads)));
    CHECK(fixture::same_bits(b.read(backward(b, s, documents({n}), f, part(dout, width))), part(dqkv, s.ld())));
    row += n;
  }
}

TEST(attention_of_a_prefix_does_not_depend_on_what_follows) {
  const Shape s{2, 1, 64};
  auto qkv = inputs(150, s, 61);
  Bench b;
  const auto before = b.read(forward(b, s, documents({150}), 150, qkv).out);
  for (size_t i = 77 * s.ld(); i < qkv.size(); ++i) qkv[i] = std::numeric_limits<float>::quiet_NaN();
  const auto after = b.read(forward(b, s, documents({150}), 150, qkv).out);
  const auto prefix = [&](const std::vector<float>& x) { return std::vector<float>(x.begin(), x.begin() + 77 * 128); };
  CHECK(fixture::same_bits(prefix(before), prefix(after)));
  CHECK(std::isnan(after[77 * 128]));
}

TEST(attention_has_the_same_bits_everywhere) {
  for (const Shape& s : {Shape{4, 2, 64}, Shape{2, 1, 16}})
    for (const std::vector<int>& lengths : {std::vector<int>{200}, {20, 70, 1, 64}}) {
      const int64_t m = total(lengths);
      const auto qkv = inputs(m, s, 71), dout = random_floats(m * s.heads * s.head_dim, 72);
      fixture::same_everywhere("attention", [&](Bench& b) {
        const Forward f = forward(b, s, documents(lengths), m, qkv);
        auto all = b.read(backward(b, s, documents(lengths), f, dout));
        const auto out = b.read(f.out), lse = b.read(f.lse);
        all.insert(all.end(), out.begin(), out.end());
        all.insert(all.end(), lse.begin(), lse.end());
        return all;
      });
    }
}

// A batch of decoding sequences of different lengths gives each the bits that it has alone.
TEST(attention_paged_is_batch_invariant) {
  const Shape s{4, 2, 64};
  Bench b;
  const size_t page = b.ops().page_bytes(s.kv_heads, s.head_dim);
  const Tensor pool = b.bytes(page * 12);
  const std::vector<int> lengths = {1, 64, 65, 190, 128};
  std::vector<PagedSequence> last;
  std::vector<float> rows;
  int next_page = 0, row = 0;
  for (int length : lengths) {
    const auto qkv = inputs(length, s, 80 + length);
    PagedSequence all{{0, length, 0}, {}};
    for (int i = 0; i < (length + kPageTokens - 1) / kPageTokens; ++i) all.pages.push_back(next_page++);
    b.ops().kv_append(b.stream(), b.f32({length, s.ld()}, qkv), {all}, s.heads, s.kv_heads, s.head_dim, pool.data);
    rows.insert(rows.end(), qkv.end() - s.ld(), qkv.end());
    last.push_back({{row++, 1, length - 1}, all.pages});
  }
  const Tensor batch = b.f32({row, s.ld()}, rows), out = b.f32({row, 256});
  b.ops().attention_paged(b.stream(), batch, last, s.heads, s.kv_heads, s.head_dim, s.scale(), pool.data, out);
  const auto together = b.read(out);
  for (int i = 0; i < row; ++i) {
    const Tensor one = b.f32({1, s.ld()}, {rows.begin() + i * s.ld(), rows.begin() + (i + 1) * s.ld()});
    const Tensor alone = b.f32({1, 256});
    PagedSequence sequence = last[i];
    sequence.q.row = 0;
    b.ops().attention_paged(b.stream(), one, {sequence}, s.heads, s.kv_heads, s.head_dim, s.scale(), pool.data, alone);
    CHECK(fixture::same_bits(b.read(alone), {together.begin() + i * 256, together.begin() + (i + 1) * 256}));
  }
  // A copied page serves as well as the first.
  b.ops().copy_page(b.stream(), pool.data, page, last[0].pages[0], 11);
  last[0].pages[0] = 11;
  b.ops().attention_paged(b.stream(), batch, last, s.heads, s.kv_heads, s.head_dim, s.scale(), pool.data, out);
  CHECK(fixture::same_bits(b.read(out), together));
}

TEST(attention_refuses_wrong_shapes) {
  Bench b;
  const Shape s{4, 2, 64};
  const Tensor qkv = b.f32({10, s.ld()}), out = b.f32({10, 256}), lse = b.f32({10, 4}), pool = b.bytes(1 << 20);
  const Tensor work = b.bytes(b.ops().attention_workspace({}, 10, 4, 2, 64));
  const auto run = [&](std::vector<AttentionTile> tiles, int heads, int kv_heads, int head_dim, Tensor to, Tensor w) {
    b.ops().attention_forward(b.stream(), qkv, tiles, heads, kv_heads, head_dim, 1.0f, to, lse, w);
  };
  CHECK_FAILS("INVALID_ARGUMENT", run(documents({11}), 4, 2, 64, out, work));
  CHECK_FAILS("INVALID_ARGUMENT", run(documents({10}), 4, 3, 64, out, work));
  CHECK_FAILS("INVALID_ARGUMENT", run(documents({10}), 4, 2, 60, out, work));
  CHECK_FAILS("INVALID_ARGUMENT", run(documents({10}), 4, 2, 64, lse, work));
  CHECK_FAILS("INVALID_ARGUMENT", run(documents({10}), 4, 2, 64, out, {}));
  CHECK_FAILS("INVALID_ARGUMENT", run({{{0, 5, 0}, {0, 5, 0}}, {{0, 5, 0}, {5, 5, 3}}}, 4, 2, 64, out, work));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().kv_append(b.stream(), qkv, {{{0, 10, 60}, {0}}}, 4, 2, 64, pool.data));
  CHECK_FAILS("INVALID_ARGUMENT",
              b.ops().attention_paged(b.stream(), qkv, {{{0, 10, 0}, {-1}}}, 4, 2, 64, 1.0f, pool.data, out));
}
