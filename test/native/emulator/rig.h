// What the tests of emulated kernels share: numbers from a seed, bf16 to and from, comparison with float64 references.
#pragma once

#include "../harness.h"
#include "cuda.h"
// After the emulator.
#include "cuda/launch.h"

namespace rig {

using emulator::Buffer;
using tokenring::cuda::Bf16;
using Values = std::vector<float>;

// A bf16 result: half an ulp is 2^-9 of it; the rest is for float32 before it is rounded. Float32: sums of up to some
// thousand numbers of one size.
constexpr double kBf16 = 0x1p-8, kFloat32 = 1e-5;

inline double value(Bf16 x) {
  float f;
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline double value(float x) { return x; }
inline double value(double x) { return x; }

// Uniform in [low, high), splitmix64.
inline Values random_floats(size_t n, uint64_t seed, float low = -1.0f, float high = 1.0f) {
  Values values(n);
  for (float& x : values) {
    uint64_t z = (seed += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    x = low + (high - low) * static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-24f;
  }
  return values;
}

// The same cut to bf16: seven bits after the leading one.
inline std::vector<Bf16> random_bf16(size_t n, uint64_t seed, float low = -1.0f, float high = 1.0f) {
  std::vector<Bf16> values;
  for (float x : random_floats(n, seed, low, high)) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    values.push_back({static_cast<uint16_t>(bits >> 16)});
  }
  return values;
}

inline std::vector<int32_t> random_ids(size_t n, uint64_t seed, int bound) {
  std::vector<int32_t> ids;
  for (float x : random_floats(n, seed, 0.0f, static_cast<float>(bound))) ids.push_back(static_cast<int32_t>(x));
  return ids;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// CHECKs |got[i] - expected[i]| <= tolerance * max(|expected[i]|, scale), where `scale` is the size of the terms that
// cancel in expected[i]. Names the first that is off.
template <class T>
void check_close(const char* what, const std::vector<T>& got, const std::vector<double>& expected, double tolerance,
                 double scale) {
  CHECK(got.size() == expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const double limit = tolerance * std::max(std::abs(expected[i]), scale);
    if (harness::near(value(got[i]), expected[i], limit)) continue;
    harness::report(__FILE__, __LINE__, what, "[", i, "] is ", value(got[i]), ", not ", expected[i], " +- ", limit);
    return;
  }
}

// Runs `work`, which returns what the kernels wrote, under two schedules. CHECKs that the bits are the same.
template <class Work>
auto on_two_schedules(const Work& work) {
  emulator::seed(1);
  const auto first = work();
  emulator::seed(2);
  const auto second = work();
  std::apply([&](const auto&... a) { std::apply([&](const auto&... b) { CHECK((same_bits(a, b) && ...)); }, second); },
             first);
  return first;
}

}  // namespace rig
