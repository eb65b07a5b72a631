// Rows by index: embedding, gather, scatter. One block a row.
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

__global__ void __launch_bounds__(kMaxThreads)
    scatter_add_kernel(int64_t rows, int64_t h, const Bf16* y, const int32_t* index, Bf16* x) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    Bf16* to = x + load(index + row) * h;
    for (int64_t j = static_cast<int64_t>(threadIdx.x) * kPack; j < h; j += static_cast<int64_t>(blockDim.x) * kPack) {
      Pack sum = load_pack(to + j, h - j);
      const Pack add = load_pack(y + row * h + j, h - j);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) sum.v[i] += add.v[i];
      store_pack(to + j, h - j, sum);
    }
  }
}

}  // namespace

void embedding_forward(CudaStream stream, int64_t m, int64_t h, const int32_t* tokens, const float* table, Bf16* y) {
  if (m == 0 || h == 0) return;
  TOKENRING_LAUNCH(gather_kernel<float>, grid_of(m), threads_of(h), 0, stream)(m, h, table, tokens, y);
}

void gather_rows(CudaStream stream, int64_t r, int64_t h, const Bf16* x, const int32_t* index, Bf16* y) {
  if (r == 0 || h == 0) return;
  TOKENRING_LAUNCH(gather_kernel<Bf16>, grid_of(r), threads_of(h), 0, stream)(r, h, x, index, y);
}

void scatter_rows_add(CudaStream stream, int64_t r, int64_t h, const Bf16* y, const int32_t* index, Bf16* x) {
  if (r == 0 || h == 0) return;
  TOKENRING_LAUNCH(scatter_add_kernel, grid_of(r), threads_of(h), 0, stream)(r, h, y, index, x);
}

}  // namespace tokenring::cuda
