// Rows by index: embedding and its gradient, gather, scatter. One block a row.
#include "device.cuh"

namespace tokenring::cuda {
namespace {

// y[i] = x[index[i]], in bf16: of float32 rows the embedding, of bf16 rows the gather.
template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    gather_kernel(int64_t rows, int64_t h, const T* x, const int32_t* index, Bf16* y) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* from = x + load(index + row) * h;
    for (int64_t j = static_cast<int64_t>(threadIdx.x) * kPack; j < h; j += static_cast<int64_t>(blockDim.x) * kPack)
      store_pack(y + row * h + j, h - j, load_pack(from + j, h - j));
  }
}

template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    scatter_add_kernel(int64_t rows, int64_t h, const T* y, const int32_t* index, T* x) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    T* to = x + load(index + row) * h;
    for (int64_t j = static_cast<int64_t>(threadIdx.x) * kPack; j < h; j += static_cast<int64_t>(blockDim.x) * kPack) {
      Pack sum = load_pack(to + j, h - j);
      const Pack add = load_pack(y + row * h + j, h - j);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) sum.v[i] += add.v[i];
      store_pack(to + j, h - j, sum);
    }
  }
}

template <class From, class To, bool add>
__global__ void __launch_bounds__(kMaxThreads)
    copy_rows_kernel(int64_t rows, int64_t width, const From* from, int64_t from_stride, To* to, int64_t to_stride) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (int64_t j = static_cast<int64_t>(threadIdx.x) * kPack; j < width;
         j += static_cast<int64_t>(blockDim.x) * kPack) {
      Pack x = load_pack(from + row * from_stride + j, width - j);
      if constexpr (add) {
        const Pack before = load_pack(to + row * to_stride + j, width - j);
        TOKENRING_UNROLL
        for (int i = 0; i < kPack; ++i) x.v[i] += before.v[i];
      }
      store_pack(to + row * to_stride + j, width - j, x);
    }
  }
}

// The first row of a token adds all rows of that token, in their order, so that no two blocks meet. Each block looks
// through the ids for that, a warp's worth at a time: m^2 / 32 steps in all, of which most hit the caches.
__global__ void __launch_bounds__(kMaxThreads)
    embedding_backward_kernel(int64_t m, int64_t h, const int32_t* tokens, const Bf16* dy, float* dtable) {
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kPack, step = static_cast<int64_t>(blockDim.x) * kPack;
  const unsigned lane = threadIdx.x % kWarp;
  // The rows [from, from + 32) that hold the token, as bits.
  const auto rows_of = [&](int64_t from, int64_t end, int32_t token) {
    const int64_t at = from + lane;
    return __ballot_sync(0xffffffffu, at < end && load(tokens + at) == token);
  };
  for (int64_t row = blockIdx.x; row < m; row += gridDim.x) {
    const int32_t token = load(tokens + row);
    bool is_first = true;
    for (int64_t from = 0; from < row && is_first; from += kWarp) is_first = rows_of(from, row, token) == 0;
    if (!is_first) continue;
    float* to = dtable + token * h;
    for (int64_t from = row; from < m; from += kWarp) {
      for (unsigned found = rows_of(from, m, token); found != 0; found &= found - 1) {
        const Bf16* add = dy + (from + __ffs(static_cast<int>(found)) - 1) * h;
        for (int64_t j = first; j < h; j += step) {
          Pack sum = load_pack(to + j, h - j);
          const Pack a = load_pack(add + j, h - j);
          TOKENRING_UNROLL
          for (int i = 0; i < kPack; ++i) sum.v[i] += a.v[i];
          store_pack(to + j, h - j, sum);
        }
      }
    }
  }
}

}  // namespace

void embedding_forward(CudaStream stream, int64_t m, int64_t h, const int32_t* tokens, const float* table, Bf16* y) {
  if (m == 0 || h == 0) return;
  TOKENRING_LAUNCH(gather_kernel<float>, grid_of(m), threads_of(h), 0, stream)(m, h, table, tokens, y);
}

void copy_rows(CudaStream stream, int64_t rows, int64_t width, const void* from, bool from_is_float,
               int64_t from_stride, void* to, bool to_is_float, int64_t to_stride, bool add) {
  if (rows == 0 || width == 0) return;
  const auto* f = static_cast<const float*>(from);
  const auto* b = static_cast<const Bf16*>(from);
  auto* to_f = static_cast<float*>(to);
  auto* to_b = static_cast<Bf16*>(to);
  const auto launch = [&](auto kernel, auto* x, auto* y) {
    TOKENRING_LAUNCH(kernel, grid_of(rows), threads_of(width), 0, stream)(rows, width, x, from_stride, y, to_stride);
  };
  if (add && from_is_float) return launch(copy_rows_kernel<float, float, true>, f, to_f);
  if (add) return launch(copy_rows_kernel<Bf16, float, true>, b, to_f);
  if (to_is_float && from_is_float) return launch(copy_rows_kernel<float, float, false>, f, to_f);
  if (to_is_float) return launch(copy_rows_kernel<Bf16, float, false>, b, to_f);
  if (from_is_float) return launch(copy_rows_kernel<float, Bf16, false>, f, to_b);
  launch(copy_rows_kernel<Bf16, Bf16, false>, b, to_b);
}

void gather_rows(CudaStream stream, int64_t r, int64_t h, const Bf16* x, const int32_t* index, Bf16* y) {
  if (r == 0 || h == 0) return;
  TOKENRING_LAUNCH(gather_kernel<Bf16>, grid_of(r), threads_of(h), 0, stream)(r, h, x, index, y);
}

void scatter_rows_add(CudaStream stream, int64_t r, int64_t h, const Bf16* y, const int32_t* index, Bf16* x) {
  if (r == 0 || h == 0) return;
  TOKENRING_LAUNCH(scatter_add_kernel<Bf16>, grid_of(r), threads_of(h), 0, stream)(r, h, y, index, x);
}

void scatter_rows_add_f32(CudaStream stream, int64_t r, int64_t h, const float* y, const int32_t* index, float* x) {
  if (r == 0 || h == 0) return;
  TOKENRING_LAUNCH(scatter_add_kernel<float>, grid_of(r), threads_of(h), 0, stream)(r, h, y, index, x);
}

void embedding_backward(CudaStream stream, int64_t m, int64_t h, const int32_t* tokens, const Bf16* dy, float* dtable) {
  if (m == 0 || h == 0) return;
  TOKENRING_LAUNCH(embedding_backward_kernel, grid_of(m), threads_of(h), 0, stream)(m, h, tokens, dy, dtable);
}

}  // namespace tokenring::cuda
