// Attention of a block of queries against one tile of keys: online softmax forward, recomputed probabilities backward.
//
// Per query row the order is fixed: scores are chains over head_dim; tiles in ascending order; within a tile the
// maximum, then lane-wise sums, then a chain over the visible keys into the accumulator. Keys that a row does not see
// are never multiplied, so nothing behind them can reach the row.
#pragma once

#include "cpu/gemm.inl.h"
#include "cpu/kernels.h"
#include "cpu/math.inl.h"

namespace tokenring {
namespace {

using cpu::kQueryBlock;
using cpu::kTile;
using cpu::SoftmaxState;

constexpr int kGroups = kTile / kLanes;

void attend_start(int heads, int tokens, int head_dim, SoftmaxState* state, float* acc) {
  for (int h = 0; h < heads; ++h)
    for (int i = 0; i < tokens; ++i) {
      SoftmaxState& s = state[h * kQueryBlock + i];
      s.max = -kInfinity;
      store(s.sum, zero());
      __builtin_memset(acc + (h * kQueryBlock + i) * head_dim, 0, static_cast<size_t>(head_dim) * sizeof(float));
    }
}

// Keys of the tile that query token i sees: lo <= j < seen.
TOKENRING_INLINE int seen_by(int64_t visible, int hi, int i) {
  const int64_t seen = visible + i;
  return seen < hi ? static_cast<int>(seen) : hi;
}

// Scores to probabilities in place; folds the tile into the row's state and rescales its accumulator.
TOKENRING_INLINE void softmax_row(float* scores, int lo, int seen, float scale, SoftmaxState& state, float* acc,
                                  int head_dim) {
  const V minus_infinity = set1(-kInfinity);
  const int groups = (seen + kLanes - 1) / kLanes;
  V s[kGroups], high = minus_infinity;
  for (int g = 0; g < groups; ++g) {
    s[g] =
        select(lanes(lo - g * kLanes, seen - g * kLanes), mul(load(scores + g * kLanes), set1(scale)), minus_infinity);
    high = max(s[g], high);
  }
  const float tile_max = maximum(high);
  const float new_max = state.max > tile_max ? state.max : tile_max;
  V total = load(state.sum);
  if (new_max != state.max) {
    const float alpha = exp(state.max - new_max);
    total = mul(total, set1(alpha));
    for (int d = 0; d < head_dim; d += kLanes) store(acc + d, mul(load(acc + d), set1(alpha)));
    state.max = new_max;
  }
  for (int g = 0; g < groups; ++g) {
    const V p = exp(sub(s[g], set1(new_max)));
    store(scores + g * kLanes, p);
    total = add(total, p);
  }
  store(state.sum, total);
}

void attend(const cpu::AttendTile& t) {
  // Queries that see none of the tile come first: positions ascend with the row.
  const int begin = t.visible > t.lo ? 0 : static_cast<int>(t.lo + 1 - t.visible);
  if (begin >= t.tokens || t.lo >= t.hi) return;
  const int widest = seen_by(t.visible, t.hi, t.tokens - 1);
  // One token: the heads are the rows of one product. Several: the tokens are, head by head.
  const bool by_head = t.tokens == 1;
  const int passes = by_head ? 1 : t.heads, rows = by_head ? t.heads : t.tokens - begin;
  const int row_step = by_head ? kQueryBlock : 1;
  for (int pass = 0; pass < passes; ++pass) {
    SoftmaxState* state = t.state + pass * kQueryBlock + begin;
    float* acc = t.acc + static_cast<int64_t>(pass * kQueryBlock + begin) * t.head_dim;
    const int64_t ld_acc = static_cast<int64_t>(row_step) * t.head_dim;
    gemm({.rows = rows,
          .cols = (widest + kLanes - 1) / kLanes * kLanes,
          .depth = t.head_dim,
          .a = t.q + static_cast<int64_t>(pass) * t.head_dim + begin * t.ldq,
          .lda = by_head ? t.head_dim : t.ldq,
          .a_transposed = false,
          .b = t.keys,
          .ldb = kTile,
          .b_panel = kPanel,
          .c = t.scratch,
          .ldc = kTile,
          .accumulate = false,
          .bias = nullptr});
    for (int r = 0; r < rows; ++r)
      softmax_row(t.scratch + r * kTile, t.lo, seen_by(t.visible, t.hi, by_head ? 0 : begin + r), t.scale,
                  state[r * row_step], acc + r * ld_acc, t.head_dim);
    // Probabilities times values. Rows in groups: together as far as the group's first row sees, then each its rest.
    for (int r = 0; r < rows;) {
      const int first_seen = seen_by(t.visible, t.hi, by_head ? 0 : begin + r);
      const int end = by_head || first_seen == t.hi || rows - r < kRows ? rows : r + kRows;
      Gemm g{.rows = end - r,
             .cols = t.head_dim,
             .depth = first_seen - t.lo,
             .a = t.scratch + r * kTile + t.lo,
             .lda = kTile,
             .a_transposed = false,
             .b = t.v,
             .ldb = t.ldv,
             .b_panel = kPanel,
             .c = acc + r * ld_acc,
             .ldc = ld_acc,
             .accumulate = true,
             .bias = nullptr};
      gemm(g);
      for (int i = r; i < end && !by_head; ++i) {
        const int seen = seen_by(t.visible, t.hi, begin + i);
        if (seen == first_seen) continue;
        g.rows = 1;
        g.depth = seen - first_seen;
        g.a = t.scratch + i * kTile + first_seen;
        g.b = t.v + (first_seen - t.lo) * t.ldv;
        g.c = acc + i * ld_acc;
        gemm(g);
      }
      r = end;
    }
  }
}

// A row that saw no key gives 0 and a log-sum-exp of -infinity.
void attend_finish(int heads, int tokens, int head_dim, const SoftmaxState* state, const float* acc, float* out,
                   int64_t ldo, float* lse, int64_t lds) {
  for (int h = 0; h < heads; ++h)
    for (int i = 0; i < tokens; ++i) {
      const SoftmaxState& s = state[h * kQueryBlock + i];
      const float* from = acc + static_cast<int64_t>(h * kQueryBlock + i) * head_dim;
      float* to = out + i * ldo + static_cast<int64_t>(h) * head_dim;
      const float total = sum(load(s.sum));
      const V inverse = total == 0.0f ? zero() : div(set1(1.0f), set1(total));
      for (int d = 0; d < head_dim; d += kLanes) store(to + d, mul(load(from + d), inverse));
      if (lse) lse[i * lds + h] = total == 0.0f ? -kInfinity : s.max + log(total);
    }
}

void attend_delta(int64_t rows, int heads, int head_dim, const float* dout, const float* out, float* delta) {
  for (int64_t i = 0; i < rows * heads; ++i) {
    V dot = zero();
    for (int d = 0; d < head_dim; d += kLanes)
      dot = fma(load(dout + i * head_dim + d), load(out + i * head_dim + d), dot);
    delta[i] = sum(dot);
  }
}

// p = exp(scale q.k - lse); ds = p (dout.v - delta) scale; dv += p^T dout; dk += ds^T q; dq += ds k
void attend_backward(const cpu::AttendTileBackward& t) {
  const int begin = t.visible > t.lo ? 0 : static_cast<int>(t.lo + 1 - t.visible);
  if (begin >= t.tokens || t.lo >= t.hi) return;
  const int rows = t.tokens - begin;
  const int groups = (seen_by(t.visible, t.hi, t.tokens - 1) + kLanes - 1) / kLanes;
  const int keys = (seen_by(t.visible, t.hi, t.tokens - 1)) - t.lo;
  float* p = t.scratch;
  float* ds = t.scratch + kQueryBlock * kTile;
  for (int h = 0; h < t.heads; ++h) {
    const int64_t head = static_cast<int64_t>(h) * t.head_dim;
    const float* q = t.q + begin * t.ldq + head;
    const float* dout = t.dout + begin * t.ldo + head;
    const float* lse = t.lse + begin * t.lds + h;
    const float* delta = t.delta + begin * t.lds + h;
    Gemm g{.rows = rows,
           .cols = groups * kLanes,
           .depth = t.head_dim,
           .a = q,
           .lda = t.ldq,
           .a_transposed = false,
           .b = t.keys,
           .ldb = kTile,
           .b_panel = kPanel,
           .c = p,
           .ldc = kTile,
           .accumulate = false,
           .bias = nullptr};
    gemm(g);
    g.a = dout;
    g.lda = t.ldo;
    g.b = t.values;
    g.c = ds;
    gemm(g);
    const V scale = set1(t.scale);
    for (int r = 0; r < rows; ++r) {
      const int seen = seen_by(t.visible, t.hi, begin + r);
      const V shift = set1(lse[r * t.lds]), drop = set1(delta[r * t.lds]);
      for (int n = 0; n < groups; ++n) {
        const Mask in = lanes(t.lo - n * kLanes, seen - n * kLanes);
        float* at = p + r * kTile + n * kLanes;
        float* slope = ds + r * kTile + n * kLanes;
        const V pn = exp(sub(mul(load(at), scale), shift));
        store(at, select(in, pn, zero()));
        store(slope, select(in, mul(mul(pn, sub(load(slope), drop)), scale), zero()));
      }
    }
    if (t.dq) {
      gemm({.rows = rows,
            .cols = t.head_dim,
            .depth = keys,
            .a = ds + t.lo,
            .lda = kTile,
            .a_transposed = false,
            .b = t.k,
            .ldb = t.ldk,
            .b_panel = kPanel,
            .c = t.dq + begin * t.ldq + head,
            .ldc = t.ldq,
            .accumulate = true,
            .bias = nullptr});
    }
    if (t.dk) {
      g = {.rows = keys,
           .cols = t.head_dim,
           .depth = rows,
           .a = ds + t.lo,
           .lda = kTile,
           .a_transposed = true,
           .b = q,
           .ldb = t.ldq,
           .b_panel = kPanel,
           .c = t.dk,
           .ldc = t.ldk,
           .accumulate = true,
           .bias = nullptr};
      gemm(g);
      g.a = p + t.lo;
      g.b = dout;
      g.ldb = t.ldo;
      g.c = t.dv;
      gemm(g);
    }
  }
}

}  // namespace
}  // namespace tokenring
