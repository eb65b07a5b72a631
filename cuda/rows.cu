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

// The gradient of the embedding. Rows are first sorted into buckets by the last bits of their token, each in the order
// of the rows, so that whoever looks for the rows of a token looks through one bucket.
constexpr int kMostBuckets = 256, kBucketThreads = 512;

inline int buckets_of(int64_t m) { return m < 4096 ? 8 : kMostBuckets; }

// One block a bucket: how many rows it has.
__global__ void __launch_bounds__(kBucketThreads)
    count_bucket_kernel(int64_t m, int buckets, const int32_t* tokens, int32_t* counts) {
  __shared__ int32_t scratch[kBucketThreads / kWarp];
  const int bucket = static_cast<int>(blockIdx.x);
  int32_t count = 0;
  for (int64_t row = threadIdx.x; row < m; row += kBucketThreads) count += load(tokens + row) % buckets == bucket;
  count = block_sum(count, scratch);
  if (threadIdx.x == 0) store(counts + bucket, count);
}

// One block a bucket: its rows, in their order, behind those of the buckets before it; where they begin.
__global__ void __launch_bounds__(kBucketThreads)
    fill_bucket_kernel(int64_t m, int buckets, const int32_t* tokens, const int32_t* counts, int32_t* begins,
                       int32_t* rows) {
  __shared__ int32_t of_warps[kBucketThreads / kWarp];
  const int bucket = static_cast<int>(blockIdx.x), warp = static_cast<int>(threadIdx.x) / kWarp;
  const unsigned lane = threadIdx.x % kWarp;
  int32_t at = 0;
  for (int i = 0; i < bucket; ++i) at += load(counts + i);
  if (threadIdx.x == 0) store(begins + bucket, at);
  for (int64_t from = 0; from < m; from += kBucketThreads) {
    const int64_t row = from + threadIdx.x;
    const bool mine = row < m && load(tokens + row) % buckets == bucket;
    const unsigned found = __ballot_sync(0xffffffffu, mine);
    if (lane == 0) store(of_warps + warp, static_cast<int32_t>(__popc(found)));
    __syncthreads();
    int32_t before = 0, all = 0;
    for (int i = 0; i < kBucketThreads / kWarp; ++i) {
      const int32_t count = load(of_warps + i);
      before += i < warp ? count : 0;
      all += count;
    }
    if (mine) store(rows + at + before + __popc(found & ((1u << lane) - 1)), static_cast<int32_t>(row));
    at += all;
    __syncthreads();
  }
}

// The first row of a token adds all rows of that token, in their order, so that no two blocks meet. Blocks stride over
// the rows by bucket.
__global__ void __launch_bounds__(kMaxThreads)
    embedding_backward_kernel(int64_t m, int64_t h, int buckets, const int32_t* tokens, const int32_t* counts,
                              const int32_t* begins, const int32_t* rows, const Bf16* dy, float* dtable) {
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kPack, step = static_cast<int64_t>(blockDim.x) * kPack;
  const unsigned lane = threadIdx.x % kWarp;
  for (int64_t place = blockIdx.x; place < m; place += gridDim.x) {
    const int32_t token = load(tokens + load(rows + place));
    const int64_t begin = load(begins + token % buckets), end = begin + load(counts + token % buckets);
    // Which of the places [from, from + 32) hold the token, as bits.
    const auto places_of = [&](int64_t from, int64_t to) {
      const int64_t at = from + lane;
      return __ballot_sync(0xffffffffu, at < to && load(tokens + load(rows + at)) == token);
    };
    bool is_first = true;
    for (int64_t from = begin; from < place && is_first; from += kWarp) is_first = places_of(from, place) == 0;
    if (!is_first) continue;
    float* to = dtable + token * h;
    // The sum stays in registers; wider rows than the block look for the places once more.
    for (int64_t column = 0; column < h; column += step) {
      const int64_t j = column + first;
      Pack sum = load_pack(to + j, h - j);
      for (int64_t from = place; from < end; from += kWarp) {
        for (unsigned found = places_of(from, end); found != 0; found &= found - 1) {
          const Pack a = load_pack(dy + load(rows + from + __ffs(static_cast<int>(found)) - 1) * h + j, h - j);
          TOKENRING_UNROLL
          for (int i = 0; i < kPack; ++i) sum.v[i] += a.v[i];
        }
      }
      store_pack(to + j, h - j, sum);
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

size_t embedding_backward_workspace(int64_t m) { return (2 * kMostBuckets + static_cast<size_t>(m)) * sizeof(int32_t); }

void embedding_backward(CudaStream stream, int64_t m, int64_t h, const int32_t* tokens, const Bf16* dy, float* dtable,
                        void* workspace) {
  if (m == 0 || h == 0) return;
  const int buckets = buckets_of(m);
  const unsigned blocks = static_cast<unsigned>(buckets);
  auto* counts = static_cast<int32_t*>(workspace);
  int32_t *begins = counts + kMostBuckets, *rows = begins + kMostBuckets;
  TOKENRING_LAUNCH(count_bucket_kernel, blocks, kBucketThreads, 0, stream)(m, buckets, tokens, counts);
  TOKENRING_LAUNCH(fill_bucket_kernel, blocks, kBucketThreads, 0, stream)(m, buckets, tokens, counts, begins, rows);
  TOKENRING_LAUNCH(embedding_backward_kernel, grid_of(m), threads_of(h), 0, stream)
  (m, h, buckets, tokens, counts, begins, rows, dy, dtable);
}

}  // namespace tokenring::cuda
