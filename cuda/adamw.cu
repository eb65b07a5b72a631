// The optimiser's update and the norm of the gradient.
#include "core/moment_codes.h"
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

__device__ __forceinline__ float largest_of_warp(float x) {
  TOKENRING_UNROLL
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
  return x;
}

// As nearest() of core/moment_codes.cc.
template <int kLast>
__device__ __forceinline__ int nearest(const float* values, float share) {
  int at = 0;
  TOKENRING_UNROLL
  for (int step = (kLast + 1) / 2; step > 0; step /= 2)
    if ((load(values + at + step - 1) + load(values + at + step)) * 0.5f < share) at += step;
  return at;
}

// Eight codes in the order of their bytes.
__device__ __forceinline__ uint64_t load_codes(const uint8_t* p, int64_t left) {
  if (left >= kPack && (reinterpret_cast<uintptr_t>(p) & 7) == 0) return load(reinterpret_cast<const uint64_t*>(p));
  uint64_t codes = 0;
  TOKENRING_UNROLL
  for (int i = 0; i < kPack; ++i)
    if (i < left) codes |= static_cast<uint64_t>(load(p + i)) << 8 * i;
  return codes;
}

__device__ __forceinline__ void store_codes(uint8_t* p, int64_t left, uint64_t codes) {
  if (left >= kPack && (reinterpret_cast<uintptr_t>(p) & 7) == 0) return store(reinterpret_cast<uint64_t*>(p), codes);
  TOKENRING_UNROLL
  for (int i = 0; i < kPack; ++i)
    if (i < left) store(p + i, static_cast<uint8_t>(codes >> 8 * i));
}

// A warp has a block of the moments, a lane eight elements of it.
__global__ void __launch_bounds__(kThreads)
    adamw8_kernel(int64_t n, AdamWConstants c, const MomentCodes* codes, float* w, const float* g, uint8_t* m,
                  uint8_t* v, float* m_scale, float* v_scale) {
  static_assert(kMomentBlock == kWarp * kPack);
  __shared__ float means[128], roots[256];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  if (thread < 128) store(means + thread, load(codes->mean + thread));
  store(roots + thread, load(codes->root + thread));
  __syncthreads();
  const int64_t blocks = (n + kMomentBlock - 1) / kMomentBlock;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + thread / kWarp; b < blocks;
       b += static_cast<int64_t>(gridDim.x) * (kThreads / kWarp)) {
    const int64_t j = b * kMomentBlock + lane * kPack, left = n - j;
    const float of_mean = __shfl_sync(0xffffffffu, lane == 0 ? load(m_scale + b) : 0.0f, 0);
    const float of_root = __shfl_sync(0xffffffffu, lane == 0 ? load(v_scale + b) : 0.0f, 0);
    Pack wj{}, gj{}, mj, vj;
    uint64_t mean_codes = 0, root_codes = 0;
    if (left > 0) {
      wj = load_pack(w + j, left);
      gj = load_pack(g + j, left);
      mean_codes = load_codes(m + j, left);
      root_codes = load_codes(v + j, left);
    }
    float most = 0.0f, most_square = 0.0f;
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i) {
      const auto code = static_cast<unsigned>(mean_codes >> 8 * i) & 255u;
      const float size = load(means + (code & 127u)) * of_mean;
      const float root = load(roots + (static_cast<unsigned>(root_codes >> 8 * i) & 255u)) * of_root;
      const float gi = gj.v[i] * c.gradient_scale;
      mj.v[i] = c.beta1 * (code & 128u ? -size : size) + c.rest1 * gi;
      vj.v[i] = c.beta2 * (root * root) + c.rest2 * (gi * gi);
      wj.v[i] = wj.v[i] * c.decay - c.step_size * (mj.v[i] / (sqrtf(vj.v[i]) / c.root_correction + c.epsilon));
      most = fmaxf(most, fabsf(mj.v[i]));
      most_square = fmaxf(most_square, vj.v[i]);
    }
    most = largest_of_warp(most);
    const float most_root = sqrtf(largest_of_warp(most_square));
    mean_codes = root_codes = 0;
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i) {
      unsigned code = most > 0.0f ? static_cast<unsigned>(nearest<127>(means, fabsf(mj.v[i]) / most)) : 0u;
      if (code > 0 && mj.v[i] < 0.0f) code |= 128u;
      unsigned root = most_root > 0.0f ? static_cast<unsigned>(nearest<255>(roots, sqrtf(vj.v[i]) / most_root)) : 0u;
      if (root == 0 && vj.v[i] > 0.0f) root = 1;
      mean_codes |= static_cast<uint64_t>(code) << 8 * i;
      root_codes |= static_cast<uint64_t>(root) << 8 * i;
    }
    if (left > 0) {
      store_pack(w + j, left, wj);
      store_codes(m + j, left, mean_codes);
      store_codes(v + j, left, root_codes);
    }
    if (lane == 0) {
      store(m_scale + b, most);
      store(v_scale + b, most_root);
    }
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

AdamWConstants constants_of(const AdamWStep& step) {
  const double t = static_cast<double>(step.step), beta1 = step.beta1, beta2 = step.beta2, rate = step.learning_rate;
  return {.decay = static_cast<float>(1.0 - rate * double{step.weight_decay}),
          .beta1 = step.beta1,
          .rest1 = static_cast<float>(1.0 - beta1),
          .beta2 = step.beta2,
          .rest2 = static_cast<float>(1.0 - beta2),
          .step_size = static_cast<float>(rate / (1.0 - pow(beta1, t))),
          .root_correction = static_cast<float>(sqrt(1.0 - pow(beta2, t))),
          .epsilon = step.epsilon,
          .gradient_scale = step.gradient_scale};
}

int64_t squares_parts(int64_t n) { return (n + kSquaresBlock - 1) / kSquaresBlock; }

}  // namespace

void adamw(CudaStream stream, int64_t n, const AdamWStep& step, float* w, const float* g, float* m, float* v) {
  if (n == 0) return;
  const int64_t blocks = (n + kThreads * kPack - 1) / (kThreads * kPack);
  TOKENRING_LAUNCH(adamw_kernel, grid_of(blocks), kThreads, 0, stream)(n, constants_of(step), w, g, m, v);
}

void adamw8(CudaStream stream, int64_t n, const AdamWStep& step, const MomentCodes* codes, float* w, const float* g,
            uint8_t* m, uint8_t* v, float* m_scale, float* v_scale) {
  if (n == 0) return;
  const int64_t blocks = (n + kThreads * kPack - 1) / (kThreads * kPack);
  TOKENRING_LAUNCH(adamw8_kernel, grid_of(blocks), kThreads, 0, stream)
  (n, constants_of(step), codes, w, g, m, v, m_scale, v_scale);
}

size_t sum_of_squares_workspace(int64_t n) { return static_cast<size_t>(squares_parts(n)) * sizeof(double); }

void sum_of_squares(CudaStream stream, int64_t n, const float* x, double* out, void* workspace) {
  double* parts = static_cast<double*>(workspace);
  const int64_t count = squares_parts(n);
  if (count > 0) TOKENRING_LAUNCH(squares_kernel, grid_of(count), kThreads, 0, stream)(n, x, parts);
  TOKENRING_LAUNCH(squares_sum_kernel, 1, kThreads, 0, stream)(count, parts, out);
}

}  // namespace tokenring::cuda
