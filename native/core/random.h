// Counter-based random numbers: a number is a pure function of (seed, counter), so neither the order of the
// calls nor their number changes any of them.
#pragma once

#include <cmath>
#include <cstdint>

namespace tokenring {

// One step of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that mixes every bit.
inline uint64_t mix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// 64 random bits of a counter within a seed.
inline uint64_t random_bits(uint64_t seed, uint64_t counter) {
  return mix64(mix64(seed) + counter * 0x9E3779B97F4A7C15ull);
}

// Uniform in [0, 1) with 24 bits, so that the float is exact.
inline float uniform01(uint64_t seed, uint64_t counter) {
  return static_cast<float>(random_bits(seed, counter) >> 40) * 0x1.0p-24f;
}

// Standard normal by Box-Muller from counters 2c and 2c + 1 with 53 bits each.
inline double normal01(uint64_t seed, uint64_t counter) {
  const double u = static_cast<double>((random_bits(seed, 2 * counter) >> 11) + 1) * 0x1.0p-53;  // (0, 1]
  const double v = static_cast<double>(random_bits(seed, 2 * counter + 1) >> 11) * 0x1.0p-53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
}

}  // namespace tokenring
