// What the attention kernels share: spans on the device, masks, the softmax of a tile, stores of accumulators.
#pragma once

#include "attention.h"
#include "wgmma.cuh"

namespace tokenring::cuda {
namespace {

constexpr float kLog2E = 1.44269504088896f, kLn2 = 0.693147180559945f;

__device__ __forceinline__ Span load_span(const Span* p) { return {load(&p->row), load(&p->rows), load(&p->position)}; }

// What queries, from the first to the last of a tile, see of a span of keys.
struct Sight {
  int rows;     // of the keys
  int visible;  // keys that the first query sees; each further one sees one more, up to `rows`. May be negative
  bool causal;

  __device__ __forceinline__ Sight(const Span& q, const Span& k, bool is_causal)
      : rows(k.rows), visible(is_causal ? q.position - k.position + 1 : k.rows), causal(is_causal) {}
  // Keys that query i sees: those below.
  __device__ __forceinline__ int limit(int i) const { return min(rows, causal ? visible + i : rows); }
};

// The maximum and the sum over the four lanes that hold a row of accumulators.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The accumulators of 64 x kColumns as the A of kColumns / 16 steps.
template <int kColumns>
__device__ __forceinline__ void to_operand(const float (&x)[kColumns / 2], uint32_t (&a)[kColumns / 4]) {
  TOKENRING_UNROLL
  for (int i = 0; i < kColumns / 4; ++i) a[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
}

// Four lanes of a quad hold w[j] of block j each; after this lane q holds in w[j] what was w[q] of lane j.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
  TOKENRING_UNROLL
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = threadIdx.x & static_cast<unsigned>(bit);
    TOKENRING_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (j & bit) continue;
      const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? w[j] : w[j | bit], bit);
      w[j] = upper ? other : w[j];
      w[j | bit] = upper ? w[j | bit] : other;
    }
  }
}

}  // namespace
}  // namespace tokenring::cuda
