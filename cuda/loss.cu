// The loss head: statistics of rows of logits, the scalar stage of the policy loss, the gradient of the logits.
#include "core/ops.h"
#include "softmax.cuh"

namespace tokenring::cuda {
namespace {

// One block a row.
__global__ void __launch_bounds__(kMaxThreads)
    logits_statistics_kernel(int64_t r, int64_t v, const float* logits, const int32_t* targets, float inv_temperature,
                             float* lse, float* logprob, float* entropy) {
  constexpr int kWarps = kMaxThreads / kWarp;
  __shared__ float maxima[kWarps], sums[kWarps], means[kWarps];
  for (int64_t row = blockIdx.x; row < r; row += gridDim.x) {
    const float* z = logits + row * v;
    const Online o = softmax_of_row(z, v, inv_temperature, {maxima, sums, means});
    if (threadIdx.x != 0) continue;
    const float log_sum = logf(o.sum), row_lse = o.max + log_sum;
    store(lse + row, row_lse);
    store(logprob + row, load(z + load(targets + row)) * inv_temperature - row_lse);
    store(entropy + row, log_sum - o.mean / o.sum);
  }
}

// One warp a document: lanes sum every 32nd row, then a butterfly.
__global__ void __launch_bounds__(kWarp)
    sequence_log_ratio_kernel(int64_t documents, const float* logprob, const float* old, const int32_t* begin,
                              float* sequence) {
  for (int64_t d = blockIdx.x; d < documents; d += gridDim.x) {
    const int32_t from = load(begin + d), to = load(begin + d + 1);
    double sum = 0.0;
    for (int32_t i = from + static_cast<int32_t>(threadIdx.x); i < to; i += kWarp)
      sum += static_cast<double>(load(logprob + i) - load(old + i));
    TOKENRING_UNROLL
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    const float mean = static_cast<float>(sum / static_cast<double>(to - from));
    for (int32_t i = from + static_cast<int32_t>(threadIdx.x); i < to; i += kWarp) store(sequence + i, mean);
  }
}

// Comparisons that leave a NaN alone, as fminf and fmaxf would not.
__device__ __forceinline__ float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

__global__ void __launch_bounds__(256) policy_scalars_kernel(int64_t n, PolicyScalars p, PolicyPointers at) {
  constexpr float kLimit = 20.0f;
  const float low = 1.0f - p.clip_low, high = 1.0f + p.clip_high;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const float w = load(at.weight + i), lp = load(at.logprob + i);
    float slope = -w, objective = lp;
    int32_t flag = 0;
    if (p.objective != PolicyObjective::nll) {
      const float a = load(at.advantage + i);
      const float d = p.objective == PolicyObjective::gspo ? load(at.sequence + i) : lp - load(at.old + i);
      const float ratio = expf(clamp(d, -kLimit, kLimit)), held = clamp(ratio, low, high);
      flag = ratio < low ? 1 : ratio > high ? 2 : 0;
      if (p.objective == PolicyObjective::cispo) {
        slope = -w * (held * a);
        objective = held * a * lp;
      } else {
        const float plain = ratio * a, clipped = held * a;
        const bool is_clipped = clipped < plain;
        objective = is_clipped ? clipped : plain;
        // d ratio / d logprob = ratio; 0 where the clip or the limit holds.
        slope = is_clipped || d < -kLimit || d > kLimit ? 0.0f : -w * plain;
        if (!is_clipped) flag = 0;
        if (p.dual_clip > 0.0f && a < 0.0f && objective < p.dual_clip * a) {
          objective = p.dual_clip * a;
          slope = 0.0f;
          flag = 3;
        }
      }
    }
    float loss = -w * objective;
    if (p.kl_coef != 0.0f) {
      const float d = load(at.reference + i) - lp, bounded = clamp(d, -kLimit, kLimit), e = expf(bounded);
      loss += w * p.kl_coef * (e - 1.0f - bounded);
      if (!(d < -kLimit || d > kLimit)) slope += w * p.kl_coef * (1.0f - e);
    }
    if (p.entropy_coef != 0.0f) {
      const float of_entropy = -w * p.entropy_coef;
      loss += of_entropy * load(at.entropy + i);
      store(at.entropy_g + i, of_entropy);
    }
    store(at.g + i, slope);
    store(at.loss + i, loss);
    store(at.flags + i, flag);
  }
}

// One block a row.
template <class Out>
__global__ void __launch_bounds__(kMaxThreads)
    logits_gradient_kernel(int64_t r, int64_t v, const float* logits, const int32_t* targets, const float* lse,
                           const float* g, const float* entropy, const float* entropy_g, float inv_temperature,
                           Out* to) {
  for (int64_t row = blockIdx.x; row < r; row += gridDim.x) {
    const float* z = logits + row * v;
    Out* out = to + row * v;
    const float slope = load(g + row) * inv_temperature, shift = load(lse + row);
    const float of_entropy = entropy_g ? load(entropy_g + row) * inv_temperature : 0.0f;
    const float level = entropy_g ? load(entropy + row) : 0.0f;
    const int64_t target = load(targets + row);
    for (int64_t j = static_cast<int64_t>(threadIdx.x) * kPack; j < v; j += static_cast<int64_t>(blockDim.x) * kPack) {
      Pack d{};
      if (slope != 0.0f || of_entropy != 0.0f) {
        d = load_pack(z + j, v - j);
        TOKENRING_UNROLL
        for (int i = 0; i < kPack; ++i) {
          const float log_p = d.v[i] * inv_temperature - shift, p = __expf(log_p);
          d.v[i] = j + i == target ? slope * (1.0f - p) : -slope * p;
          // d entropy / d z_j, 0 where p_j is.
          if (of_entropy != 0.0f && p > 0.0f) d.v[i] -= of_entropy * p * (log_p + level);
        }
      }
      store_pack(out + j, v - j, d);
    }
  }
}

}  // namespace

