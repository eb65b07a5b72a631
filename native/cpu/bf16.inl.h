// Rounds to bf16 and lays out in tiles.
#pragma once

#include "cpu/bf16.h"
#include "cpu/simd.inl.h"

namespace tokenring {
namespace {

using cpu::Bf16Gemm;
using cpu::Bf16Pack;
using cpu::kTileDepth;
using cpu::kTileElements;
using cpu::kTileLines;

static_assert(kTileLines == kLanes && kTileDepth == 2 * kLanes);

// store_rounded(): both vectors as consecutive bf16. round_pairs(): sixteen lanes of a pair of bf16 each, `even` in the
// low half. Denormals may become 0: the products take them for 0 anyway.
#if defined(TOKENRING_ISA_AMX)
TOKENRING_INLINE void store_rounded(uint16_t* to, V low, V high) {
  const __m512bh both = _mm512_cvtne2ps_pbh(high.v, low.v);
  __builtin_memcpy(to, &both, sizeof(both));
}
TOKENRING_INLINE V round_pairs(V even, V odd) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512bh both = _mm512_cvtne2ps_pbh(odd.v, even.v);
  __m512i words;
  __builtin_memcpy(&words, &both, sizeof(both));
  return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), words))};
}
#elif defined(TOKENRING_ISA_AVX512)
TOKENRING_INLINE __m512i rounded(V x) {  // in the high half of each lane
  const __m512i bits = _mm512_castps_si512(x.v), high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i tie = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), tie);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_and_si512(_mm512_mask_blend_epi32(is_nan(x).m, up, quiet), high);
}
TOKENRING_INLINE void store_rounded(uint16_t* to, V low, V high) {
  for (int i = 0; i < 2; ++i) {
    const __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(i ? high : low), 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * kLanes), halves);
  }
}
TOKENRING_INLINE V round_pairs(V even, V odd) {
  return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(rounded(even), 16), rounded(odd)))};
}
#elif defined(TOKENRING_ISA_AVX2)
TOKENRING_INLINE __m256i rounded(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x), high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256i tie = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), tie);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_and_si256(_mm256_blendv_epi8(up, quiet, nan), high);
}
TOKENRING_INLINE void store_rounded(uint16_t* to, V low, V high) {
  for (int i = 0; i < 2; ++i) {
    const V x = i ? high : low;
    const __m256i a = _mm256_srli_epi32(rounded(x.a), 16), b = _mm256_srli_epi32(rounded(x.b), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * kLanes),
                        _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8));
  }
}
TOKENRING_INLINE __m256 round_pairs(__m256 even, __m256 odd) {
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_srli_epi32(rounded(even), 16), rounded(odd)));
}
TOKENRING_INLINE V round_pairs(V even, V odd) { return {round_pairs(even.a, odd.a), round_pairs(even.b, odd.b)}; }
#else
inline uint32_t rounded(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return ((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
}
TOKENRING_INLINE void store_rounded(uint16_t* to, V low, V high) {
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<uint16_t>(rounded(low.v[i]) >> 16);
  for (int i = 0; i < kLanes; ++i) to[kLanes + i] = static_cast<uint16_t>(rounded(high.v[i]) >> 16);
}
TOKENRING_INLINE V round_pairs(V even, V odd) {
  V o;
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t both = rounded(even.v[i]) >> 16 | rounded(odd.v[i]);
    __builtin_memcpy(&o.v[i], &both, 4);
  }
  return o;
}
#endif

TOKENRING_INLINE V load_some(const float* p, int64_t n) {
  return n >= kLanes ? load(p) : n > 0 ? load_n(p, static_cast<int>(n)) : zero();
}

// One tile in units of 32 bits, one a pair: by line [line][pair], else [pair][line].
TOKENRING_INLINE void round_tile(const Bf16Pack& p, const float* from, int64_t lines, int64_t depth, float* units) {
  if (p.by_line) {
    uint16_t* to = reinterpret_cast<uint16_t*>(units);
    for (int64_t i = 0; i < kTileLines; ++i, from += p.ld, to += kTileDepth) {
      const int64_t n = i < lines ? depth : 0;
      store_rounded(to, load_some(from, n), load_some(from + kLanes, n - kLanes));
    }
  } else {
    for (int64_t d = 0; d < kTileDepth; d += 2, from += 2 * p.ld, units += kLanes)
      store(units,
            round_pairs(load_some(from, d < depth ? lines : 0), load_some(from + p.ld, d + 1 < depth ? lines : 0)));
  }
}

void bf16_pack(const Bf16Pack& p) {
  alignas(64) float turned[kTileElements / 2];
  const auto tile = [&](int64_t i, int64_t d) {
    const float* from = p.from + (p.by_line ? i * p.ld + d : d * p.ld + i);
    float* to = reinterpret_cast<float*>(p.to + i / kTileLines * p.tile_row + d / kTileDepth * kTileElements);
    const bool other_way = p.by_line == p.for_b;
    round_tile(p, from, p.lines - i < kTileLines ? p.lines - i : kTileLines,
               p.depth - d < kTileDepth ? p.depth - d : kTileDepth, other_way ? turned : to);
    if (other_way) transpose16(turned, kLanes, to, kLanes);
  };
  // Along the rows of memory.
  if (p.by_line) {
    for (int64_t i = 0; i < p.lines; i += kTileLines)
      for (int64_t d = 0; d < p.depth; d += kTileDepth) tile(i, d);
  } else {
    for (int64_t d = 0; d < p.depth; d += kTileDepth)
      for (int64_t i = 0; i < p.lines; i += kTileLines) tile(i, d);
  }
}

}  // namespace
}  // namespace tokenring
