// Attention without tensor cores: a warp has a query, or a key, of one head. Lanes have a key (or query) each for
// scores, and columns of the head for sums.
#include "cuda/attention_plain.h"

#include "core/failure.h"
#include "device.cuh"

namespace tokenring::cuda {
namespace {

constexpr int kWarps = 4, kColumns = 8;  // of a lane: a head dimension of at most 256
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(Bf16 x) { return to_float(x); }

__device__ __forceinline__ Span load_span(const Span* p) { return {load(&p->row), load(&p->rows), load(&p->position)}; }

template <class T>
__device__ __forceinline__ float dot(const T* a, const T* b, int d) {
  float sum = 0.0f;
  TOKENRING_NO_UNROLL
  for (int j = 0; j < d; j += kPack) {
    const Pack x = load_pack(a + j, d - j), y = load_pack(b + j, d - j);
    TOKENRING_UNROLL
    for (int i = 0; i < kPack; ++i) sum += x.v[i] * y.v[i];
  }
  return sum;
}

__device__ __forceinline__ float warp_sum(float x) {
  TOKENRING_UNROLL
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAll, x, lanes);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
  TOKENRING_UNROLL
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, lanes));
  return x;
}

// sum[c] += weight of lane j * element of row at(j), over the first `n` lanes in order.
template <class T, class At>
__device__ __forceinline__ void add_rows(float (&sum)[kColumns], float weight, int n, int d, const At& at) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  TOKENRING_NO_UNROLL
  for (int j = 0; j < n; ++j) {
    const float w = __shfl_sync(kAll, weight, j);
    const T* row = at(j);
    TOKENRING_UNROLL
    for (int c = 0; c < kColumns; ++c)
      if (lane + c * kWarp < d) sum[c] += w * widen(load(row + lane + c * kWarp));
  }
}

// The softmax of the keys so far, and their values weighted by it, times `sum`.
struct Attended {
  float high = -INFINITY, sum = 0.0f, out[kColumns] = {};
};

// One query on `n` keys of its head, key j at keys + at(j), its value at values + at(j).
template <class T, class At>
__device__ __forceinline__ void attend(Attended& o, const T* q, int d, float scale, const T* keys, const T* values,
                                       int n, const At& at) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int first = 0; first < n; first += kWarp) {
    const int count = min(n - first, kWarp);
    float score = lane < count ? dot(q, keys + at(first + lane), d) * scale : -INFINITY;
    const float high = fmaxf(o.high, warp_max(score));
    if (high == -INFINITY) continue;
    const float held = __expf(o.high - high), weight = __expf(score - high);
    o.sum = o.sum * held + warp_sum(weight);
    TOKENRING_UNROLL
    for (int c = 0; c < kColumns; ++c) o.out[c] *= held;
    o.high = high;
    add_rows<T>(o.out, weight, count, d, [&](int j) { return values + at(first + j); });
  }
}

__device__ __forceinline__ int keys_seen(const Span& q, int row, const Span& k) {
  return max(0, min(k.rows, q.position + row - k.position + 1));
}

template <class T, class Out>
__global__ void __launch_bounds__(kWarps* kWarp) attention_plain_kernel(const PlainForward p, Out* out) {
  const PlainHeads& h = p.at;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, d = h.head_dim;
  const int64_t items = static_cast<int64_t>(p.tile_count) * h.heads * kPlainRows;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; item < items;
       item += static_cast<int64_t>(gridDim.x) * kWarps) {
    const QueryTile* tile = p.tiles + item / (h.heads * kPlainRows);
    const int head = static_cast<int>(item / kPlainRows % h.heads), i = static_cast<int>(item % kPlainRows);
    const Span q = load_span(&tile->q);
    if (i >= q.rows) continue;
    const int64_t row = q.row + i, of_kv = static_cast<int64_t>(head / (h.heads / h.kv_heads)) * d;
    Attended o;
    const int first = load(&tile->first), count = load(&tile->count);
    for (int s = first; s < first + count; ++s) {
      const Span k = load_span(p.keys + s);
      attend(o, static_cast<const T*>(h.q) + row * h.q_stride + static_cast<int64_t>(head) * d, d, h.scale,
             static_cast<const T*>(h.k) + of_kv, static_cast<const T*>(h.v) + of_kv, keys_seen(q, i, k),
             [&](int j) { return (static_cast<int64_t>(k.row) + j) * h.kv_stride; });
    }
    float lse = o.sum > 0.0f ? o.high + logf(o.sum) : o.sum == 0.0f ? -INFINITY : nanf("");
    float mine = o.sum == 0.0f ? 0.0f : 1.0f / o.sum, others = 0.0f;
    if (p.merge) {
      // By the lane that will store it: others might come late.
      float before = lane == 0 ? load(p.lse + row * h.heads + head) : 0.0f;
      before = __shfl_sync(kAll, before, 0);
      const float high = fmaxf(before, lse);
      if (high == -INFINITY) continue;
      const float all = high + logf(__expf(before - high) + __expf(lse - high));
      mine *= __expf(lse - all);
      others = __expf(before - all);
      lse = all;
    }
    Out* to = out + (row * h.heads + head) * d;
    TOKENRING_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      const int j = lane + c * kWarp;
      if (j >= d) continue;
      float x = o.out[c] * mine;
      if constexpr (sizeof(Out) == sizeof(float)) {
        if (others > 0.0f) x += others * load(to + j);
        store(to + j, x);
      } else {
        store(to + j, to_bf16(x));
      }
    }
    if (lane == 0) store(p.lse + row * h.heads + head, lse);
  }
}

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    attention_delta_kernel(int64_t items, int d, const T* dout, const T* out, float* delta) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; item < items;
       item += static_cast<int64_t>(gridDim.x) * kWarps) {
    float sum = 0.0f;
    for (int j = lane; j < d; j += kWarp) sum += widen(load(dout + item * d + j)) * widen(load(out + item * d + j));
    sum = warp_sum(sum);
    if (lane == 0) store(delta + item, sum);
  }
}

