// Attention of single queries on keys in pages, for heads of 64 and 128: what decoding does. A block takes some pages
// of a row for the heads that share them, so that keys and values are read once; what blocks give is merged in order.
#include "core/ops.h"
#include "cuda/attention_plain.h"
#include "device.cuh"

namespace tokenring::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kHeadsOfWarp = 2, kHeadsOfBlock = kWarps * kHeadsOfWarp;
// Keys of a block. How a row is split depends on its own length alone.
constexpr int kSplitPages = 16, kSplitKeys = kSplitPages * kPageTokens;
constexpr int kMostDim = 128;
// Rows of keys in shared memory: 16 bytes more, so that lanes that read different rows meet different banks.
constexpr int kKeyPad = kPack;

__device__ __forceinline__ int splits_of(int keys) { return (keys + kSplitKeys - 1) / kSplitKeys; }

struct DecodeParameters {
  PagedHeads at;
  float scale;
  const Bf16 *qkv, *pool;
  Bf16* out;
  // Of row, head and split: out before it is divided by its sum, float [head_dim]; maximum and sum.
  float *parts, *statistics;
  int most_splits;
};

__device__ __forceinline__ int64_t part_at(const DecodeParameters& p, int item, int head, int split) {
  return (static_cast<int64_t>(item) * p.at.heads + head) * p.most_splits + split;
}

