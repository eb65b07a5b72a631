// Residual addition and RMSNorm.
#include "device.cuh"

namespace tokenring::cuda {
namespace {

// One block a row. The row is read twice; the second time it lies in the caches.
__global__ void __launch_bounds__(kMaxThreads)
    rmsnorm_forward_kernel(int64_t m, int64_t h, const Bf16* x, const Bf16* r, const float* w, float eps, Bf16* sum,
                           Bf16* y, float* rstd) {
  __shared__ float scratch[kMaxThreads / kWarp];
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kPack, step = static_cast<int64_t>(blockDim.x) * kPack;
  for (int64_t row = blockIdx.x; row < m; row += gridDim.x) {
    const int64_t at = row * h;
    float squares = 0.0f;
    for (int64_t j = first; j < h; j += step) {
      Pack a = load_pack(x + at + j, h - j);
      if (r) {
        const Pack b = load_pack(r + at + j, h - j);
        // Rounded before it is squared: backward sees the same s.
        TOKENRING_UNROLL
        for (int i = 0; i < kPack; ++i) a.v[i] = to_float(to_bf16(a.v[i] + b.v[i]));
      }
      if (sum) store_pack(sum + at + j, h - j, a);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) squares += a.v[i] * a.v[i];
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(h) + eps);
    if (threadIdx.x == 0) store(rstd + row, scale);
    // Each thread reads again what it wrote itself.
    const Bf16* s = sum ? sum : x;
    for (int64_t j = first; j < h; j += step) {
      Pack a = load_pack(s + at + j, h - j);
      const Pack b = load_pack(w + j, h - j);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) a.v[i] = a.v[i] * scale * b.v[i];
      store_pack(y + at + j, h - j, a);
    }
  }
}

__global__ void __launch_bounds__(kMaxThreads)
    rmsnorm_dx_kernel(int64_t m, int64_t h, const Bf16* dy, const Bf16* s, const float* w, const float* rstd, Bf16* ds,
                      bool accumulate) {
  __shared__ float scratch[kMaxThreads / kWarp];
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kPack, step = static_cast<int64_t>(blockDim.x) * kPack;
  for (int64_t row = blockIdx.x; row < m; row += gridDim.x) {
    const int64_t at = row * h;
    float dot = 0.0f;
    for (int64_t j = first; j < h; j += step) {
      const Pack d = load_pack(dy + at + j, h - j), a = load_pack(s + at + j, h - j), b = load_pack(w + j, h - j);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) dot += d.v[i] * b.v[i] * a.v[i];
    }
    const float scale = load(rstd + row);
    const float pull = block_sum(dot, scratch) / static_cast<float>(h) * scale * scale * scale;
    for (int64_t j = first; j < h; j += step) {
      const Pack d = load_pack(dy + at + j, h - j), a = load_pack(s + at + j, h - j), b = load_pack(w + j, h - j);
      Pack out{};
      if (accumulate) out = load_pack(ds + at + j, h - j);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) out.v[i] += scale * (d.v[i] * b.v[i]) - a.v[i] * pull;
      store_pack(ds + at + j, h - j, out);
    }
  }
}

// dw, first pass: a block sums one part of the rows for 256 columns. Its warps take every eighth row, each lane the
// columns of one pack; the warps' sums are added in order.
constexpr int kDwWarps = 8, kDwColumns = kWarp * kPack;

__global__ void __launch_bounds__(kDwWarps* kWarp)
    rmsnorm_dw_parts_kernel(int64_t m, int64_t h, int64_t rows_of_part, const Bf16* dy, const Bf16* s,
                            const float* rstd, float* parts) {
  static_assert(kDwColumns == kDwWarps * kWarp, "a thread finishes one column");
  __shared__ float sums[kDwWarps][kDwColumns];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t begin = blockIdx.y * rows_of_part, end = begin + rows_of_part < m ? begin + rows_of_part : m;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kDwColumns; first < h;
       first += static_cast<int64_t>(gridDim.x) * kDwColumns) {
    const int64_t j = first + lane * kPack;
    Pack sum{};
    if (j < h)
      for (int64_t row = begin + warp; row < end; row += kDwWarps) {
        const Pack d = load_pack(dy + row * h + j, h - j), a = load_pack(s + row * h + j, h - j);
        const float scale = load(rstd + row);
        TOKENRING_UNROLL
        for (int i = 0; i < kPack; ++i) sum.v[i] += d.v[i] * (a.v[i] * scale);
      }
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i) store(&sums[warp][lane * kPack + i], sum.v[i]);
    __syncthreads();
    float total = 0.0f;
    TOKENRING_UNROLL
    for (int i = 0; i < kDwWarps; ++i) total += load(&sums[i][threadIdx.x]);
    if (first + threadIdx.x < h) store(parts + blockIdx.y * h + first + threadIdx.x, total);
    __syncthreads();
  }
}

// Second pass: dw += the parts, in order.
__global__ void __launch_bounds__(256)
    rmsnorm_dw_sum_kernel(int64_t h, int64_t part_count, const float* parts, float* dw) {
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; j < h;
       j += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    float sum = load(parts + j);
    for (int64_t part = 1; part < part_count; ++part) sum += load(parts + part * h + j);
    store(dw + j, load(dw + j) + sum);
  }
}

// At most 128 parts of the rows, of at least 64 rows each but for the last.
struct DwParts {
  int64_t rows, count;
};

DwParts dw_parts(int64_t m) {
  const int64_t even = (m + 127) / 128, rows = even > 64 ? even : 64;
  return {rows, (m + rows - 1) / rows};
}

}  // namespace

void rmsnorm_forward(CudaStream stream, int64_t m, int64_t h, const Bf16* x, const Bf16* r, const float* w, float eps,
                     Bf16* sum, Bf16* y, float* rstd) {
  if (m == 0 || h == 0) return;
  TOKENRING_LAUNCH(rmsnorm_forward_kernel, grid_of(m), threads_of(h), 0, stream)(m, h, x, r, w, eps, sum, y, rstd);
}

size_t rmsnorm_backward_workspace(int64_t m, int64_t h) {
  return static_cast<size_t>(dw_parts(m).count * h) * sizeof(float);
}

void rmsnorm_backward(CudaStream stream, int64_t m, int64_t h, const Bf16* dy, const Bf16* s, const float* w,
                      const float* rstd, Bf16* ds, bool accumulate, float* dw, void* workspace) {
  if (m == 0 || h == 0) return;
  TOKENRING_LAUNCH(rmsnorm_dx_kernel, grid_of(m), threads_of(h), 0, stream)(m, h, dy, s, w, rstd, ds, accumulate);
  const DwParts parts = dw_parts(m);
  float* sums = static_cast<float*>(workspace);
  const dim3 grid(grid_of((h + kDwColumns - 1) / kDwColumns), static_cast<unsigned>(parts.count));
  TOKENRING_LAUNCH(rmsnorm_dw_parts_kernel, grid, kDwWarps * kWarp, 0, stream)(m, h, parts.rows, dy, s, rstd, sums);
  TOKENRING_LAUNCH(rmsnorm_dw_sum_kernel, grid_of((h + 255) / 256), 256, 0, stream)(h, parts.count, sums, dw);
}

}  // namespace tokenring::cuda
