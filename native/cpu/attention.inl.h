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

// A row that attended to other keys before: as if they were one key of score lse and value out.
void attend_resume(int heads, int tokens, int head_dim, const float* out, int64_t ldo, const float* lse, int64_t lds,
                   SoftmaxState* state, float* acc) {
  attend_start(heads, tokens, head_dim, state, acc);
  for (int h = 0; h < heads; ++h)
    for (int i = 0; i < tokens; ++i) {
      SoftmaxState& s = state[h * kQueryBlock + i];
      s.max = lse[i * lds + h];
      if (s.max == -kInfinity) continue;
      s.sum[0] = 1.0f;
      __builtin_memcpy(acc + (h * kQueryBlock + i) * head_dim, out + i * ldo + static_cast<int64_t>(h) * head_dim,
                       static_cast<size_t>(head_dim) * sizeof(float));
    }
}

// Keys of the tile that query token i sees: lo <= j < seen.
TOKENRING_INLINE int seen_by(int64_t visible, int hi, int i) {
  const int64_t seen = visible + i;
  return seen < hi ? static_cast<int>(seen) : hi;
}

// The first query token that sees any key of the tile: positions ascend with the row.
TOKENRING_INLINE int first_seeing(int64_t visible, int lo) {
  return visible > lo ? 0 : static_cast<int>(lo + 1 - visible);
}

// On the diagonal, rows go in steps of this many, so that little is computed only to be masked.
constexpr int kStep = 16;

TOKENRING_INLINE int rounded(int keys) { return (keys + kLanes - 1) / kLanes * kLanes; }

// Scores to probabilities in place; folds the tile into the row's state and rescales its accumulator.
// `whole`: all kTile keys are visible.
template <bool whole>
TOKENRING_INLINE void softmax_row(float* scores, int lo, int seen, V scale, SoftmaxState& state, float* acc,
                                  int head_dim) {
  const int groups = whole ? kGroups : (seen + kLanes - 1) / kLanes;
  V high = set1(-kInfinity);
#pragma GCC unroll 4
  for (int g = 0; g < groups; ++g) {
    V s = mul(load(scores + g * kLanes), scale);
    if (!whole) s = select(lanes(lo - g * kLanes, seen - g * kLanes), s, set1(-kInfinity));
    store(scores + g * kLanes, s);
    high = max(s, high);
  }
  const float tile_max = maximum(high);
  V total = load(state.sum);
  if (!(state.max >= tile_max)) {
    const V alpha = exp(set1(state.max - tile_max));
    total = mul(total, alpha);
    for (int d = 0; d < head_dim; d += kLanes) store(acc + d, mul(load(acc + d), alpha));
    state.max = tile_max;
  }
  const V shift = set1(state.max);
#pragma GCC unroll 4
  for (int g = 0; g < groups; ++g) {
    const V p = exp(sub(load(scores + g * kLanes), shift));
    store(scores + g * kLanes, p);
    total = add(total, p);
  }
  store(state.sum, total);
}