__device__ __forceinline__ float warp_max(float x) {
  TOKENRING_UNROLL
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
  return x;
}
__device__ __forceinline__ float warp_sum(float x) {
  TOKENRING_UNROLL
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

// Two neighbouring columns of a row as bf16.
__device__ __forceinline__ void store_pair(Bf16* to, float a, float b) {
  store(reinterpret_cast<uint32_t*>(to), to_bf16x2(a, b));
}

// Blocks: of splits, of rows, key heads x parts of their groups. Lanes hold keys while scores are made (lane and lane +
// 32 of a page), and pairs of columns while values are added.
__global__ void __launch_bounds__(kThreads) attention_decode_kernel(const DecodeParameters p) {
  __shared__ float queries[kHeadsOfBlock * kMostDim];
  __shared__ uint4 keys[kPageTokens * (kMostDim + kKeyPad) / kPack], values[kPageTokens * kMostDim / kPack];
  const int d = p.at.head_dim, group = p.at.heads / p.at.kv_heads, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, parts = (group + kHeadsOfBlock - 1) / kHeadsOfBlock;
  const int block = static_cast<int>(blockIdx.x), of_row = p.at.kv_heads * parts;
  const int split = block / of_row / p.at.row_count, item = block / of_row % p.at.row_count;
  const int kv_head = block % of_row / parts;
  const int first_head = kv_head * group + block % parts * kHeadsOfBlock;
  const int heads = min(kHeadsOfBlock, (kv_head + 1) * group - first_head);
  const PagedRow* at = p.at.rows + item;
  const int seen = load(&at->position) + 1;
  if (split > 0 && split >= splits_of(seen)) return;
  const int64_t row = load(&at->row), width = static_cast<int64_t>(p.at.kv_heads) * d;
  const int32_t* pages = p.at.pages + load(&at->first);
  const Bf16* q =
      p.qkv + row * (static_cast<int64_t>(p.at.heads) * d + 2 * width) + static_cast<int64_t>(first_head) * d;
  for (int i = static_cast<int>(threadIdx.x); i < heads * d; i += kThreads)
    store(queries + i, to_float(load(q + i)) * p.scale);

  float high[kHeadsOfWarp], sum[kHeadsOfWarp], out[kHeadsOfWarp][4];
  TOKENRING_UNROLL
  for (int i = 0; i < kHeadsOfWarp; ++i) {
    high[i] = -INFINITY;
    sum[i] = 0.0f;
    TOKENRING_UNROLL
    for (int c = 0; c < 4; ++c) out[i][c] = 0.0f;
  }
  const int packs = d / kPack, key_row = packs + kKeyPad / kPack;
  const int end = min((split + 1) * kSplitKeys, seen);
  for (int from = split * kSplitKeys; from < end; from += kPageTokens) {
    const int here = min(kPageTokens, end - from);
    const int64_t page = load(pages + from / kPageTokens);
    const Bf16* base = p.pool + page * 2 * kPageTokens * width + static_cast<int64_t>(kv_head) * d;
    __syncthreads();  // the queries are there; the page before is done with
    for (int i = static_cast<int>(threadIdx.x); i < kPageTokens * packs; i += kThreads) {
      const int token = i / packs, pack = i % packs;
      const bool inside = token < here;
      const Bf16* key = base + token * width + pack * kPack;
      const uint4 zero{0, 0, 0, 0};
      // Values beyond the end would be multiplied by 0, and they may be anything.
      const uint4 k = inside ? load(reinterpret_cast<const uint4*>(key)) : zero;
      const uint4 v = inside ? load(reinterpret_cast<const uint4*>(key + kPageTokens * width)) : zero;
      store(keys + token * key_row + pack, k);
      store(values + token * packs + pack, v);
    }
    __syncthreads();
    TOKENRING_UNROLL
    for (int i = 0; i < kHeadsOfWarp; ++i) {
      const int head = warp + i * kWarps;
      if (head >= heads) continue;
      float score[2] = {0.0f, 0.0f};
      for (int pack = 0; pack < packs; ++pack) {
        const Pack a = load_pack(queries + head * d + pack * kPack, kPack);
        TOKENRING_UNROLL
        for (int half = 0; half < 2; ++half) {
          const Pack k = load_pack(reinterpret_cast<const Bf16*>(keys + (lane + half * kWarp) * key_row + pack), kPack);
          TOKENRING_UNROLL
          for (int j = 0; j < kPack; ++j) score[half] += a.v[j] * k.v[j];
        }
      }
      TOKENRING_UNROLL
      for (int half = 0; half < 2; ++half)
        if (lane + half * kWarp >= here) score[half] = -INFINITY;
      const float top = fmaxf(high[i], warp_max(fmaxf(score[0], score[1])));
      const float alpha = __expf(high[i] - top);
      TOKENRING_UNROLL
      for (int half = 0; half < 2; ++half) score[half] = __expf(score[half] - top);
      high[i] = top;
      sum[i] = sum[i] * alpha + warp_sum(score[0] + score[1]);
      TOKENRING_UNROLL
      for (int c = 0; c < 4; ++c) out[i][c] *= alpha;
      TOKENRING_UNROLL
      for (int half = 0; half < 2; ++half)
        for (int key = 0; key < kWarp; ++key) {
          const float weight = __shfl_sync(0xffffffffu, score[half], key);
          const auto* of_key = reinterpret_cast<const uint32_t*>(values + (key + half * kWarp) * packs);
          TOKENRING_UNROLL
          for (int c = 0; c < 2; ++c) {
            if (c * 64 >= d) continue;
            const uint32_t pair = load(of_key + c * kWarp + lane);
            out[i][2 * c] += weight * __uint_as_float(pair << 16);
            out[i][2 * c + 1] += weight * __uint_as_float(pair & 0xffff0000u);
          }
        }
    }
  }
  const bool whole = seen <= kSplitKeys;
  TOKENRING_UNROLL
  for (int i = 0; i < kHeadsOfWarp; ++i) {
    if (warp + i * kWarps >= heads) continue;
    const int head = first_head + warp + i * kWarps;
    const int64_t part = whole ? 0 : part_at(p, item, head, split);
    const float inverse = seen > 0 ? 1.0f / sum[i] : 0.0f;
    TOKENRING_UNROLL
    for (int c = 0; c < 2; ++c) {
      if (c * 64 >= d) continue;
      const int column = c * 64 + 2 * lane;
      if (whole)
        store_pair(p.out + (row * p.at.heads + head) * d + column, out[i][2 * c] * inverse,
                   out[i][2 * c + 1] * inverse);
      else
        store(reinterpret_cast<float2*>(p.parts + part * d + column), float2{out[i][2 * c], out[i][2 * c + 1]});
    }
    if (!whole && lane == 0) store(reinterpret_cast<float2*>(p.statistics) + part, float2{high[i], sum[i]});
  }
}

// A warp a row and head: the splits of it, in their order.
__global__ void __launch_bounds__(kThreads) attention_decode_merge_kernel(const DecodeParameters p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, d = p.at.head_dim;
  const int64_t items = static_cast<int64_t>(p.at.row_count) * p.at.heads;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; index < items;
       index += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int item = static_cast<int>(index / p.at.heads), head = static_cast<int>(index % p.at.heads);
    const int splits = splits_of(load(&p.at.rows[item].position) + 1);
    if (splits <= 1) continue;
    const int64_t first = part_at(p, item, head, 0);
    float top = -INFINITY, sum = 0.0f, out[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int s = 0; s < splits; ++s)
      top = fmaxf(top, load(reinterpret_cast<const float2*>(p.statistics) + first + s).x);
    for (int s = 0; s < splits; ++s) {
      const float2 of_split = load(reinterpret_cast<const float2*>(p.statistics) + first + s);
      const float weight = __expf(of_split.x - top);
      sum += of_split.y * weight;
      TOKENRING_UNROLL
      for (int c = 0; c < 2; ++c) {
        if (c * 64 >= d) continue;
        const float2 pair = load(reinterpret_cast<const float2*>(p.parts + (first + s) * d + c * 64 + 2 * lane));
        out[2 * c] += pair.x * weight;
        out[2 * c + 1] += pair.y * weight;
      }
    }
    const int64_t row = load(&p.at.rows[item].row);
    TOKENRING_UNROLL
    for (int c = 0; c < 2; ++c)
      if (c * 64 < d)
        store_pair(p.out + (row * p.at.heads + head) * d + c * 64 + 2 * lane, out[2 * c] / sum, out[2 * c + 1] / sum);
  }
}

