// Sixteen float32 lanes in three instruction sets. Included inside kernels_*.cc only, after the macro that names the
// instruction set, so that everything here has internal linkage and is compiled for that set alone.
//
// Every operation is either exact or correctly rounded IEEE arithmetic on lanes, and sums over lanes use one tree, so
// the three versions give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(TOKENRING_ISA_AVX512) || defined(TOKENRING_ISA_AVX2)
// GCC 12's own header reads its "undefined" vectors (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

#define TOKENRING_INLINE inline __attribute__((always_inline))

namespace tokenring {
namespace {

constexpr int kLanes = 16;
constexpr float kInfinity = __builtin_inff();

#if defined(TOKENRING_ISA_AVX512)

struct V {
  __m512 v;
};
struct Mask {
  __mmask16 m;
};
TOKENRING_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
TOKENRING_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
TOKENRING_INLINE V set1(float a) { return {_mm512_set1_ps(a)}; }
TOKENRING_INLINE V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
TOKENRING_INLINE V sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
TOKENRING_INLINE V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
TOKENRING_INLINE V div(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
TOKENRING_INLINE V sqrt(V a) { return {_mm512_sqrt_ps(a.v)}; }
// a * b + c and c - a * b, one rounding
TOKENRING_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
TOKENRING_INLINE V fnma(V a, V b, V c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
// a > b ? a : b and a < b ? a : b; b if either is NaN
TOKENRING_INLINE V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
TOKENRING_INLINE V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
TOKENRING_INLINE Mask less(V a, V b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
TOKENRING_INLINE Mask is_nan(V a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
TOKENRING_INLINE Mask both(Mask a, Mask b) { return {static_cast<__mmask16>(a.m & b.m)}; }
// Lanes lo <= i < hi.
TOKENRING_INLINE Mask lanes(int lo, int hi) {
  const unsigned below_hi = hi >= 16 ? 0xffffu : hi <= 0 ? 0u : (1u << hi) - 1u;
  const unsigned below_lo = lo >= 16 ? 0xffffu : lo <= 0 ? 0u : (1u << lo) - 1u;
  return {static_cast<__mmask16>(below_hi & ~below_lo)};
}
TOKENRING_INLINE V select(Mask m, V a, V b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }
TOKENRING_INLINE V load_n(const float* p, int n, float fill = 0.0f) {
  return {_mm512_mask_loadu_ps(_mm512_set1_ps(fill), lanes(0, n).m, p)};
}
TOKENRING_INLINE void store_n(float* p, V a, int n) { _mm512_mask_storeu_ps(p, lanes(0, n).m, a.v); }
// p * 2^k where k stands in the low mantissa bits of t = 1.5 * 2^23 + k
TOKENRING_INLINE V scale_by_power(V p, V t) {
  return {
      _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), _mm512_slli_epi32(_mm512_castps_si512(t.v), 23)))};
}
TOKENRING_INLINE __m256 fold_low(V a) { return _mm512_castps512_ps256(a.v); }
TOKENRING_INLINE __m256 fold_high(V a) { return _mm512_extractf32x8_ps(a.v, 1); }

// to[d * ldto + r] = from[r * ldfrom + d] for 16 by 16.
inline void transpose16(const float* from, int64_t ldfrom, float* to, int64_t ldto) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * ldfrom);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  // a[4 g + c]: columns c, c + 4, c + 8, c + 12 of the four rows of group g, one in each quarter;
  // then a 4 by 4 transpose of quarters
#pragma GCC unroll 4
  for (int g = 0; g < 16; g += 4)
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      const __m512d x = _mm512_castps_pd(b[g + c]), y = _mm512_castps_pd(b[g + c + 2]);
      a[g + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      a[g + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even01 = _mm512_shuffle_f32x4(a[c], a[c + 4], 0x88),
                 odd01 = _mm512_shuffle_f32x4(a[c], a[c + 4], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0x88),
                 odd23 = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0xdd);
    _mm512_storeu_ps(to + c * ldto, _mm512_shuffle_f32x4(even01, even23, 0x88));
    _mm512_storeu_ps(to + (c + 4) * ldto, _mm512_shuffle_f32x4(odd01, odd23, 0x88));
    _mm512_storeu_ps(to + (c + 8) * ldto, _mm512_shuffle_f32x4(even01, even23, 0xdd));
    _mm512_storeu_ps(to + (c + 12) * ldto, _mm512_shuffle_f32x4(odd01, odd23, 0xdd));
  }
}

// Sum of squares in float64, lane by lane.
struct Squares {
  __m512d lo, hi;
};
TOKENRING_INLINE Squares no_squares() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
TOKENRING_INLINE void accumulate(Squares& s, V a) {
  const __m512d lo = _mm512_cvtps_pd(fold_low(a)), hi = _mm512_cvtps_pd(fold_high(a));
  s.lo = _mm512_fmadd_pd(lo, lo, s.lo);
  s.hi = _mm512_fmadd_pd(hi, hi, s.hi);
}
TOKENRING_INLINE void lanes_of(const Squares& s, double* out) {
  _mm512_storeu_pd(out, s.lo);
  _mm512_storeu_pd(out + 8, s.hi);
}

#elif defined(TOKENRING_ISA_AVX2)

struct V {
  __m256 a, b;
};
struct Mask {
  __m256 a, b;
};
TOKENRING_INLINE V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
TOKENRING_INLINE void store(float* p, V x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
TOKENRING_INLINE V set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
TOKENRING_INLINE V add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
TOKENRING_INLINE V sub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
TOKENRING_INLINE V mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
TOKENRING_INLINE V div(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
TOKENRING_INLINE V sqrt(V x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
TOKENRING_INLINE V fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
TOKENRING_INLINE V fnma(V x, V y, V z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
TOKENRING_INLINE V max(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
TOKENRING_INLINE V min(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
TOKENRING_INLINE Mask less(V x, V y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
TOKENRING_INLINE Mask is_nan(V x) {
  return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)};
}
TOKENRING_INLINE Mask both(Mask x, Mask y) { return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)}; }
TOKENRING_INLINE Mask lanes(int lo, int hi) {
  const __m256i i0 = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), i1 = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
  const __m256i from = _mm256_set1_epi32(lo - 1), to = _mm256_set1_epi32(hi);
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(i0, from), _mm256_cmpgt_epi32(to, i0))),
          _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(i1, from), _mm256_cmpgt_epi32(to, i1)))};
}
TOKENRING_INLINE V select(Mask m, V x, V y) {
  return {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)};
}
TOKENRING_INLINE V load_n(const float* p, int n, float fill = 0.0f) {
  const Mask m = lanes(0, n);
  const V x{_mm256_maskload_ps(p, _mm256_castps_si256(m.a)), _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.b))};
  return select(m, x, set1(fill));
}
TOKENRING_INLINE void store_n(float* p, V x, int n) {
  const Mask m = lanes(0, n);
  _mm256_maskstore_ps(p, _mm256_castps_si256(m.a), x.a);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.b), x.b);
}
TOKENRING_INLINE __m256 scale_half(__m256 p, __m256 t) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
TOKENRING_INLINE V scale_by_power(V p, V t) { return {scale_half(p.a, t.a), scale_half(p.b, t.b)}; }
TOKENRING_INLINE __m256 fold_low(V x) { return x.a; }
TOKENRING_INLINE __m256 fold_high(V x) { return x.b; }

