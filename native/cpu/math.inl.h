// exp and log in float32, the same operations on every instruction set. Our own, so that the bits depend neither on
// the C library nor on the CPU. Coefficients: Chebyshev interpolation of the stated functions, computed for this file.
#pragma once

#include "cpu/simd.inl.h"

namespace tokenring {
namespace {

// e^x, at most 2 ulp; 0 below ln(2^-126) (no denormals), infinity above ln(FLT_MAX), NaN for NaN.
// x = n ln2 + r, |r| <= ln2 / 2; e^r = 1 + r + r^2 q(r).
TOKENRING_INLINE V exp(V x) {
  const V t = fma(x, set1(1.44269504f), set1(12582912.0f));  // 1.5 * 2^23: the sum's low bits are round(x / ln2)
  const V n = sub(t, set1(12582912.0f));
  V r = fnma(n, set1(0.693359375f), x);  // ln2 in two parts, the first exact in 9 bits
  r = fnma(n, set1(-2.12194440e-4f), r);
  V q = fma(set1(0.001392625083f), r, set1(0.008363232884f));
  q = fma(q, r, set1(0.04166655421f));
  q = fma(q, r, set1(0.1666657667f));
  q = fma(q, r, set1(0.5f));
  const V p = add(fma(mul(r, r), q, r), set1(1.0f));
  V y = scale_by_power(p, t);
  y = select(less(x, set1(-87.3365f)), zero(), y);
  y = select(less(set1(88.72283f), x), set1(kInfinity), y);
  return select(is_nan(x), x, y);
}

TOKENRING_INLINE float exp(float x) { return first(exp(set1(x))); }

// Natural logarithm of a normal positive number, at most 2 ulp; infinity for infinity, NaN for NaN, -infinity for 0.
// x = m 2^e, m in [sqrt(1/2), sqrt(2)); with f = m - 1, s = f / (2 + f): log m = f - s (f - R(s^2)).
inline float log(float x) {
  if (!(x < kInfinity)) return x;
  if (x <= 0.0f) return x == 0.0f ? -kInfinity : __builtin_nanf("");
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const int32_t e = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;  // 0x3f3504f3 = sqrt(1/2)
  bits -= static_cast<uint32_t>(e) << 23;
  float m;
  __builtin_memcpy(&m, &bits, 4);
  const float f = m - 1.0f, s = f / (2.0f + f), z = s * s;
  float r = __builtin_fmaf(0.2333161447f, z, 0.2855077863f);
  r = __builtin_fmaf(r, z, 0.4000012221f);
  r = __builtin_fmaf(r, z, 0.6666666655f);
  r = r * z;
  const float n = static_cast<float>(e);
  const float low = __builtin_fmaf(n, -2.12194440e-4f, -s * (f - r));
  return __builtin_fmaf(n, 0.693359375f, f + low);
}

}  // namespace
}  // namespace tokenring
