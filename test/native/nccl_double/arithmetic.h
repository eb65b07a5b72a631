// The double's reductions: one rank's part onto the others, with the rounding of the type.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace nccl_double {

inline float widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

// To nearest, ties to even; a NaN stays one.
inline uint16_t narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
T folded(int reduction, T a, T b) {
  return reduction == 2 ? (b > a ? b : a) : reduction == 3 ? (b < a ? b : a) : static_cast<T>(a + b);
}

// into[i] = into[i] with part[i]: 0 sum, 2 max, 3 min; of ncclInt32, ncclFloat32 or ncclBfloat16.
inline void fold(int type, int reduction, const char* part, uint64_t count, char* into) {
  for (uint64_t i = 0; i < count; ++i) {
    if (type == 7) {
      float a, b;
      std::memcpy(&a, into + 4 * i, 4);
      std::memcpy(&b, part + 4 * i, 4);
      a = folded(reduction, a, b);
      std::memcpy(into + 4 * i, &a, 4);
    } else if (type == 2) {
      uint32_t a, b;
      std::memcpy(&a, into + 4 * i, 4);
      std::memcpy(&b, part + 4 * i, 4);
      const uint32_t sum =
          reduction == 0 ? a + b
                         : static_cast<uint32_t>(folded(reduction, static_cast<int32_t>(a), static_cast<int32_t>(b)));
      std::memcpy(into + 4 * i, &sum, 4);
    } else if (type == 9) {
      uint16_t a, b;
      std::memcpy(&a, into + 2 * i, 2);
      std::memcpy(&b, part + 2 * i, 2);
      a = narrow(folded(reduction, widen(a), widen(b)));
      std::memcpy(into + 2 * i, &a, 2);
    }
  }
}

}  // namespace nccl_double
