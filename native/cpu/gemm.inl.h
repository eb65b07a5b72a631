// The micro-kernels and the loops around them.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.inl.h"

namespace tokenring {
namespace {

using cpu::Gemm;
using cpu::kPanel;

// Registers: MR rows by NV vectors of C stay in registers over a block of the depth. Few rows take more columns at a
// time, to have enough independent chains and to read B in long runs.
#if defined(TOKENRING_ISA_AVX512)
constexpr int kRows = 12, kVectors = 2, kFewRows = 6, kManyVectors = 4;
#elif defined(TOKENRING_ISA_AVX2)
constexpr int kRows = 6, kVectors = 1, kFewRows = 2, kManyVectors = 2;
#else
constexpr int kRows = 4, kVectors = 1, kFewRows = 0, kManyVectors = 1;
#endif
// Depth of one block: a panel of B (32 KB) stays in cache while the rows pass by.
constexpr int64_t kDepth = cpu::kPackDepth;

// One line a step is fetched ahead, at `next`, `step` floats apart: the panel of B that comes after this one lies in no
// near cache, and is fetched while all rows pass by this one.
template <int MR, int NV, bool T>
void micro(int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t b_panel, float* c,
           int64_t ldc, bool accumulate, const float* bias, const float* next, int64_t step) {
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = accumulate ? load(c + r * ldc + v * kLanes) : zero();
  // What is written lies far apart: fetched now, it is there when the products are.
  if (!accumulate)
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) __builtin_prefetch(c + r * ldc + v * kLanes, 1);
  const float* b_next = b + b_panel;  // the second panel, if NV reaches into it
  // Rows of A by four from a pointer each, which all addresses can be made of without another instruction.
  const float *a4 = a + 4 * lda, *a8 = a + 8 * lda;
  const int64_t lda3 = 3 * lda;
  static_assert(MR <= 12);
  for (int64_t d = 0; d < depth; ++d) {
    V bv[NV];
    __builtin_prefetch(next, 0, 2);
    next += step;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(v < 2 ? b + v * kLanes : b_next + (v - 2) * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const float* row = r < 4 ? a : r < 8 ? a4 : a8;
      const V av = set1(T ? a[r] : row[r % 4 == 3 ? lda3 : r % 4 * lda]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(av, bv[v], acc[r][v]);
    }
    a += T ? lda : 1;
    if (!T) {
      ++a4;
      ++a8;
      asm volatile("" : "+r"(a), "+r"(a4), "+r"(a8));  // or the compiler makes twelve addresses of them
    }
    b += ldb;
    b_next += ldb;
  }
  if (bias) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const V shift = load(bias + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) acc[r][v] = add(acc[r][v], shift);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(c + r * ldc + v * kLanes, acc[r][v]);
}

using Micro = void (*)(int64_t, const float*, int64_t, const float*, int64_t, int64_t, float*, int64_t, bool,
                       const float*, const float*, int64_t);

// micro<rows, NV, T> by rows, 1 to `most`.
template <int NV, bool T, int most>
constexpr Micro micro_of(int64_t rows) {
  if constexpr (most == 0) {
    return nullptr;
  } else {
    return rows == most ? micro<most, NV, T> : micro_of<NV, T, most - 1>(rows);
  }
}
template <int NV, bool T, int most>
struct Micros {
  Micro by_rows[most + 1];
  constexpr Micros() : by_rows() {
    for (int r = 1; r <= most; ++r) by_rows[r] = micro_of<NV, T, most>(r);
  }
};
template <int NV, bool T>
constexpr Micros<NV, T, NV <= kVectors ? kRows : kFewRows> micros;

// Rows in blocks of nearly equal size: 13 are 7 + 6, not 12 + 1. body(first row, rows).
template <int most, class Body>
TOKENRING_INLINE void row_blocks(int64_t rows, const Body& body) {
  int64_t blocks = (rows + most - 1) / most;
  for (int64_t r = 0; r < rows; --blocks) {
    const int64_t take = (rows - r + blocks - 1) / blocks;
    body(r, take);
    r += take;
  }
}

// All rows against NV vectors of columns.
template <int NV, bool T>
void rows_loop(int64_t rows, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t b_panel,
               float* c, int64_t ldc, bool accumulate, const float* bias, const float* next) {
  constexpr int kMost = NV <= kVectors ? kRows : kFewRows;
  const int64_t passes = (rows + kMost - 1) / kMost, step = next ? (ldb + passes - 1) / passes : 0;
  row_blocks<kMost>(rows, [&](int64_t r, int64_t take) {
    micros<NV, T>.by_rows[take](depth, T ? a + r : a + r * lda, lda, b, ldb, b_panel, c + r * ldc, ldc, accumulate,
                                bias, next ? next : b, step);
    if (next) next += depth * step;
  });
}

// The last columns, fewer than a vector: B, C and bias go through zero-padded copies.
template <bool T>
void edge_columns(int n, int64_t rows, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb,
                  float* c, int64_t ldc, bool accumulate, const float* bias) {
  alignas(64) float b_edge[kDepth * kLanes];
  alignas(64) float c_edge[kRows * kLanes];
  alignas(64) float bias_edge[kLanes];
  for (int64_t d = 0; d < depth; ++d) store(b_edge + d * kLanes, load_n(b + d * ldb, n));
  if (bias) store(bias_edge, load_n(bias, n));
  for (int64_t r = 0; r < rows; r += kRows) {
    const int64_t take = rows - r < kRows ? rows - r : kRows;
    float* to = c + r * ldc;
    if (accumulate)
      for (int64_t i = 0; i < take; ++i) store(c_edge + i * kLanes, load_n(to + i * ldc, n));
    micros<1, T>.by_rows[take](depth, T ? a + r : a + r * lda, lda, b_edge, kLanes, kPanel, c_edge, kLanes, accumulate,
                               bias ? bias_edge : nullptr, b_edge, 0);
    for (int64_t i = 0; i < take; ++i) store_n(to + i * ldc, load(c_edge + i * kLanes), n);
  }
}

// Copies `cols` columns of each row close together. cols is a multiple of the lanes.
TOKENRING_INLINE void pack(int64_t rows, int64_t cols, const float* from, int64_t ldfrom, float* to) {
  for (int64_t d = 0; d < rows; ++d)
    for (int64_t j = 0; j < cols; j += kLanes) store(to + d * cols + j, load(from + d * ldfrom + j));
}

// A^T B where both have long rows of which only some columns are wanted: each block of the depth is copied, rows in
// their order in memory, A into groups of the micro-kernel's rows and B into panels, so that the micro-kernel reads one
// run of each. Only whole panels of columns; returns how many columns it did.
int64_t gemm_packed(const Gemm& g) {
  constexpr int64_t kAhead = 16;
  constexpr int64_t kGap = kLanes;  // a group's last row is written with whole vectors
  const int64_t cols = g.cols / kPanel * kPanel;
  float* b_pack = g.pack;
  float* a_pack = g.pack + kDepth * cpu::kPackCols;
  for (int64_t d0 = 0; d0 < g.depth; d0 += kDepth) {
    const int64_t depth = g.depth - d0 < kDepth ? g.depth - d0 : kDepth;
    // A few rows at a time: long enough for each group, short enough to stay in L1 from group to group.
    for (int64_t from = 0; from < depth; from += kAhead) {
      const int64_t until = from + kAhead < depth ? from + kAhead : depth;
      float* to = a_pack;
      row_blocks<kRows>(g.rows, [&](int64_t r, int64_t take) {
        const float* row = g.a + (d0 + from) * g.lda + r;
        for (int64_t d = from; d < until; ++d, row += g.lda)
          store(to + d * take, r + kLanes <= g.rows ? load(row) : load_n(row, static_cast<int>(take)));
        to += depth * take + kGap;
      });
    }
    for (int64_t d = 0; d < depth; ++d) {
      const float* row = g.b + (d0 + d) * g.ldb;
      for (int64_t j = 0; j < cols; j += kLanes)
        store(b_pack + (j / kPanel) * kDepth * kPanel + d * kPanel + j % kPanel,
              load(row + (j / kPanel) * g.b_panel + j % kPanel));
    }
    for (int64_t j = 0; j < cols; j += kVectors * kLanes) {
      const float* b = b_pack + (j / kPanel) * kDepth * kPanel + j % kPanel;
      const float* a = a_pack;
      row_blocks<kRows>(g.rows, [&](int64_t r, int64_t take) {
        // C comes from afar: the rows of the next group, while this one is computed.
        for (int64_t i = r + take; i < r + 2 * take && i < g.rows; ++i)
          for (int v = 0; v < kVectors; ++v) __builtin_prefetch(g.c + i * g.ldc + j + v * kLanes, 1);
        micros<kVectors, true>.by_rows[take](depth, a, take, b, kPanel, 0, g.c + r * g.ldc + j, g.ldc,
                                             g.accumulate || d0 > 0, nullptr, b, 0);
        a += depth * take + kGap;
      });
    }
  }
  return cols;
}

// Element (d, i) of `take` rows goes to to[d * take + i]. `rows` of them can be read, at least 16; whole vectors are
// written, up to a vector behind the last.
TOKENRING_INLINE void pack_turned(const float* from, int64_t ld, int64_t rows, int64_t take, int64_t depth, float* to) {
  alignas(64) float turned[(kLanes + 1) * kLanes];
  const int64_t shift = rows < kLanes ? kLanes - rows : 0;  // the last rows are read with some before them
  int64_t d = 0;
  for (; d + kLanes <= depth; d += kLanes) {
    transpose16(from - shift * ld + d, ld, turned, kLanes);
    for (int64_t i = 0; i < kLanes; ++i) store(to + (d + i) * take, load(turned + i * kLanes + shift));
  }
  for (; d < depth; ++d)
    for (int64_t i = 0; i < take; ++i) to[d * take + i] = from[i * ld + d];
}

// A B with long rows of A against panels of B: each block of the depth of A is copied into groups of the
// micro-kernel's rows. Only whole panels of columns; returns how many columns it did.
int64_t gemm_turned(const Gemm& g) {
  const int64_t cols = g.cols / kPanel * kPanel;
  for (int64_t d0 = 0; d0 < g.depth; d0 += kDepth) {
    const int64_t depth = g.depth - d0 < kDepth ? g.depth - d0 : kDepth;
    float* to = g.pack;
    row_blocks<kRows>(g.rows, [&](int64_t r, int64_t take) {
      pack_turned(g.a + r * g.lda + d0, g.lda, g.rows - r, take, depth, to);
      to += depth * take + kLanes;
    });
    const float* bias = d0 + depth == g.depth ? g.bias : nullptr;
    for (int64_t j = 0; j < cols; j += kVectors * kLanes) {
      const float* b = g.b + (j / kPanel) * g.b_panel + d0 * g.ldb + j % kPanel;
      const float* next = b + g.b_panel;
      const int64_t groups = (g.rows + kRows - 1) / kRows, step = (g.ldb + groups - 1) / groups;
      const float* a = g.pack;
      row_blocks<kRows>(g.rows, [&](int64_t r, int64_t take) {
        micros<kVectors, true>.by_rows[take](depth, a, take, b, g.ldb, 0, g.c + r * g.ldc + j, g.ldc,
                                             g.accumulate || d0 > 0, bias ? bias + j : nullptr, next, step);
        a += depth * take + kLanes;
        next += depth * step;
      });
    }
  }
  return cols;
}

template <bool T>
void gemm_loops(const Gemm& g) {
  if (g.rows <= 0 || g.cols <= 0) return;
  for (int64_t d0 = 0; d0 == 0 || d0 < g.depth; d0 += kDepth) {
    const int64_t depth = g.depth - d0 < kDepth ? g.depth - d0 : kDepth;
    const bool accumulate = g.accumulate || d0 > 0;
    const bool last = d0 + kDepth >= g.depth;
    const float* a = g.a + (T ? d0 * g.lda : d0);
    int64_t width;
    for (int64_t j = 0; j < g.cols; j += width) {
      const float* b = g.b + (j / kPanel) * g.b_panel + d0 * g.ldb + j % kPanel;
      const float* bias = last && g.bias ? g.bias + j : nullptr;
      float* c = g.c + j;
      const int64_t left = g.cols - j;
      if (g.rows <= kFewRows && left >= kManyVectors * kLanes && j % kPanel == 0) {
        width = kManyVectors * kLanes;
        if constexpr (kFewRows > 0)
          rows_loop<kManyVectors, T>(g.rows, depth, a, g.lda, b, g.ldb, g.b_panel, c, g.ldc, accumulate, bias, nullptr);
      } else if (left >= kVectors * kLanes && j % kPanel + kVectors * kLanes <= kPanel) {
        width = kVectors * kLanes;
        rows_loop<kVectors, T>(g.rows, depth, a, g.lda, b, g.ldb, g.b_panel, c, g.ldc, accumulate, bias,
                               left >= 2 * kPanel ? b + g.b_panel : nullptr);
      } else if (left >= kLanes) {
        width = kLanes;
        rows_loop<1, T>(g.rows, depth, a, g.lda, b, g.ldb, g.b_panel, c, g.ldc, accumulate, bias, nullptr);
      } else {
        width = left;
        edge_columns<T>(static_cast<int>(left), g.rows, depth, a, g.lda, b, g.ldb, c, g.ldc, accumulate, bias);
      }
    }
  }
}

void gemm(const Gemm& g) {
  // Copies pay if each is used several times.
  const bool pays =
      g.pack && g.rows >= 2 * kRows && g.rows <= cpu::kPackRows && g.depth >= 64 &&
      (g.a_transposed ? g.cols <= cpu::kPackCols && g.cols >= kPanel : g.rows >= kLanes && g.cols >= 4 * kPanel);
  Gemm rest = g;
  if (pays) {
    const int64_t done = g.a_transposed ? gemm_packed(g) : gemm_turned(g);
    rest.b += done / kPanel * g.b_panel;
    rest.c += done;
    rest.cols -= done;
    if (g.bias) rest.bias += done;
  }
  g.a_transposed ? gemm_loops<true>(rest) : gemm_loops<false>(rest);
}

void transpose(int64_t rows, int64_t cols, const float* from, int64_t ldfrom, float* to, int64_t ldto) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    int64_t d = 0;
    if (r + kLanes <= rows)
      for (; d + kLanes <= cols; d += kLanes) transpose16(from + r * ldfrom + d, ldfrom, to + d * ldto + r, ldto);
    for (int64_t i = r; i < rows && i < r + kLanes; ++i)
      for (int64_t e = d; e < cols; ++e) to[e * ldto + i] = from[i * ldfrom + e];
  }
}

void column_sum(int64_t rows, int64_t cols, const float* y, int64_t ldy, float* c) {
  for_lanes(
      cols, TOKENRING_LANES_BODY(j, k) {
        V s = load(c + j, k);
        for (int64_t r = 0; r < rows; ++r) s = add(s, load(y + r * ldy + j, k));
        store(c + j, s, k);
      });
}

void add_to(int64_t n, const float* x, float* to) {
  for_lanes(
      n, TOKENRING_LANES_BODY(i, k) { store(to + i, add(load(to + i, k), load(x + i, k)), k); });
}

}  // namespace
}  // namespace tokenring
