// Residual addition and RMSNorm; RMSNorm of heads.
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
    const float mean = block_sum(squares, scratch) / static_cast<float>(h) + eps;
    // Squares that overflow would make zeros of a row that has none.
    const float scale = isinf(mean) ? nanf("") : rsqrtf(mean);
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

// What the kernels of the heads share: where head `item` (token by token, queries first) lies.
struct Heads {
  int heads, normed;  // queries; queries and keys
  int64_t d, width;   // of a head; of a row of qkv
  const float *wq, *wk;
};

__device__ __forceinline__ int64_t in_qkv(const Heads& h, int64_t item) {
  return item / h.normed * h.width + item % h.normed * h.d;
}

// The sum of `x` over the lanes of a warp, given to all of them.
__device__ __forceinline__ float warp_sum(float x) {
  TOKENRING_UNROLL
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

constexpr int kHeadWarps = 8;

// A warp a head: one pack a lane, more where d is above 256.
__global__ void __launch_bounds__(kHeadWarps* kWarp)
    qk_norm_forward_kernel(int64_t items, Heads h, Bf16* qkv, float eps, Bf16* raw, float* rstd) {
  const int64_t first = static_cast<int64_t>(threadIdx.x % kWarp) * kPack, step = kWarp * kPack;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kHeadWarps + threadIdx.x / kWarp; item < items;
       item += static_cast<int64_t>(gridDim.x) * kHeadWarps) {
    Bf16* x = qkv + in_qkv(h, item);
    const float* w = item % h.normed < h.heads ? h.wq : h.wk;
    float squares = 0.0f;
    for (int64_t j = first; j < h.d; j += step) {
      const Pack a = load_pack(x + j, h.d - j);
      if (raw) store_pack(raw + item * h.d + j, h.d - j, a);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) squares += a.v[i] * a.v[i];
    }
    const float scale = rsqrtf(warp_sum(squares) / static_cast<float>(h.d) + eps);
    if (threadIdx.x % kWarp == 0) store(rstd + item, scale);
    for (int64_t j = first; j < h.d; j += step) {
      Pack a = load_pack(x + j, h.d - j);
      const Pack b = load_pack(w + j, h.d - j);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) a.v[i] = a.v[i] * scale * b.v[i];
      store_pack(x + j, h.d - j, a);
    }
  }
}

__global__ void __launch_bounds__(kHeadWarps* kWarp)
    qk_norm_dx_kernel(int64_t items, Heads h, Bf16* dqkv, const Bf16* raw, const float* rstd) {
  const int64_t first = static_cast<int64_t>(threadIdx.x % kWarp) * kPack, step = kWarp * kPack;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kHeadWarps + threadIdx.x / kWarp; item < items;
       item += static_cast<int64_t>(gridDim.x) * kHeadWarps) {
    Bf16* dx = dqkv + in_qkv(h, item);
    const Bf16* x = raw + item * h.d;
    const float* w = item % h.normed < h.heads ? h.wq : h.wk;
    float dot = 0.0f;
    for (int64_t j = first; j < h.d; j += step) {
      const Pack d = load_pack(dx + j, h.d - j), a = load_pack(x + j, h.d - j), b = load_pack(w + j, h.d - j);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) dot += d.v[i] * b.v[i] * a.v[i];
    }
    const float scale = load(rstd + item);
    const float pull = warp_sum(dot) / static_cast<float>(h.d) * scale * scale * scale;
    for (int64_t j = first; j < h.d; j += step) {
      Pack d = load_pack(dx + j, h.d - j);
      const Pack a = load_pack(x + j, h.d - j), b = load_pack(w + j, h.d - j);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) d.v[i] = scale * (d.v[i] * b.v[i]) - a.v[i] * pull;
      store_pack(dx + j, h.d - j, d);
    }
  }
}