// Keys and values of the positions below `count`, one after another, side by side.
__global__ void __launch_bounds__(kMaxThreads)
    gather_pages_kernel(int64_t count, int64_t width, const int32_t* pages, const Bf16* pool, Bf16* to) {
  for (int64_t position = blockIdx.x; position < count; position += gridDim.x) {
    const int64_t page = load(pages + position / kPageTokens);
    const Bf16* from = pool + (page * 2 * kPageTokens + position % kPageTokens) * width;
    for (int64_t j = static_cast<int64_t>(threadIdx.x) * kPack; j < 2 * width;
         j += static_cast<int64_t>(blockDim.x) * kPack) {
      const bool is_key = j < width;
      const Bf16* source = from + (is_key ? j : kPageTokens * width + j - width);
      store_pack(to + position * 2 * width + j, kPack, load_pack(source, kPack));
    }
  }
}

int most_splits(int most_keys) { return (most_keys + kSplitKeys - 1) / kSplitKeys; }

int64_t parts_of(int row_count, int heads, int most_keys) {
  return most_keys <= kSplitKeys ? 0 : static_cast<int64_t>(row_count) * heads * most_splits(most_keys);
}

}  // namespace

size_t attention_decode_workspace(int row_count, int heads, int head_dim, int most_keys) {
  return static_cast<size_t>(parts_of(row_count, heads, most_keys)) * static_cast<size_t>(head_dim + 2) * sizeof(float);
}

void attention_decode(CudaStream stream, const PagedHeads& at, int most_keys, float scale, const Bf16* qkv,
                      const Bf16* pool, Bf16* out, void* workspace) {
  require((at.head_dim == 64 || at.head_dim == 128) && at.kv_heads > 0 && at.heads % at.kv_heads == 0,
          "attention_decode: ", at.heads, " query heads and ", at.kv_heads, " key heads of ", at.head_dim,
          "; the heads are a multiple of the key heads, of a dimension of 64 or 128");
  if (at.row_count == 0) return;
  const int splits = most_splits(most_keys), group = at.heads / at.kv_heads;
  auto* parts = static_cast<float*>(workspace);
  const DecodeParameters p{
      at, scale, qkv, pool, out, parts, parts + parts_of(at.row_count, at.heads, most_keys) * at.head_dim, splits};
  const int64_t blocks = int64_t{at.kv_heads} * ((group + kHeadsOfBlock - 1) / kHeadsOfBlock) * at.row_count * splits;
  require(blocks < INT32_MAX, "attention_decode: ", at.row_count, " rows of up to ", most_keys,
          " keys are more than one launch takes");
  TOKENRING_LAUNCH(attention_decode_kernel, static_cast<unsigned>(blocks), kThreads, 0, stream)(p);
  if (splits == 1) return;
  const int64_t warps = static_cast<int64_t>(at.row_count) * at.heads;
  TOKENRING_LAUNCH(attention_decode_merge_kernel, grid_of((warps + kWarps - 1) / kWarps), kThreads, 0, stream)(p);
}

void gather_pages(CudaStream stream, int64_t count, int64_t width, const int32_t* pages, const Bf16* pool, Bf16* to) {
  if (count == 0) return;
  TOKENRING_LAUNCH(gather_pages_kernel, grid_of(count), threads_of(2 * width), 0, stream)
  (count, width, pages, pool, to);
}

}  // namespace tokenring::cuda