inline void transpose8(const float* from, int64_t ldfrom, float* to, int64_t ldto) {
  __m256 a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(from + i * ldfrom);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 2
  for (int g = 0; g < 8; g += 4)
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      a[g + 2 * c] = _mm256_shuffle_ps(b[g + c], b[g + c + 2], 0x44);
      a[g + 2 * c + 1] = _mm256_shuffle_ps(b[g + c], b[g + c + 2], 0xee);
    }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(to + c * ldto, _mm256_permute2f128_ps(a[c], a[c + 4], 0x20));
    _mm256_storeu_ps(to + (c + 4) * ldto, _mm256_permute2f128_ps(a[c], a[c + 4], 0x31));
  }
}
// to[d * ldto + r] = from[r * ldfrom + d] for 16 by 16.
inline void transpose16(const float* from, int64_t ldfrom, float* to, int64_t ldto) {
  for (int r = 0; r < 16; r += 8)
    for (int d = 0; d < 16; d += 8) transpose8(from + r * ldfrom + d, ldfrom, to + d * ldto + r, ldto);
}

struct Squares {
  __m256d s[4];
};
TOKENRING_INLINE Squares no_squares() {
  return {{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}};
}
TOKENRING_INLINE void accumulate(Squares& s, V x) {
  const __m256d q[4] = {_mm256_cvtps_pd(_mm256_castps256_ps128(x.a)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.a, 1)),
                        _mm256_cvtps_pd(_mm256_castps256_ps128(x.b)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.b, 1))};
  for (int i = 0; i < 4; ++i) s.s[i] = _mm256_fmadd_pd(q[i], q[i], s.s[i]);
}
TOKENRING_INLINE void lanes_of(const Squares& s, double* out) {
  for (int i = 0; i < 4; ++i) _mm256_storeu_pd(out + 4 * i, s.s[i]);
}