void attend(const cpu::AttendTile& t) {
  const int begin = first_seeing(t.visible, t.lo);
  if (begin >= t.tokens || t.lo >= t.hi) return;
  // One token: the heads are the rows of one product. Several: the tokens are, head by head.
  const bool by_head = t.tokens == 1;
  const int passes = by_head ? 1 : t.heads, rows = by_head ? t.heads : t.tokens;
  const int row_step = by_head ? kQueryBlock : 1;
  const int64_t ldq = by_head ? t.head_dim : t.ldq, ld_acc = static_cast<int64_t>(row_step) * t.head_dim;
  const V scale = set1(t.scale);
  const auto seen = [&](int row) { return seen_by(t.visible, t.hi, by_head ? 0 : row); };
  for (int pass = 0; pass < passes; ++pass) {
    SoftmaxState* state = t.state + pass * kQueryBlock;
    float* acc = t.acc + static_cast<int64_t>(pass) * kQueryBlock * t.head_dim;
    const float* q = t.q + static_cast<int64_t>(pass) * t.head_dim;
    for (int r = begin, end; r < rows; r = end) {
      // Rows that see the same keys go together, others in steps.
      const int shared = seen(r);
      end = by_head || shared == t.hi || rows - r < kStep ? rows : r + kStep;
      Gemm g{.rows = end - r,
             .cols = rounded(seen(end - 1)),
             .depth = t.head_dim,
             .a = q + r * ldq,
             .lda = ldq,
             .a_transposed = false,
             .b = t.keys,
             .ldb = kTile,
             .b_panel = kPanel,
             .c = t.scratch,
             .ldc = kTile,
             .accumulate = false,
             .bias = nullptr,
             .pack = nullptr};
      gemm(g);
      for (int i = r; i < end; ++i) {
        float* scores = t.scratch + (i - r) * kTile;
        if (t.lo == 0 && seen(i) == kTile)
          softmax_row<true>(scores, 0, kTile, scale, state[i * row_step], acc + i * ld_acc, t.head_dim);
        else
          softmax_row<false>(scores, t.lo, seen(i), scale, state[i * row_step], acc + i * ld_acc, t.head_dim);
      }
      // Probabilities times values: together as far as the first row sees, then each row its rest.
      g.cols = t.head_dim;
      g.depth = shared - t.lo;
      g.a = t.scratch + t.lo;
      g.lda = kTile;
      g.b = t.v;
      g.ldb = t.ldv;
      g.c = acc + r * ld_acc;
      g.ldc = ld_acc;
      g.accumulate = true;
      gemm(g);
      for (int i = r + 1; i < end && seen(i) > shared; ++i) {
        const float* p = t.scratch + (i - r) * kTile;
        for (int d = 0; d < t.head_dim; d += kLanes) {
          float* at = acc + i * ld_acc + d;
          V sum = load(at);
          for (int j = shared; j < seen(i); ++j) sum = fma(set1(p[j]), load(t.v + (j - t.lo) * t.ldv + d), sum);
          store(at, sum);
        }
      }
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
  const int begin = first_seeing(t.visible, t.lo);
  if (begin >= t.tokens || t.lo >= t.hi) return;
  const auto seen = [&](int row) { return seen_by(t.visible, t.hi, row); };
  float* p = t.scratch;
  float* ds = p + kQueryBlock * kTile;
  float* q = ds + kQueryBlock * kTile;
  float* dout = q + kQueryBlock * t.head_dim;
  const V scale = set1(t.scale);
  for (int h = 0; h < t.heads; ++h) {
    const int64_t head = static_cast<int64_t>(h) * t.head_dim;
    const float* lse = t.lse + h;
    const float* delta = t.delta + h;
    // Rows of one head lie far apart, and both are read several times.
    pack(t.tokens, t.head_dim, t.q + head, t.ldq, q);
    pack(t.tokens, t.head_dim, t.dout + head, t.ldo, dout);
    for (int r = begin, end; r < t.tokens; r = end) {
      end = seen(r) == t.hi || t.tokens - r < kStep ? t.tokens : r + kStep;
      const int widest = seen(end - 1);
      Gemm g{.rows = end - r,
             .cols = rounded(widest),
             .depth = t.head_dim,
             .a = q + r * t.head_dim,
             .lda = t.head_dim,
             .a_transposed = false,
             .b = t.keys,
             .ldb = kTile,
             .b_panel = kPanel,
             .c = p + r * kTile,
             .ldc = kTile,
             .accumulate = false,
             .bias = nullptr,
             .pack = nullptr};
      gemm(g);
      g.a = dout + r * t.head_dim;
      g.b = t.values;
      g.c = ds + r * kTile;
      gemm(g);
      for (int i = r; i < end; ++i) {
        const V shift = set1(lse[i * t.lds]), drop = set1(delta[i * t.lds]);
        for (int j = 0; j < widest; j += kLanes) {
          float* at = p + i * kTile + j;
          float* slope = ds + i * kTile + j;
          const Mask in = lanes(t.lo - j, seen(i) - j);
          const V pj = select(in, exp(sub(mul(load(at), scale), shift)), zero());
          store(at, pj);
          store(slope, select(in, mul(mul(pj, sub(load(slope), drop)), scale), zero()));
        }
      }
      if (!t.dq) continue;
      g.cols = t.head_dim;
      g.depth = widest - t.lo;
      g.a = ds + r * kTile + t.lo;
      g.lda = kTile;
      g.b = t.k;
      g.ldb = t.ldk;
      g.c = t.dq + r * t.ldq + head;
      g.ldc = t.ldq;
      g.accumulate = true;
      gemm(g);
    }
    if (!t.dk) continue;
    for (int j = t.lo, end; j < seen(t.tokens - 1); j = end) {
      // Keys that the first row sees go together, others in steps, each with the rows that see its first key.
      const int first = first_seeing(t.visible, j) > begin ? first_seeing(t.visible, j) : begin;
      end = j < seen(begin) ? seen(begin) : rounded(j + 1) < t.hi ? rounded(j + 1) : t.hi;
      Gemm g{.rows = end - j,
             .cols = t.head_dim,
             .depth = t.tokens - first,
             .a = ds + first * kTile + j,
             .lda = kTile,
             .a_transposed = true,
             .b = q + first * t.head_dim,
             .ldb = t.head_dim,
             .b_panel = kPanel,
             .c = t.dk + (j - t.lo) * t.lddk,
             .ldc = t.lddk,
             .accumulate = true,
             .bias = nullptr,
             .pack = nullptr};
      gemm(g);
      g.a = p + first * kTile + j;
      g.b = dout + first * t.head_dim;
      g.c = t.dv + (j - t.lo) * t.lddk;
      gemm(g);
    }
  }
}

}  // namespace
}  // namespace tokenring
