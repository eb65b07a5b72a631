// The micro-kernel and the loops around it.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.inl.h"

namespace tokenring {
namespace {

using cpu::Gemm;
using cpu::kPanel;

// Registers: MR rows by NV vectors of C stay in registers over a block of the depth.
#if defined(TOKENRING_ISA_AVX512)
constexpr int kRows = 12, kVectors = 2;
#elif defined(TOKENRING_ISA_AVX2)
constexpr int kRows = 6, kVectors = 1;
#else
constexpr int kRows = 4, kVectors = 1;
#endif
// Depth of one block: a panel of B (32 KB) stays in L1 while the rows pass by.
constexpr int64_t kDepth = 256;

template <int MR, int NV, bool T>
void micro(int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
           bool accumulate, const float* bias) {
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = accumulate ? load(c + r * ldc + v * kLanes) : zero();
  for (int64_t d = 0; d < depth; ++d) {
    V bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const V av = set1(T ? a[r] : a[r * lda]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(av, bv[v], acc[r][v]);
    }
    a += T ? lda : 1;
    b += ldb;
  }
  if (bias) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const V add_to = load(bias + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) acc[r][v] = add(acc[r][v], add_to);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(c + r * ldc + v * kLanes, acc[r][v]);
}

using Micro = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool, const float*);

template <int NV, bool T>
struct Micros {
  static constexpr Micro by_rows[13] = {
      nullptr,         micro<1, NV, T>, micro<2, NV, T>, micro<3, NV, T>,  micro<4, NV, T>,
#if defined(TOKENRING_ISA_AVX512) || defined(TOKENRING_ISA_AVX2)
      micro<5, NV, T>, micro<6, NV, T>,
#endif
#if defined(TOKENRING_ISA_AVX512)
      micro<7, NV, T>, micro<8, NV, T>, micro<9, NV, T>, micro<10, NV, T>, micro<11, NV, T>, micro<12, NV, T>,
#endif
  };
};

// All rows against `NV` vectors of columns.
template <int NV, bool T>
void rows_loop(int64_t rows, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc, bool accumulate, const float* bias) {
  // Blocks of nearly equal size: 13 rows are 7 + 6, not 12 + 1.
  int64_t blocks = (rows + kRows - 1) / kRows;
  for (int64_t r = 0; r < rows; --blocks) {
    const int64_t take = (rows - r + blocks - 1) / blocks;
    Micros<NV, T>::by_rows[take](depth, T ? a + r : a + r * lda, lda, b, ldb, c + r * ldc, ldc, accumulate, bias);
    r += take;
  }
}

template <bool T>
void gemm_loops(const Gemm& g) {
  alignas(64) float b_edge[kDepth * kLanes];
  alignas(64) float c_edge[kRows * kLanes];
  alignas(64) float bias_edge[kLanes];
  for (int64_t d0 = 0; d0 == 0 || d0 < g.depth; d0 += kDepth) {
    const int64_t depth = g.depth - d0 < kDepth ? g.depth - d0 : kDepth;
    const bool accumulate = g.accumulate || d0 > 0;
    const bool last = d0 + kDepth >= g.depth;
    const float* a = g.a + (T ? d0 * g.lda : d0);
    for (int64_t j = 0; j < g.cols;) {
      const float* b = g.b + (j / kPanel) * g.b_panel + d0 * g.ldb + j % kPanel;
      const float* bias = last && g.bias ? g.bias + j : nullptr;
      const int64_t left = g.cols - j;
      if (left >= kVectors * kLanes && j % kPanel + kVectors * kLanes <= kPanel) {
        rows_loop<kVectors, T>(g.rows, depth, a, g.lda, b, g.ldb, g.c + j, g.ldc, accumulate, bias);
        j += kVectors * kLanes;
      } else if (left >= kLanes) {
        rows_loop<1, T>(g.rows, depth, a, g.lda, b, g.ldb, g.c + j, g.ldc, accumulate, bias);
        j += kLanes;
      } else {
        // Fewer columns than lanes: B, C and bias go through zero-padded copies.
        const int n = static_cast<int>(left);
        for (int64_t d = 0; d < depth; ++d) store(b_edge + d * kLanes, load_n(b + d * g.ldb, n));
        if (bias) store(bias_edge, load_n(bias, n));
        for (int64_t r = 0; r < g.rows; r += kRows) {
          const int64_t take = g.rows - r < kRows ? g.rows - r : kRows;
          float* c = g.c + r * g.ldc + j;
          if (accumulate)
            for (int64_t i = 0; i < take; ++i) store(c_edge + i * kLanes, load_n(c + i * g.ldc, n));
          Micros<1, T>::by_rows[take](depth, T ? a + r : a + r * g.lda, g.lda, b_edge, kLanes, c_edge, kLanes,
                                      accumulate, bias ? bias_edge : nullptr);
          for (int64_t i = 0; i < take; ++i) store_n(c + i * g.ldc, load(c_edge + i * kLanes), n);
        }
        j = g.cols;
      }
    }
  }
}

void gemm(const Gemm& g) {
  if (g.rows <= 0 || g.cols <= 0) return;
  if (g.a_transposed)
    gemm_loops<true>(g);
  else
    gemm_loops<false>(g);
}

void transpose(int64_t rows, int64_t cols, const float* from, int64_t ldfrom, float* to, int64_t ldto) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < cols; ++d) to[d * ldto + r] = from[r * ldfrom + d];
}

void column_sum(int64_t rows, int64_t cols, const float* y, int64_t ldy, float* c) {
  TOKENRING_FOR_LANES(j, cols, n) {
    V s = load_n(c + j, static_cast<int>(n));
    for (int64_t r = 0; r < rows; ++r) s = add(s, load_n(y + r * ldy + j, static_cast<int>(n)));
    store_n(c + j, s, static_cast<int>(n));
  }
}

void add_to(int64_t n, const float* x, float* to) {
  TOKENRING_FOR_LANES(i, n, count) {
    const int k = static_cast<int>(count);
    store_n(to + i, add(load_n(to + i, k), load_n(x + i, k)), k);
  }
}

}  // namespace
}  // namespace tokenring