void logits_statistics(CudaStream stream, int64_t r, int64_t v, const float* logits, const int32_t* targets,
                       float inv_temperature, float* lse, float* logprob, float* entropy) {
  if (r == 0 || v == 0) return;
  TOKENRING_LAUNCH(logits_statistics_kernel, grid_of(r), threads_of(v), 0, stream)
  (r, v, logits, targets, inv_temperature, lse, logprob, entropy);
}

void sequence_log_ratio(CudaStream stream, int64_t documents, const float* logprob, const float* old,
                        const int32_t* begin, float* sequence) {
  if (documents == 0) return;
  TOKENRING_LAUNCH(sequence_log_ratio_kernel, grid_of(documents), kWarp, 0, stream)
  (documents, logprob, old, begin, sequence);
}

void policy_scalars(CudaStream stream, int64_t n, const PolicyScalars& policy, const PolicyPointers& lanes) {
  if (n == 0) return;
  TOKENRING_LAUNCH(policy_scalars_kernel, grid_of((n + 255) / 256), 256, 0, stream)(n, policy, lanes);
}

void logits_gradient(CudaStream stream, int64_t r, int64_t v, float* logits, const int32_t* targets, const float* lse,
                     const float* g, const float* entropy, const float* entropy_g, float inv_temperature, Bf16* out) {
  if (r == 0 || v == 0) return;
  if (out) {
    TOKENRING_LAUNCH(logits_gradient_kernel<Bf16>, grid_of(r), threads_of(v), 0, stream)
    (r, v, logits, targets, lse, g, entropy, entropy_g, inv_temperature, out);
  } else {
    TOKENRING_LAUNCH(logits_gradient_kernel<float>, grid_of(r), threads_of(v), 0, stream)
    (r, v, logits, targets, lse, g, entropy, entropy_g, inv_temperature, logits);
  }
}

}  // namespace tokenring::cuda
