// What the kernels share: the device language (nvcc's, or the emulator's on a CPU), checked loads and stores, packs of
// eight elements, sums over a block, launch shapes.
#pragma once

#include "cuda/launch.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_runtime.h>
// TOKENRING_LAUNCH(kernel, grid, block, shared bytes, stream)(arguments...)
#define TOKENRING_LAUNCH(kernel, grid, block, shared, stream) kernel<<<grid, block, shared, stream>>>
// Told of every access that load() and store() make; the emulator checks it.
#define TOKENRING_ACCESS(address, bytes, is_store)
#define TOKENRING_UNROLL _Pragma("unroll")
#define TOKENRING_NO_UNROLL _Pragma("unroll 1")
// A multiple of what the largest device runs at once.
#define TOKENRING_MAX_BLOCKS 2048
#elif !defined(TOKENRING_EMULATOR)
#error "Compile with nvcc, or include test/native/emulator/cuda.h before this file to run kernels on a CPU"
#endif

#include <math.h>

namespace tokenring::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 512;
// Elements that a thread handles at once: 16 bytes of bf16, 32 of float32.
constexpr int kPack = 8;

// Every access of a kernel to memory that other threads or kernels see goes through these two.
template <class T>
__device__ __forceinline__ T load(const T* p) {
  TOKENRING_ACCESS(p, sizeof(T), false);
  return *p;
}
template <class T>
__device__ __forceinline__ void store(T* p, T value) {
  TOKENRING_ACCESS(p, sizeof(T), true);
  *p = value;
}

__device__ __forceinline__ float to_float(Bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ Bf16 to_bf16(float x) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }

struct Pack {
  float v[kPack];
};

template <class T>
__device__ __forceinline__ bool is_wide(const T* p, int64_t left) {
  return left >= kPack && (reinterpret_cast<uintptr_t>(p) & 15) == 0;
}

// Elements p[0 .. min(8, left)); those beyond are `fill`.
__device__ __forceinline__ Pack load_pack(const Bf16* p, int64_t left, float fill = 0.0f) {
  Pack a;
  if (is_wide(p, left)) {
    const uint4 q = load(reinterpret_cast<const uint4*>(p));
    const uint32_t words[4] = {q.x, q.y, q.z, q.w};
    TOKENRING_UNROLL
    for (int i = 0; i < 4; ++i) {
      a.v[2 * i] = __uint_as_float(words[i] << 16);
      a.v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  } else {
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i) a.v[i] = i < left ? to_float(load(p + i)) : fill;
  }
  return a;
}

__device__ __forceinline__ Pack load_pack(const float* p, int64_t left, float fill = 0.0f) {
  Pack a;
  if (is_wide(p, left)) {
    const float4 low = load(reinterpret_cast<const float4*>(p)), high = load(reinterpret_cast<const float4*>(p) + 1);
    a = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  } else {
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i) a.v[i] = i < left ? load(p + i) : fill;
  }
  return a;
}

__device__ __forceinline__ uint32_t to_bf16x2(float low, float high) {
  return to_bf16(low).bits | static_cast<uint32_t>(to_bf16(high).bits) << 16;
}

// Writes elements p[0 .. min(8, left)).
__device__ __forceinline__ void store_pack(Bf16* p, int64_t left, const Pack& a) {
  if (is_wide(p, left)) {
    store(reinterpret_cast<uint4*>(p), uint4{to_bf16x2(a.v[0], a.v[1]), to_bf16x2(a.v[2], a.v[3]),
                                             to_bf16x2(a.v[4], a.v[5]), to_bf16x2(a.v[6], a.v[7])});
  } else {
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i)
      if (i < left) store(p + i, to_bf16(a.v[i]));
  }
}

__device__ __forceinline__ void store_pack(float* p, int64_t left, const Pack& a) {
  if (is_wide(p, left)) {
    store(reinterpret_cast<float4*>(p), float4{a.v[0], a.v[1], a.v[2], a.v[3]});
    store(reinterpret_cast<float4*>(p) + 1, float4{a.v[4], a.v[5], a.v[6], a.v[7]});
  } else {
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i)
      if (i < left) store(p + i, a.v[i]);
  }
}

// The sum of `x` over the threads of a block, given to all of them: lanes by a butterfly, then warps in order.
// `scratch` is shared memory for one T a warp; it may be used again at once.
template <class T>
__device__ __forceinline__ T block_sum(T x, T* scratch) {
  TOKENRING_UNROLL
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  if (threadIdx.x % kWarp == 0) store(scratch + threadIdx.x / kWarp, x);
  __syncthreads();
  T sum = load(scratch);
  for (unsigned warp = 1; warp < blockDim.x / kWarp; ++warp) sum += load(scratch + warp);
  __syncthreads();
  return sum;
}

// Threads for a row of so many elements: one pack each while that fits a block. A function of the row's length alone.
inline unsigned threads_of(int64_t columns) {
  const int64_t packs = (columns + kPack - 1) / kPack, rounded = (packs + kWarp - 1) / kWarp * kWarp;
  return static_cast<unsigned>(rounded < kMaxThreads ? rounded : kMaxThreads);
}

// Blocks of a grid; kernels stride over what is left.
inline unsigned grid_of(int64_t blocks) {
  return static_cast<unsigned>(blocks < TOKENRING_MAX_BLOCKS ? blocks : TOKENRING_MAX_BLOCKS);
}

}  // namespace
}  // namespace tokenring::cuda