// bf16 is overwritten, to float32 is added.
template <class T>
__device__ __forceinline__ void give(void* to, int64_t at, const float (&x)[kColumns], float scale, int d) {
  T* row = static_cast<T*>(to) + at;
  TOKENRING_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    const int j = static_cast<int>(threadIdx.x) % kWarp + c * kWarp;
    if (j >= d) continue;
    if constexpr (sizeof(T) == sizeof(float))
      store(row + j, load(row + j) + x[c] * scale);
    else
      store(row + j, to_bf16(x[c] * scale));
  }
}

// dQ = scale * sum over keys of dS K, dS = P (dO V - delta), P = exp(scale Q K - lse).
template <class T, class Out>
__global__ void __launch_bounds__(kWarps* kWarp, 4) attention_plain_dq_kernel(const PlainBackward p) {
  const PlainHeads& h = p.at;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, d = h.head_dim;
  const int64_t items = static_cast<int64_t>(p.query_tile_count) * h.heads * kPlainRows;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; item < items;
       item += static_cast<int64_t>(gridDim.x) * kWarps) {
    const QueryTile* tile = p.query_tiles + item / (h.heads * kPlainRows);
    const int head = static_cast<int>(item / kPlainRows % h.heads), i = static_cast<int>(item % kPlainRows);
    const Span q = load_span(&tile->q);
    if (i >= q.rows) continue;
    const int64_t row = q.row + i, of_q = row * h.q_stride + static_cast<int64_t>(head) * d;
    const int64_t of_kv = static_cast<int64_t>(head / (h.heads / h.kv_heads)) * d, stat = row * h.heads + head;
    const T *query = static_cast<const T*>(h.q) + of_q, *keys = static_cast<const T*>(h.k) + of_kv;
    const T *values = static_cast<const T*>(h.v) + of_kv, *dout = static_cast<const T*>(p.dout) + stat * d;
    const float lse = load(p.lse + stat), delta = load(p.delta + stat);
    float sum[kColumns] = {};
    const int first = load(&tile->first), count = load(&tile->count);
    for (int s = first; s < first + count; ++s) {
      const Span k = load_span(p.keys + s);
      const int n = keys_seen(q, i, k);
      for (int from = 0; from < n; from += kWarp) {
        const int64_t at = (static_cast<int64_t>(k.row) + from) * h.kv_stride;
        float ds = 0.0f;
        if (from + lane < n) {
          const int64_t mine = at + lane * h.kv_stride;
          ds = __expf(dot(query, keys + mine, d) * h.scale - lse) * (dot(dout, values + mine, d) - delta);
        }
        add_rows<T>(sum, ds, min(n - from, kWarp), d, [&](int j) { return keys + at + j * h.kv_stride; });
      }
    }
    give<Out>(p.dq, row * p.dq_stride + static_cast<int64_t>(head) * d, sum, h.scale, d);
  }
}

