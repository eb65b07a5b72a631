// What the attention kernels share: spans on the device, masks, the softmax of a tile, stores of accumulators.
#pragma once

#include "core/failure.h"
#include "cuda/attention.h"
#include "wgmma.cuh"

namespace tokenring::cuda {
namespace {

constexpr float kLog2E = 1.44269504088896f, kLn2 = 0.693147180559945f;

__device__ __forceinline__ Span load_span(const Span* p) { return {load(&p->row), load(&p->rows), load(&p->position)}; }

// What queries, from the first to the last of a tile, see of a span of keys.
struct Sight {
  int rows;     // of the keys
  int visible;  // keys that the first query sees; each further one sees one more, up to `rows`. May be negative
  bool causal;

  __device__ __forceinline__ Sight(const Span& q, const Span& k, bool is_causal)
      : rows(k.rows), visible(is_causal ? q.position - k.position + 1 : k.rows), causal(is_causal) {}
  // Keys that query i sees: those below.
  __device__ __forceinline__ int limit(int i) const { return min(rows, causal ? visible + i : rows); }
};

// A tile of queries of one head, as number `item` of tiles x heads: sections of heads, within them tiles from the
// heaviest to the lightest, then the heads of the section.
struct QueryItem {
  Span q;
  int first, count, head;

  __device__ __forceinline__ QueryItem(const QueryTile* tiles, int tile_count, int section, int item) {
    const int of_section = tile_count * section, within = item % of_section;
    const QueryTile* tile = tiles + within / section;
    q = load_span(&tile->q);
    first = load(&tile->first);
    count = load(&tile->count);
    head = item / of_section * section + within % section;
  }
};

// Tiles of keys that a tile of queries meets in a span, from the last: those of index `whole` and above need a mask.
template <int kKeys>
struct KeyTiles {
  int count, whole;
  __device__ __forceinline__ KeyTiles(const Sight& sight, int queries)
      : count((sight.limit(queries - 1) + kKeys - 1) / kKeys), whole(max(sight.limit(0), 0) / kKeys) {}
};

// The maximum and the sum over the four lanes that hold a row of accumulators.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The accumulators of 64 x kColumns as the A of kColumns / 16 steps.
template <int kColumns>
__device__ __forceinline__ void to_operand(const float (&x)[kColumns / 2], uint32_t (&a)[kColumns / 4]) {
  TOKENRING_UNROLL
  for (int i = 0; i < kColumns / 4; ++i) a[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
}

// Four lanes of a quad hold w[j] of block j each; after this lane q holds in w[j] what was w[q] of lane j.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
  TOKENRING_UNROLL
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = threadIdx.x & static_cast<unsigned>(bit);
    TOKENRING_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (j & bit) continue;
      const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? w[j] : w[j | bit], bit);
      w[j] = upper ? other : w[j];
      w[j | bit] = upper ? w[j | bit] : other;
    }
  }
}

// Row r (0 or 1) of a thread's accumulators times `scale` as a row of bf16, if it is `inside`. All lanes of a warp
// come here; each stores sixteen bytes at a time, for which the quad trades four blocks of eight columns.
template <int kHeadDim>
__device__ __forceinline__ void store_row(Bf16* to, bool inside, const float (&x)[kHeadDim / 2], int r, float scale) {
  TOKENRING_UNROLL
  for (int i = 0; i < kHeadDim / 8; i += 4) {
    uint32_t w[4];
    TOKENRING_UNROLL
    for (int j = 0; j < 4; ++j) w[j] = pack_bf16(x[4 * (i + j) + 2 * r] * scale, x[4 * (i + j) + 2 * r + 1] * scale);
    transpose_quad(w);
    if (inside) store(reinterpret_cast<uint4*>(to + 8 * i) + threadIdx.x % 4, uint4{w[0], w[1], w[2], w[3]});
  }
}

// Adds row r (0 or 1) of a thread's accumulators times `scale` to a row of float32, if it is `inside`.
template <int kHeadDim>
__device__ __forceinline__ void add_row(float* to, bool inside, const float (&x)[kHeadDim / 2], int r, float scale) {
  if (!inside) return;
  float2* pairs = reinterpret_cast<float2*>(to) + threadIdx.x % 4;
  TOKENRING_UNROLL
  for (int i = 0; i < kHeadDim / 8; ++i) {
    const float2 old = load(pairs + 4 * i);
    store(pairs + 4 * i, float2{old.x + x[4 * i + 2 * r] * scale, old.y + x[4 * i + 2 * r + 1] * scale});
  }
}

// Heads of a tensor that run beside each other, a divisor of their count: those that, twice (K and V, Q and dO), keep
// within half of the L2 cache.
inline int section_of(const HeadTensor& heads, int group = 1) {
  constexpr int64_t kCacheBytes = 25 << 20;
  const int64_t bytes = heads.rows * heads.head_dim * 4 * group, groups = heads.heads / group;
  int section = 1;
  for (int n = 2; n <= groups; ++n)
    if (groups % n == 0 && n * bytes <= kCacheBytes) section = n;
  return section;
}

// Failure INVALID_ARGUMENT for what no attention kernel takes. `tiles` are of queries or of keys.
inline void check_shapes(const HeadTensor& q, const HeadTensor& k, const HeadTensor& v, float scale, int tiles) {
  require(q.head_dim == 64 || q.head_dim == 128, "attention on Hopper takes a head dimension of 64 or 128, not ",
          q.head_dim);
  require(k.head_dim == q.head_dim && v.head_dim == q.head_dim && k.heads == v.heads && k.rows == v.rows &&
              k.heads > 0 && q.heads % k.heads == 0,
          "attention: ", q.heads, " query heads of ", q.head_dim, ", ", k.heads, " key heads of ", k.head_dim, " and ",
          v.heads, " value heads of ", v.head_dim, " do not go together");
  require(scale > 0 && int64_t{tiles} * q.heads < INT32_MAX, "attention: scale ", scale, ", ", tiles, " tiles of ",
          q.heads, " heads; the first is positive, tiles times heads are fewer than 2^31");
}

}  // namespace
}  // namespace tokenring::cuda
