// The softmax of a row of logits by one block, in an order that depends on the row's length alone: statistics and
// samples of a row have the same bits.
#pragma once

#include "device.cuh"

namespace tokenring::cuda {
namespace {

// Softmax of the numbers seen so far: their maximum, sum of exp(z - max), sum of exp(z - max) (z - max).
struct Online {
  float max = -INFINITY, sum = 0.0f, mean = 0.0f;
};

// Moves to a maximum at least as high. What then weighs 0 is dropped; a NaN in the sum stays.
__device__ __forceinline__ void raise_to(Online& o, float high) {
  if (!(high > o.max)) return;
  const float d = o.max - high, weight = __expf(d);
  o.mean = weight > 0.0f ? weight * (o.mean + o.sum * d) : 0.0f;
  o.sum *= weight;
  o.max = high;
}

__device__ __forceinline__ void merge(Online& o, Online other) {
  raise_to(o, other.max);
  raise_to(other, o.max);
  o.sum += other.sum;
  o.mean += other.mean;
}

// One entry a warp, in shared memory.
struct SoftmaxScratch {
  float *maxima, *sums, *means;
};

// Of z * inv_temperature, given to all threads: they stride over packs, then lanes are merged by a butterfly and warps
// in order. The scratch may be used again at once.
__device__ __forceinline__ Online softmax_of_row(const float* z, int64_t v, float inv_temperature,
                                                 const SoftmaxScratch& scratch) {
  Online o;
  for (int64_t j = static_cast<int64_t>(threadIdx.x) * kPack; j < v; j += static_cast<int64_t>(blockDim.x) * kPack) {
    Pack a = load_pack(z + j, v - j, -INFINITY);
    float high = -INFINITY;
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i) {
      a.v[i] *= inv_temperature;
      high = fmaxf(high, a.v[i]);  // passes over a NaN, which the sum meets below
    }
    raise_to(o, high);
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i) {
      if (a.v[i] == -INFINITY) continue;
      const float d = a.v[i] - o.max, weight = __expf(d);
      o.sum += weight;
      o.mean += weight * d;
    }
  }
  TOKENRING_UNROLL
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    Online other;
    other.max = __shfl_xor_sync(0xffffffffu, o.max, lanes);
    other.sum = __shfl_xor_sync(0xffffffffu, o.sum, lanes);
    other.mean = __shfl_xor_sync(0xffffffffu, o.mean, lanes);
    merge(o, other);
  }
  if (threadIdx.x % kWarp == 0) {
    store(scratch.maxima + threadIdx.x / kWarp, o.max);
    store(scratch.sums + threadIdx.x / kWarp, o.sum);
    store(scratch.means + threadIdx.x / kWarp, o.mean);
  }
  __syncthreads();
  Online all;
  for (unsigned i = 0; i < blockDim.x / kWarp; ++i) {
    Online other;
    other.max = load(scratch.maxima + i);
    other.sum = load(scratch.sums + i);
    other.mean = load(scratch.means + i);
    if (i == 0)
      all = other;
    else
      merge(all, other);
  }
  __syncthreads();
  return all;
}

}  // namespace
}  // namespace tokenring::cuda
