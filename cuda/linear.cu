// What linear layers take beside their products, which cuBLASLt computes: bf16 copies, gradients of biases.
#include "device.cuh"

namespace tokenring::cuda {
namespace {

__global__ void __launch_bounds__(kMaxThreads)
    round_rows_kernel(int64_t rows, int64_t columns, const float* from, Bf16* to, int64_t stride) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    for (int64_t j = static_cast<int64_t>(threadIdx.x) * kPack; j < columns;
         j += static_cast<int64_t>(blockDim.x) * kPack)
      store_pack(to + row * stride + j, columns - j, load_pack(from + row * columns + j, columns - j));
}

// A thread sums a pack of columns over one part of the rows.
constexpr unsigned kSumThreads = 128;

__global__ void __launch_bounds__(kSumThreads)
    row_parts_kernel(int64_t m, int64_t n, int64_t rows_of_part, const Bf16* dy, float* parts) {
  const int64_t begin = blockIdx.y * rows_of_part, end = begin + rows_of_part < m ? begin + rows_of_part : m;
  for (int64_t j = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kPack; j < n;
       j += static_cast<int64_t>(gridDim.x) * blockDim.x * kPack) {
    Pack sum{};
    for (int64_t row = begin; row < end; ++row) {
      const Pack a = load_pack(dy + row * n + j, n - j);
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) sum.v[i] += a.v[i];
    }
    store_pack(parts + blockIdx.y * n + j, n - j, sum);
  }
}

__global__ void __launch_bounds__(kSumThreads)
    parts_sum_kernel(int64_t n, int64_t part_count, const float* parts, float* db) {
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; j < n;
       j += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    float sum = load(parts + j);
    for (int64_t part = 1; part < part_count; ++part) sum += load(parts + part * n + j);
    store(db + j, load(db + j) + sum);
  }
}

// At most 128 parts, of at least 32 rows but for the last.
int64_t rows_of_part(int64_t m) {
  const int64_t even = (m + 127) / 128;
  return even > 32 ? even : 32;
}
int64_t part_count(int64_t m) { return (m + rows_of_part(m) - 1) / rows_of_part(m); }

}  // namespace

void round_rows(CudaStream stream, int64_t rows, int64_t columns, const float* from, Bf16* to, int64_t stride) {
  if (rows == 0 || columns == 0) return;
  TOKENRING_LAUNCH(round_rows_kernel, grid_of(rows), threads_of(columns), 0, stream)(rows, columns, from, to, stride);
}

size_t sum_of_rows_workspace(int64_t m, int64_t n) { return static_cast<size_t>(part_count(m) * n) * sizeof(float); }

void sum_of_rows(CudaStream stream, int64_t m, int64_t n, const Bf16* dy, float* db, void* workspace) {
  if (m == 0 || n == 0) return;
  float* parts = static_cast<float*>(workspace);
  const dim3 grid(grid_of((n + kSumThreads * kPack - 1) / (kSumThreads * kPack)), static_cast<unsigned>(part_count(m)));
  TOKENRING_LAUNCH(row_parts_kernel, grid, kSumThreads, 0, stream)(m, n, rows_of_part(m), dy, parts);
  TOKENRING_LAUNCH(parts_sum_kernel, grid_of((n + kSumThreads - 1) / kSumThreads), kSumThreads, 0, stream)
  (n, part_count(m), parts, db);
}

}  // namespace tokenring::cuda
