// bf16 products with ordinary vectors, in the order of bf16.h.
#pragma once

#include "cpu/bf16.inl.h"
#include "cpu/flush.inl.h"

namespace tokenring {
namespace {

// The halves of sixteen pairs as float32.
#if defined(TOKENRING_ISA_AVX512)
TOKENRING_INLINE V even(V pairs) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs.v), 16))}; }
TOKENRING_INLINE V odd(V pairs) {
  return {_mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(pairs.v), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
#elif defined(TOKENRING_ISA_AVX2)
TOKENRING_INLINE __m256 even(__m256 pairs) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs), 16));
}
TOKENRING_INLINE __m256 odd(__m256 pairs) {
  return _mm256_and_ps(pairs, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
TOKENRING_INLINE V even(V x) { return {even(x.a), even(x.b)}; }
TOKENRING_INLINE V odd(V x) { return {odd(x.a), odd(x.b)}; }
#else
TOKENRING_INLINE V even(V pairs) {
  V o;
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, &pairs.v[i], 4);
    bits <<= 16;
    __builtin_memcpy(&o.v[i], &bits, 4);
  }
  return o;
}
TOKENRING_INLINE V odd(V pairs) {
  V o;
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, &pairs.v[i], 4);
    bits &= 0xffff0000u;
    __builtin_memcpy(&o.v[i], &bits, 4);
  }
  return o;
}
#endif

// MR rows of one tile of A against one tile's columns of B.
template <int MR>
TOKENRING_INLINE void bf16_rows(const Bf16Gemm& g, const uint16_t* a, const uint16_t* b, float* c, int n) {
  V sum[MR];
#pragma GCC unroll 4
  for (int r = 0; r < MR; ++r) sum[r] = g.accumulate ? load_some(c + r * g.ldc, n) : zero();
  for (int64_t t = 0; t < g.depth_tiles; ++t, a += kTileElements, b += kTileElements) {
    V evens[MR], odds[MR];
#pragma GCC unroll 4
    for (int r = 0; r < MR; ++r) evens[r] = odds[r] = zero();
    for (int p = 0; p < kLanes; ++p) {
      V pairs;
      __builtin_memcpy(&pairs, b + p * kTileDepth, sizeof(pairs));
      const V b_even = even(pairs), b_odd = odd(pairs);
#pragma GCC unroll 4
      for (int r = 0; r < MR; ++r) {
        float both;
        __builtin_memcpy(&both, a + r * kTileDepth + 2 * p, sizeof(both));
        const V broadcast = set1(both);
        evens[r] = fma(even(broadcast), b_even, evens[r]);
        odds[r] = fma(odd(broadcast), b_odd, odds[r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < MR; ++r) sum[r] = add(sum[r], add(evens[r], odds[r]));
  }
  const V shift = g.bias ? load_some(g.bias, n) : zero();
#pragma GCC unroll 4
  for (int r = 0; r < MR; ++r) {
    if (g.bias) sum[r] = add(sum[r], shift);
    if (n == kLanes) {
      store(c + r * g.ldc, sum[r]);
    } else {
      store_n(c + r * g.ldc, sum[r], n);
    }
  }
}

// Apart from its caller, so that nothing is computed before denormals are flushed.
__attribute__((noinline)) void bf16_tiles(const Bf16Gemm& g) {
  for (int64_t j = 0; j < g.cols; j += kTileLines) {
    const int n = static_cast<int>(g.cols - j < kTileLines ? g.cols - j : kTileLines);
    const uint16_t* b = g.b + j / kTileLines * g.b_row;
    Bf16Gemm part = g;
    part.bias = g.bias ? g.bias + j : nullptr;
    for (int64_t i = 0; i < g.rows;) {
      const uint16_t* a = g.a + i / kTileLines * g.a_row + i % kTileLines * kTileDepth;
      float* c = g.c + i * g.ldc + j;
      if (g.rows - i >= 4) {
        bf16_rows<4>(part, a, b, c, n);
        i += 4;
      } else {
        bf16_rows<1>(part, a, b, c, n);
        i += 1;
      }
    }
  }
}

void bf16_gemm(const Bf16Gemm& g) {
  const FlushDenormals flush;
  bf16_tiles(g);
}

}  // namespace
}  // namespace tokenring
