// The optimiser's update and the norm of the gradient.
#include "core/ops.h"
#include "device.cuh"

namespace tokenring::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSquaresBlock = 4096;

struct AdamWConstants {
  float decay, beta1, rest1, beta2, rest2, step_size, root_correction, epsilon, gradient_scale;
};

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(int64_t n, AdamWConstants c, float* w, const float* g, float* m, float* v) {
  for (int64_t j = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kPack; j < n;
       j += static_cast<int64_t>(gridDim.x) * blockDim.x * kPack) {
    Pack wj = load_pack(w + j, n - j), mj = load_pack(m + j, n - j), vj = load_pack(v + j, n - j);
    const Pack gj = load_pack(g + j, n - j);
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i) {
      const float gi = gj.v[i] * c.gradient_scale;
      mj.v[i] = c.beta1 * mj.v[i] + c.rest1 * gi;
      vj.v[i] = c.beta2 * vj.v[i] + c.rest2 * (gi * gi);
      wj.v[i] = wj.v[i] * c.decay - c.step_size * (mj.v[i] / (sqrtf(vj.v[i]) / c.root_correction + c.epsilon));
    }
    store_pack(w + j, n - j, wj);
    store_pack(m + j, n - j, mj);
    store_pack(v + j, n - j, vj);
  }
}

// parts[i] = sum of squares of the i-th 4096 elements.
__global__ void __launch_bounds__(kThreads) squares_kernel(int64_t n, const float* x, double* parts) {
  __shared__ double scratch[kThreads / kWarp];
  for (int64_t part = blockIdx.x; part * kSquaresBlock < n; part += gridDim.x) {
    const int64_t begin = part * kSquaresBlock, end = begin + kSquaresBlock < n ? begin + kSquaresBlock : n;
    double sum = 0.0;
    for (int64_t j = begin + threadIdx.x * kPack; j < end; j += kThreads * kPack) {
      const Pack a = load_pack(x + j, end - j);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) sum += static_cast<double>(a.v[i]) * static_cast<double>(a.v[i]);
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) store(parts + part, sum);
  }
}

__global__ void __launch_bounds__(kThreads) squares_sum_kernel(int64_t count, const double* parts, double* out) {
  __shared__ double scratch[kThreads / kWarp];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += load(parts + i);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) store(out, sum);
}

int64_t squares_parts(int64_t n) { return (n + kSquaresBlock - 1) / kSquaresBlock; }

}  // namespace

void adamw(CudaStream stream, int64_t n, const AdamWStep& step, float* w, const float* g, float* m, float* v) {
  if (n == 0) return;
  const double t = static_cast<double>(step.step), beta1 = step.beta1, beta2 = step.beta2, rate = step.learning_rate;
  const AdamWConstants c{.decay = static_cast<float>(1.0 - rate * double{step.weight_decay}),
                         .beta1 = step.beta1,
                         .rest1 = static_cast<float>(1.0 - beta1),
                         .beta2 = step.beta2,
                         .rest2 = static_cast<float>(1.0 - beta2),
                         .step_size = static_cast<float>(rate / (1.0 - pow(beta1, t))),
                         .root_correction = static_cast<float>(sqrt(1.0 - pow(beta2, t))),
                         .epsilon = step.epsilon,
                         .gradient_scale = step.gradient_scale};
  const int64_t blocks = (n + kThreads * kPack - 1) / (kThreads * kPack);
  TOKENRING_LAUNCH(adamw_kernel, grid_of(blocks), kThreads, 0, stream)(n, c, w, g, m, v);
}

size_t sum_of_squares_workspace(int64_t n) { return static_cast<size_t>(squares_parts(n)) * sizeof(double); }

void sum_of_squares(CudaStream stream, int64_t n, const float* x, double* out, void* workspace) {
  double* parts = static_cast<double*>(workspace);
  const int64_t count = squares_parts(n);
  if (count > 0) TOKENRING_LAUNCH(squares_kernel, grid_of(count), kThreads, 0, stream)(n, x, parts);
  TOKENRING_LAUNCH(squares_sum_kernel, 1, kThreads, 0, stream)(count, parts, out);
}

}  // namespace tokenring::cuda
