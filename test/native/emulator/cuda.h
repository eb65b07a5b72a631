// Runs CUDA kernels on a CPU: the part of the device language that cuda/*.cu use, in plain C++. Include it before a
// .cu file. A launch on the null stream runs at once, on others when emulator/runtime.h says. It runs its blocks one
// after another, in an order drawn from the seed; the threads of a block are fibers that run until they meet a barrier
// or a shuffle, and the next one to run is drawn from the seed too. So a kernel that needs a barrier it lacks gives
// other numbers under another seed.
//
// A launch throws tokenring::Failure, naming kernel, block and thread, with the code
//   OUT_OF_BOUNDS  a load() or store() outside the emulated buffers and shared memory, or a raw store just beside one;
//   MISALIGNED     a load() or store() at an address that is no multiple of its size;
//   RACE           two threads touch the same bytes, one of them storing, with no barrier between;
//   DIVERGENCE     threads wait at different barriers or shuffles, or some have ended: a GPU may hang or go wrong;
//   LAUNCH         a launch that a GPU refuses, or that is not emulated.
// Buffers and shared memory start as NaN (0xff bytes). Limits: it sees bounds and races only through load() and
// store() of cuda/device.cuh, within shared memory no bounds between arrays; it knows nothing of time, registers,
// caches, memory order or fast-math rounding: __expf and its like are the C library's.
#pragma once

#define TOKENRING_EMULATOR

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <utility>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

// Of the fiber that runs.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// The seed of the launches that follow.
void seed(uint64_t value);

// One load or store of a kernel; throws if it is at fault.
void access(const void* address, size_t bytes, bool is_store);
void check_global(const void* address, size_t bytes, const char* verb);
// Whether so many bytes lie in an emulated buffer; OUT_OF_BOUNDS if a part of them does.
bool in_device_memory(const void* address, size_t bytes);

// All threads of the block meet at one place of the source.
void barrier(std::source_location where);
// All lanes of the warp meet, each with 8 bytes; returns those of `lane`.
uint64_t exchange(uint64_t bits, unsigned lane, unsigned mask, std::source_location where);
unsigned this_lane();

// The body of a thread: body(arguments).
void run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* arguments);

// Queues work on a stream of emulator/runtime.h.
void enqueue(void* stream, std::function<void()> work);

template <class... Parameters>
struct Launcher {
  const char* name;
  void (*kernel)(Parameters...);
  dim3 grid, block;
  size_t shared_bytes;
  void* stream;
  template <class... Arguments>
  void operator()(const Arguments&... arguments) const {
    auto launch = [*this, body = [kernel = kernel, arguments...] { kernel(arguments...); }]() mutable {
      run(
          name, grid, block, shared_bytes, [](void* p) { (*static_cast<decltype(body)*>(p))(); }, &body);
    };
    if (stream)
      enqueue(stream, std::move(launch));
    else
      launch();
  }
};

template <class... Parameters>
Launcher<Parameters...> launcher(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                 size_t shared_bytes, void* stream) {
  return {name, kernel, grid, block, shared_bytes, stream};
}

// Device memory of `bytes`, 256-byte aligned, filled with 0xff, between guards of 0xff that launches look after.
class Memory {
 public:
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count), memory_(count * sizeof(T)) {}
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    if (count_) std::memcpy(memory_.data(), values.data(), count_ * sizeof(T));
  }
  T* data() const { return static_cast<T*>(memory_.data()); }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    if (count_) std::memcpy(values.data(), memory_.data(), count_ * sizeof(T));
    return values;
  }

 private:
  size_t count_;
  Memory memory_;
};

template <class T>
T exchange_value(T value, unsigned lane, unsigned mask, std::source_location where) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(bits, lane, mask, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulator

#define TOKENRING_LAUNCH(kernel, grid, block, shared, stream) \
  emulator::launcher(#kernel, kernel, grid, block, shared, stream)
#define TOKENRING_ACCESS(address, bytes, is_store) emulator::access(address, bytes, is_store)
#define TOKENRING_UNROLL
#define TOKENRING_NO_UNROLL
// Few, so that small tests have blocks that stride.
#define TOKENRING_MAX_BLOCKS 3

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Static variables of a section of their own, so that the emulator finds them all and forgets them between blocks.
// g++ ignores the section in a template: there, load() and store() of shared memory are OUT_OF_BOUNDS.
#define __shared__ static __attribute__((section("emulated_shared")))

inline void __syncthreads(std::source_location where = std::source_location::current()) { emulator::barrier(where); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, std::source_location where = std::source_location::current()) {
  return emulator::exchange_value(value, emulator::this_lane() ^ static_cast<unsigned>(lanes), mask, where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, std::source_location where = std::source_location::current()) {
  return emulator::exchange_value(value, static_cast<unsigned>(lane), mask, where);
}

// Lanes past the end of the warp get their own value back.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, std::source_location where = std::source_location::current()) {
  const unsigned lane = emulator::this_lane();
  return emulator::exchange_value(value, lane + by < 32 ? lane + by : lane, mask, where);
}

// Bit i: the predicate of lane i.
inline unsigned __ballot_sync(unsigned mask, bool mine, std::source_location where = std::source_location::current()) {
  unsigned bits = static_cast<unsigned>(mine) << emulator::this_lane();
  for (unsigned lanes = 16; lanes > 0; lanes /= 2)
    bits |= emulator::exchange_value(bits, emulator::this_lane() ^ lanes, mask, where);
  return bits;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

using std::max;
using std::min;

// Of device memory; atomic accesses do not race with each other.
inline int atomicAdd(int* p, int value) {
  emulator::check_global(p, sizeof(int), "adds to ");
  const int before = *p;
  *p += value;
  return before;
}

inline int atomicExch(int* p, int value) {
  emulator::check_global(p, sizeof(int), "exchanges ");
  return std::exchange(*p, value);
}

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

struct __nv_bfloat16 {
  unsigned short bits;
};
// To nearest, ties to even; every NaN becomes 0x7fff.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
