// Sampling: one token a row of logits.
#include "softmax.cuh"

namespace tokenring::cuda {
namespace {

// The id of the highest logit, of equals the lowest id, by the whole block. `values` and `ids` are shared memory for
// one a warp.
__device__ __forceinline__ int highest(const float* z, int64_t v, float* values, int* ids) {
  float high = -INFINITY;
  int id = 0x7fffffff;
  for (int64_t j = threadIdx.x; j < v; j += blockDim.x) {
    const float x = load(z + j);
    if (!(x > high || id == 0x7fffffff)) continue;
    high = x;
    id = static_cast<int>(j);
  }
  const auto take = [&](float x, int other) {
    if (!(x > high || (x == high && other < id))) return;
    high = x;
    id = other;
  };
  TOKENRING_UNROLL
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    take(__shfl_xor_sync(0xffffffffu, high, lanes), __shfl_xor_sync(0xffffffffu, id, lanes));
  if (threadIdx.x % kWarp == 0) {
    store(values + threadIdx.x / kWarp, high);
    store(ids + threadIdx.x / kWarp, id);
  }
  __syncthreads();
  for (unsigned i = 0; i < blockDim.x / kWarp; ++i) take(load(values + i), load(ids + i));
  __syncthreads();
  return id;
}

// One block a row. The cumulated sum is float64, so that rounding does not skew a large vocabulary.
__global__ void __launch_bounds__(kMaxThreads)
    sample_kernel(int64_t r, int64_t v, const float* logits, const float* inv_temperature, const float* uniforms,
                  int32_t* tokens, float* logprob) {
  constexpr int kWarps = kMaxThreads / kWarp;
  __shared__ float maxima[kWarps], sums[kWarps], means[kWarps];
  __shared__ int ids[kWarps];
  __shared__ double cumulated[kMaxThreads], of_warp[kWarps];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t row = blockIdx.x; row < r; row += gridDim.x) {
    const float* z = logits + row * v;
    const float asked = load(inv_temperature + row), scale = asked == 0.0f ? 1.0f : asked;
    const Online o = softmax_of_row(z, v, scale, {maxima, sums, means});
    const auto weight = [&](float x) { return x == -INFINITY ? 0.0f : __expf(x * scale - o.max); };
    int64_t token = 0;
    if (!(o.sum == o.sum)) {
      // A NaN: there is no distribution.
    } else if (asked == 0.0f) {
      token = highest(z, v, maxima, ids);
    } else {
      const double target = static_cast<double>(load(uniforms + row)) * static_cast<double>(o.sum);
      double before = 0.0;  // the sum of the chunks so far
      bool found = false;
      for (int64_t chunk = 0; chunk < v && !found; chunk += static_cast<int64_t>(blockDim.x) * kPack) {
        const int64_t j = chunk + static_cast<int64_t>(threadIdx.x) * kPack;
        double sum = 0.0;
        if (j < v) {
          const Pack a = load_pack(z + j, v - j, -INFINITY);
          TOKENRING_UNROLL
          for (int i = 0; i < kPack; ++i) sum += static_cast<double>(weight(a.v[i]));
        }
        TOKENRING_UNROLL
        for (unsigned lanes = 1; lanes < kWarp; lanes *= 2) {
          const double left = __shfl_sync(0xffffffffu, sum, static_cast<int>(lane >= lanes ? lane - lanes : lane));
          if (lane >= lanes) sum += left;
        }
        if (lane == kWarp - 1) store(of_warp + warp, sum);
        __syncthreads();
        const double begin = before;
        double start = begin;
        for (unsigned i = 0; i < blockDim.x / kWarp; ++i) {
          const double all = load(of_warp + i);
          if (i < warp) start += all;
          before += all;
        }
        store(cumulated + threadIdx.x, start + sum);
        __syncthreads();
        found = target < load(cumulated + blockDim.x - 1);
        if (found && threadIdx.x == 0) {
          unsigned at = 0;
          while (!(target < load(cumulated + at))) ++at;
          double running = at ? load(cumulated + at - 1) : begin;
          const int64_t first = chunk + static_cast<int64_t>(at) * kPack;
          for (int64_t k = first; k < v && k < first + kPack; ++k) {
            const float p = weight(load(z + k));
            if (!(p > 0.0f)) continue;
            token = k;
            running += static_cast<double>(p);
            if (target < running) break;
          }
        }
        __syncthreads();
      }
      // Rounding left the sum below the target: the last token that has a probability.
      if (!found && threadIdx.x == 0)
        for (token = v - 1; token > 0 && !(weight(load(z + token)) > 0.0f);) --token;
    }
    if (threadIdx.x != 0) continue;
    store(tokens + row, static_cast<int32_t>(token));
    store(logprob + row, load(z + token) * scale - (o.max + logf(o.sum)));
  }
}

}  // namespace

void sample(CudaStream stream, int64_t r, int64_t v, const float* logits, const float* inv_temperature,
            const float* uniforms, int32_t* tokens, float* logprob) {
  if (r == 0 || v == 0) return;
  TOKENRING_LAUNCH(sample_kernel, grid_of(r), threads_of(v), 0, stream)
  (r, v, logits, inv_temperature, uniforms, tokens, logprob);
}

}  // namespace tokenring::cuda