// dw, first pass: as rmsnorm_dw_parts_kernel, over `count` heads, from head `from` on, of a part of the tokens.
__global__ void __launch_bounds__(kDwWarps* kWarp)
    qk_norm_dw_parts_kernel(int64_t m, int64_t tokens_of_part, Heads h, int from, int count, const Bf16* dqkv,
                            const Bf16* raw, const float* rstd, float* parts) {
  __shared__ float sums[kDwWarps][kDwColumns];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t begin = blockIdx.y * tokens_of_part, end = begin + tokens_of_part < m ? begin + tokens_of_part : m;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kDwColumns; first < h.d;
       first += static_cast<int64_t>(gridDim.x) * kDwColumns) {
    const int64_t j = first + lane * kPack;
    Pack sum{};
    if (j < h.d)
      for (int64_t at = begin * count + warp; at < end * count; at += kDwWarps) {
        const int64_t item = at / count * h.normed + from + at % count;
        const Pack d = load_pack(dqkv + in_qkv(h, item) + j, h.d - j), a = load_pack(raw + item * h.d + j, h.d - j);
        const float scale = load(rstd + item);
        TOKENRING_UNROLL
        for (int i = 0; i < kPack; ++i) sum.v[i] += d.v[i] * (a.v[i] * scale);
      }
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i) store(&sums[warp][lane * kPack + i], sum.v[i]);
    __syncthreads();
    float total = 0.0f;
    TOKENRING_UNROLL
    for (int i = 0; i < kDwWarps; ++i) total += load(&sums[i][threadIdx.x]);
    if (first + threadIdx.x < h.d) store(parts + blockIdx.y * h.d + first + threadIdx.x, total);
    __syncthreads();
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

void qk_norm_forward(CudaStream stream, int64_t m, int heads, int kv_heads, int64_t d, Bf16* qkv, const float* wq,
                     const float* wk, float eps, Bf16* raw, float* rstd) {
  const int normed = heads + kv_heads;
  const int64_t items = m * normed;
  if (items == 0 || d == 0) return;
  const Heads h{heads, normed, d, (normed + kv_heads) * d, wq, wk};
  TOKENRING_LAUNCH(qk_norm_forward_kernel, grid_of((items + kHeadWarps - 1) / kHeadWarps), kHeadWarps * kWarp, 0,
                   stream)
  (items, h, qkv, eps, raw, rstd);
}

size_t qk_norm_backward_workspace(int64_t m, int64_t d) {
  return static_cast<size_t>(dw_parts(m).count * d) * sizeof(float);
}

void qk_norm_backward(CudaStream stream, int64_t m, int heads, int kv_heads, int64_t d, Bf16* dqkv, const Bf16* raw,
                      const float* wq, const float* wk, const float* rstd, float* dwq, float* dwk, void* workspace) {
  const int normed = heads + kv_heads;
  const int64_t items = m * normed;
  if (items == 0 || d == 0) return;
  const Heads h{heads, normed, d, (normed + kv_heads) * d, wq, wk};
  const DwParts parts = dw_parts(m);
  float* sums = static_cast<float*>(workspace);
  // The weights first: the heads' own gradient takes the place of what they need.
  const dim3 grid(grid_of((d + kDwColumns - 1) / kDwColumns), static_cast<unsigned>(parts.count));
  const auto sum = [&](int from, int count, float* dw) {
    TOKENRING_LAUNCH(qk_norm_dw_parts_kernel, grid, kDwWarps * kWarp, 0, stream)
    (m, parts.rows, h, from, count, dqkv, raw, rstd, sums);
    TOKENRING_LAUNCH(rmsnorm_dw_sum_kernel, grid_of((d + 255) / 256), 256, 0, stream)(d, parts.count, sums, dw);
  };
  sum(0, heads, dwq);
  sum(heads, kv_heads, dwk);
  TOKENRING_LAUNCH(qk_norm_dx_kernel, grid_of((items + kHeadWarps - 1) / kHeadWarps), kHeadWarps * kWarp, 0, stream)
  (items, h, dqkv, raw, rstd);
}

}  // namespace tokenring::cuda
