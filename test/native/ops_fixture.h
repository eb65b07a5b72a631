// What the op tests share: a device, tensors filled from a seed, copies to and from float64 vectors.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/ops.h"
#include "cpu/device.h"

namespace fixture {

using tokenring::Buffer;
using tokenring::Device;
using tokenring::DType;
using tokenring::Ops;
using tokenring::Precision;
using tokenring::Stream;
using tokenring::Tensor;

// A CPU device of the named instructions with so many threads; made once, kept for all tests.
Device& device(const std::string& isa = "", int threads = 2, Precision precision = Precision::float32);
// The instruction sets that this machine has, best first; with bf16, AMX is one.
const std::vector<std::string>& isas(Precision precision = Precision::float32);

// splitmix64: the tests' own numbers, the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  float uniform(float low, float high) { return low + (high - low) * static_cast<float>(next() >> 40) * 0x1p-24f; }
  int below(int n) { return static_cast<int>(next() % static_cast<uint64_t>(n)); }

 private:
  uint64_t state_;
};

std::vector<float> random_floats(size_t n, uint64_t seed, float low = -1.0f, float high = 1.0f);
std::vector<int32_t> random_ids(size_t n, uint64_t seed, int bound);

// One device, one stream, and tensors that live as long as it does.
class Bench {
 public:
  explicit Bench(const std::string& isa = "", int threads = 2, Precision precision = Precision::float32)
      : device_(device(isa, threads, precision)), stream_(device_.stream()) {}
  ~Bench();
  Device& dev() { return device_; }
  const Ops& ops() { return device_.ops(); }
  Stream& stream() { return *stream_; }

  Tensor f32(std::initializer_list<int64_t> shape, const std::vector<float>& values);
  Tensor f32(std::initializer_list<int64_t> shape);  // filled with NaN: what is not written shows
  Tensor i32(std::initializer_list<int64_t> shape, const std::vector<int32_t>& values);
  Tensor i32(std::initializer_list<int64_t> shape);
  Tensor bytes(size_t n);
  tokenring::Weight weight(const std::vector<float>& master, int64_t n, int64_t k);

  std::vector<float> read(const Tensor& t);  // synchronises
  std::vector<int32_t> read_ids(const Tensor& t);

 private:
  Device& device_;
  std::vector<Buffer> buffers_;
  std::unique_ptr<Stream> stream_;  // ends before the buffers it may still write
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b);
// Largest |a - b| / max(1, scale of b).
double error(const std::vector<float>& a, const std::vector<double>& b);

// Runs `work` on every instruction set with one and two threads; CHECKs that what it returns has the same bits.
void same_everywhere(const char* what, const std::function<std::vector<float>(Bench&)>& work,
                     Precision precision = Precision::float32);

}  // namespace fixture