// dK = scale * sum over queries of dS Q, dV = sum of P dO, over all heads of the group.
template <class T, class Out>
__global__ void __launch_bounds__(kWarps* kWarp, 4) attention_plain_dkv_kernel(const PlainBackward p) {
  const PlainHeads& h = p.at;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, d = h.head_dim, group = h.heads / h.kv_heads;
  const int64_t items = static_cast<int64_t>(p.key_tile_count) * h.kv_heads * kPlainRows;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; item < items;
       item += static_cast<int64_t>(gridDim.x) * kWarps) {
    const KeyTile* tile = p.key_tiles + item / (h.kv_heads * kPlainRows);
    const int kv = static_cast<int>(item / kPlainRows % h.kv_heads), i = static_cast<int>(item % kPlainRows);
    const Span k = load_span(&tile->k);
    if (i >= k.rows) continue;
    const int64_t of_kv = (static_cast<int64_t>(k.row) + i) * h.kv_stride + static_cast<int64_t>(kv) * d;
    const T *key = static_cast<const T*>(h.k) + of_kv, *value = static_cast<const T*>(h.v) + of_kv;
    float dk[kColumns] = {}, dv[kColumns] = {};
    const int first = load(&tile->first), count = load(&tile->count);
    for (int s = first; s < first + count; ++s) {
      const Span q = load_span(&p.ranges[s].q);
      // The first query that sees the key.
      const int blind = max(0, min(q.rows, k.position + i - q.position));
      for (int head = kv * group; head < (kv + 1) * group; ++head)
        for (int from = blind; from < q.rows; from += kWarp) {
          const int64_t row = static_cast<int64_t>(q.row) + from;
          const T* queries = static_cast<const T*>(h.q) + row * h.q_stride + static_cast<int64_t>(head) * d;
          const T* douts = static_cast<const T*>(p.dout) + (row * h.heads + head) * d;
          float weight = 0.0f, ds = 0.0f;
          if (from + lane < q.rows) {
            const int64_t stat = (row + lane) * h.heads + head;
            weight = __expf(dot(queries + lane * h.q_stride, key, d) * h.scale - load(p.lse + stat));
            const int64_t mine = static_cast<int64_t>(lane) * h.heads * d;
            ds = weight * (dot(douts + mine, value, d) - load(p.delta + stat));
          }
          const int n = min(q.rows - from, kWarp);
          add_rows<T>(dv, weight, n, d, [&](int j) { return douts + static_cast<int64_t>(j) * h.heads * d; });
          add_rows<T>(dk, ds, n, d, [&](int j) { return queries + j * h.q_stride; });
        }
    }
    give<Out>(p.dk, of_kv, dk, h.scale, d);
    give<Out>(p.dv, of_kv, dv, 1.0f, d);
  }
}

// --- pages ---------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kMaxThreads) kv_append_kernel(const PagedHeads p, const Bf16* qkv, Bf16* pool) {
  const int64_t width = static_cast<int64_t>(p.kv_heads) * p.head_dim;
  for (int64_t item = blockIdx.x; item < p.row_count; item += gridDim.x) {
    const PagedRow* at = p.rows + item;
    const int position = load(&at->position);
    if (position < 0) continue;
    const int64_t page = load(p.pages + load(&at->first) + position / kPageTokens);
    const Bf16* from = qkv + load(&at->row) * (p.heads + 2 * static_cast<int64_t>(p.kv_heads)) * p.head_dim +
                       static_cast<int64_t>(p.heads) * p.head_dim;
    Bf16* to = pool + (page * 2 * kPageTokens + position % kPageTokens) * width;
    for (int64_t j = static_cast<int64_t>(threadIdx.x) * kPack; j < width;
         j += static_cast<int64_t>(blockDim.x) * kPack) {
      store_pack(to + j, width - j, load_pack(from + j, width - j));
      store_pack(to + kPageTokens * width + j, width - j, load_pack(from + width + j, width - j));
    }
  }
}

__global__ void __launch_bounds__(kWarps* kWarp)
    attention_paged_kernel(const PagedHeads p, float scale, const Bf16* qkv, const Bf16* pool, Bf16* out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, d = p.head_dim;
  const int64_t width = static_cast<int64_t>(p.kv_heads) * d, items = static_cast<int64_t>(p.row_count) * p.heads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; item < items;
       item += static_cast<int64_t>(gridDim.x) * kWarps) {
    const PagedRow* at = p.rows + item / p.heads;
    const int head = static_cast<int>(item % p.heads);
    const int64_t row = load(&at->row), of_kv = static_cast<int64_t>(head / (p.heads / p.kv_heads)) * d;
    const int32_t* pages = p.pages + load(&at->first);
    Attended o;
    attend(o, qkv + row * (static_cast<int64_t>(p.heads) * d + 2 * width) + static_cast<int64_t>(head) * d, d, scale,
           pool + of_kv, pool + kPageTokens * width + of_kv, load(&at->position) + 1, [&](int j) {
             return (static_cast<int64_t>(load(pages + j / kPageTokens)) * 2 * kPageTokens + j % kPageTokens) * width;
           });
    Bf16* to = out + (row * p.heads + head) * d;
    const float inverse = load(&at->position) < 0 ? 0.0f : 1.0f / o.sum;
    TOKENRING_UNROLL
    for (int c = 0; c < kColumns; ++c)
      if (lane + c * kWarp < d) store(to + lane + c * kWarp, to_bf16(o.out[c] * inverse));
  }
}