#else  // scalar

struct V {
  float v[kLanes];
};
struct Mask {
  bool m[kLanes];
};
#define TOKENRING_LANES(expression)                     \
  V o;                                                  \
  for (int i = 0; i < kLanes; ++i) o.v[i] = expression; \
  return o
TOKENRING_INLINE V load(const float* p) { TOKENRING_LANES(p[i]); }
TOKENRING_INLINE void store(float* p, V a) {
  for (int i = 0; i < kLanes; ++i) p[i] = a.v[i];
}
TOKENRING_INLINE V set1(float a) { TOKENRING_LANES(a); }
TOKENRING_INLINE V add(V a, V b) { TOKENRING_LANES(a.v[i] + b.v[i]); }
TOKENRING_INLINE V sub(V a, V b) { TOKENRING_LANES(a.v[i] - b.v[i]); }
TOKENRING_INLINE V mul(V a, V b) { TOKENRING_LANES(a.v[i] * b.v[i]); }
TOKENRING_INLINE V div(V a, V b) { TOKENRING_LANES(a.v[i] / b.v[i]); }
TOKENRING_INLINE V sqrt(V a) { TOKENRING_LANES(__builtin_sqrtf(a.v[i])); }
TOKENRING_INLINE V fma(V a, V b, V c) { TOKENRING_LANES(__builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
TOKENRING_INLINE V fnma(V a, V b, V c) { TOKENRING_LANES(__builtin_fmaf(-a.v[i], b.v[i], c.v[i])); }
TOKENRING_INLINE V max(V a, V b) { TOKENRING_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
TOKENRING_INLINE V min(V a, V b) { TOKENRING_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
TOKENRING_INLINE Mask less(V a, V b) {
  Mask o;
  for (int i = 0; i < kLanes; ++i) o.m[i] = a.v[i] < b.v[i];
  return o;
}
TOKENRING_INLINE Mask is_nan(V a) {
  Mask o;
  for (int i = 0; i < kLanes; ++i) o.m[i] = a.v[i] != a.v[i];
  return o;
}
TOKENRING_INLINE Mask both(Mask a, Mask b) {
  Mask o;
  for (int i = 0; i < kLanes; ++i) o.m[i] = a.m[i] && b.m[i];
  return o;
}
TOKENRING_INLINE Mask lanes(int lo, int hi) {
  Mask o;
  for (int i = 0; i < kLanes; ++i) o.m[i] = i >= lo && i < hi;
  return o;
}
TOKENRING_INLINE V select(Mask m, V a, V b) { TOKENRING_LANES(m.m[i] ? a.v[i] : b.v[i]); }
TOKENRING_INLINE V load_n(const float* p, int n, float fill = 0.0f) { TOKENRING_LANES(i < n ? p[i] : fill); }
TOKENRING_INLINE void store_n(float* p, V a, int n) {
  for (int i = 0; i < kLanes && i < n; ++i) p[i] = a.v[i];
}
TOKENRING_INLINE V scale_by_power(V p, V t) {
  V o;
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits, shift;
    __builtin_memcpy(&bits, &p.v[i], 4);
    __builtin_memcpy(&shift, &t.v[i], 4);
    bits += shift << 23;
    __builtin_memcpy(&o.v[i], &bits, 4);
  }
  return o;
}
#undef TOKENRING_LANES

inline void transpose16(const float* from, int64_t ldfrom, float* to, int64_t ldto) {
  for (int r = 0; r < 16; ++r)
    for (int d = 0; d < 16; ++d) to[d * ldto + r] = from[r * ldfrom + d];
}

struct Squares {
  double s[kLanes];
};
TOKENRING_INLINE Squares no_squares() { return {}; }
TOKENRING_INLINE void accumulate(Squares& s, V a) {
  // The product of two float32 is exact in float64: multiply then add is the fused operation.
  for (int i = 0; i < kLanes; ++i) s.s[i] += static_cast<double>(a.v[i]) * static_cast<double>(a.v[i]);
}
TOKENRING_INLINE void lanes_of(const Squares& s, double* out) {
  for (int i = 0; i < kLanes; ++i) out[i] = s.s[i];
}

#endif

// The one tree over lanes: i with i + 8, then + 4, + 2, + 1.
#if defined(TOKENRING_ISA_AVX512) || defined(TOKENRING_ISA_AVX2)
TOKENRING_INLINE float sum(V a) {
  const __m256 s8 = _mm256_add_ps(fold_low(a), fold_high(a));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
TOKENRING_INLINE float maximum(V a) {
  const __m256 s8 = _mm256_max_ps(fold_low(a), fold_high(a));
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}
TOKENRING_INLINE float first(V a) { return _mm_cvtss_f32(_mm256_castps256_ps128(fold_low(a))); }
#else
TOKENRING_INLINE float sum(V a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] + a.v[i + half];
  return a.v[0];
}
TOKENRING_INLINE float maximum(V a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  return a.v[0];
}
TOKENRING_INLINE float first(V a) { return a.v[0]; }
#endif

TOKENRING_INLINE double sum(const Squares& s) {
  double lane[kLanes];
  lanes_of(s, lane);
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

TOKENRING_INLINE V zero() { return set1(0.0f); }

// The number of lanes that a step of for_lanes() covers: all sixteen, known at compile time, or the first `n`.
struct All {};
struct Some {
  int n;
};
TOKENRING_INLINE V load(const float* p, All) { return load(p); }
TOKENRING_INLINE V load(const float* p, Some k) { return load_n(p, k.n); }
TOKENRING_INLINE void store(float* p, V a, All) { store(p, a); }
TOKENRING_INLINE void store(float* p, V a, Some k) { store_n(p, a, k.n); }
// The covered lanes of a, `fill` in the others.
TOKENRING_INLINE V covered(V a, float, All) { return a; }
TOKENRING_INLINE V covered(V a, float fill, Some k) { return select(lanes(0, k.n), a, set1(fill)); }

// body(offset, All or Some) over a row of n: whole vectors, then a partial one.
template <class Body>
TOKENRING_INLINE void for_lanes(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, All{});
  if (i < n) body(i, Some{static_cast<int>(n - i)});
}
#define TOKENRING_LANES_BODY(i, k) [&](int64_t i, auto k) __attribute__((always_inline))

}  // namespace
}  // namespace tokenring