void check_heads(int heads, int kv_heads, int head_dim) {
  require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && head_dim > 0 && head_dim <= kColumns * kWarp,
          "attention: ", heads, " query heads and ", kv_heads, " key heads of ", head_dim,
          "; the heads are a multiple of the key heads, of a dimension of at most ", kColumns * kWarp);
}

unsigned blocks_of(int64_t warps) { return grid_of((warps + kWarps - 1) / kWarps); }

}  // namespace

void attention_plain_forward(CudaStream stream, const PlainForward& work) {
  const PlainHeads& h = work.at;
  check_heads(h.heads, h.kv_heads, h.head_dim);
  const int64_t items = static_cast<int64_t>(work.tile_count) * h.heads * kPlainRows;
  if (items == 0) return;
  constexpr unsigned kThreads = kWarps * kWarp;
  const auto of_bf16 = attention_plain_kernel<Bf16, Bf16>;
  const auto to_f32 = h.is_float ? attention_plain_kernel<float, float> : attention_plain_kernel<Bf16, float>;
  require((work.out == nullptr) != (work.out_f32 == nullptr) && (work.out_f32 || !(h.is_float || work.merge)),
          "attention: of float32, or merged, the output is float32");
  if (work.out_f32)
    TOKENRING_LAUNCH(to_f32, blocks_of(items), kThreads, 0, stream)(work, work.out_f32);
  else
    TOKENRING_LAUNCH(of_bf16, blocks_of(items), kThreads, 0, stream)(work, work.out);
}

void attention_delta(CudaStream stream, int64_t m, int heads, int head_dim, const Bf16* dout, const Bf16* out,
                     float* delta) {
  if (m == 0) return;
  TOKENRING_LAUNCH(attention_delta_kernel<Bf16>, blocks_of(m * heads), kWarps * kWarp, 0, stream)
  (m * heads, head_dim, dout, out, delta);
}

void attention_delta_f32(CudaStream stream, int64_t m, int heads, int head_dim, const float* dout, const float* out,
                         float* delta) {
  if (m == 0) return;
  TOKENRING_LAUNCH(attention_delta_kernel<float>, blocks_of(m * heads), kWarps * kWarp, 0, stream)
  (m * heads, head_dim, dout, out, delta);
}

void attention_plain_backward(CudaStream stream, const PlainBackward& work) {
  const PlainHeads& h = work.at;
  check_heads(h.heads, h.kv_heads, h.head_dim);
  const int64_t of_queries = static_cast<int64_t>(work.query_tile_count) * h.heads * kPlainRows;
  const int64_t of_keys = static_cast<int64_t>(work.key_tile_count) * h.kv_heads * kPlainRows;
  constexpr unsigned kThreads = kWarps * kWarp;
  require(work.gradients_are_float || !h.is_float, "attention: gradients of float32 are float32");
  const auto dq = h.is_float                 ? attention_plain_dq_kernel<float, float>
                  : work.gradients_are_float ? attention_plain_dq_kernel<Bf16, float>
                                             : attention_plain_dq_kernel<Bf16, Bf16>;
  const auto dkv = h.is_float                 ? attention_plain_dkv_kernel<float, float>
                   : work.gradients_are_float ? attention_plain_dkv_kernel<Bf16, float>
                                              : attention_plain_dkv_kernel<Bf16, Bf16>;
  if (of_queries > 0) TOKENRING_LAUNCH(dq, blocks_of(of_queries), kThreads, 0, stream)(work);
  if (of_keys > 0) TOKENRING_LAUNCH(dkv, blocks_of(of_keys), kThreads, 0, stream)(work);
}

void kv_append(CudaStream stream, const PagedHeads& at, const Bf16* qkv, Bf16* pool) {
  check_heads(at.heads, at.kv_heads, at.head_dim);
  if (at.row_count == 0) return;
  TOKENRING_LAUNCH(kv_append_kernel, grid_of(at.row_count), threads_of(int64_t{at.kv_heads} * at.head_dim), 0, stream)
  (at, qkv, pool);
}

void attention_paged(CudaStream stream, const PagedHeads& at, float scale, const Bf16* qkv, const Bf16* pool,
                     Bf16* out) {
  check_heads(at.heads, at.kv_heads, at.head_dim);
  if (at.row_count == 0) return;
  TOKENRING_LAUNCH(attention_paged_kernel, blocks_of(static_cast<int64_t>(at.row_count) * at.heads), kWarps * kWarp, 0,
                   stream)
  (at, scale, qkv, pool, out);
}

}  // namespace tokenring::cuda
