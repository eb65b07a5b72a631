// Attention backward: a block owns 128 keys of a head and their dK and dV; the queries of all heads of its group pass
// by. One warp copies, two warpgroups of 64 keys each multiply. Scores and dP are computed transposed, [keys, queries],
// so that P^T and dS^T are operands in registers for dV and dK; only dS goes through shared memory, for dQ.
#include "attention.cuh"

namespace tokenring::cuda {
namespace {

constexpr int kBackwardKeys = 128;

template <int kHeadDim_, int kStages_>
struct BackwardTiling {
  static constexpr int kHeadDim = kHeadDim_, kStages = kStages_, kKeys = kBackwardKeys;
  // Each of two consumers makes 64 x 64 of dQ: half of the columns, or half of the rows.
  static constexpr int kQueries = 2 * 64 * 64 / kHeadDim, kThreads = 3 * kWarpgroup;
  static constexpr bool kByColumns = kHeadDim == 128;
  static_assert(kHeadDim == 64 || kHeadDim == 128);
};

template <class T, bool kWithDq>
struct BackwardShared {
  alignas(kTileAlignment) Bf16 k[T::kKeys * T::kHeadDim];
  alignas(kTileAlignment) Bf16 v[T::kKeys * T::kHeadDim];
  alignas(kTileAlignment) Bf16 q[T::kStages][T::kQueries * T::kHeadDim];
  alignas(kTileAlignment) Bf16 dout[T::kStages][T::kQueries * T::kHeadDim];
  // [queries, keys]. Two, so that one is written while the other warpgroup still multiplies with the last.
  alignas(kTileAlignment) Bf16 ds[2][kWithDq ? T::kQueries * T::kKeys : 1];
  alignas(16) float dq[2][kWithDq ? 64 * 64 : 4];
  alignas(16) float lse2[T::kStages][T::kQueries];
  alignas(16) float delta[T::kStages][T::kQueries];
  Barrier kv_full, q_full[T::kStages], q_empty[T::kStages], dout_full[T::kStages], dout_empty[T::kStages];
};

struct BackwardParameters {
  const Span* queries;
  const KeyTile* tiles;
  const QueryRange* ranges;
  const Bf16 *out, *dout;
  const float *lse, *rows_delta;
  float *dk, *dv;
  // By number of queries and head: lse in base 2 (infinite where there is no row, which makes P zero) and D, by query;
  // dQ / scale, by the accumulators of the two consumers.
  float *lse2, *delta, *dq;
  int64_t dout_stride, gradient_stride;
  int query_count, tile_count, heads, group, section;
  float scale, scale_log2;
  bool causal;
};

// Where the numbers of a head's queries begin.
template <class T>
__device__ __forceinline__ int64_t statistics_at(const BackwardParameters& p, int number, int head) {
  return (int64_t{number} * p.heads + head) * T::kQueries;
}
template <class T>
__device__ __forceinline__ int64_t dq_at(const BackwardParameters& p, int number, int head) {
  return (int64_t{number} * p.heads + head) * T::kQueries * T::kHeadDim;
}

// --- before and after ----------------------------------------------------------------------------------------------

constexpr int kRowThreads = 256;

// One block the queries of one number and head: lse2 and D; zeros in dQ if there is one.
template <class T>
__global__ void __launch_bounds__(kRowThreads) attention_backward_begin_kernel(const BackwardParameters p) {
  constexpr int kLanes = T::kHeadDim / kPack, kRows = kRowThreads / kLanes;
  const int row0 = static_cast<int>(threadIdx.x) / kLanes, column = static_cast<int>(threadIdx.x) % kLanes * kPack;
  const int64_t items = int64_t{p.query_count} * p.heads;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int number = static_cast<int>(item / p.heads), head = static_cast<int>(item % p.heads);
    const Span q = load_span(p.queries + number);
    for (int row = row0; row < T::kQueries; row += kRows) {
      const bool inside = row < q.rows;
      const int64_t at = int64_t{q.row} + row;
      float dot = 0.0f;
      if (inside && !p.rows_delta) {
        const Pack a = load_pack(p.dout + at * p.dout_stride + head * T::kHeadDim + column, kPack);
        const Pack b = load_pack(p.out + (at * p.heads + head) * T::kHeadDim + column, kPack);
        TOKENRING_UNROLL
        for (int i = 0; i < kPack; ++i) dot += a.v[i] * b.v[i];
      }
      TOKENRING_UNROLL
      for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, lanes);
      if (column == 0) {
        const float lse = inside ? load(p.lse + at * p.heads + head) : -INFINITY;
        store(p.lse2 + item * T::kQueries + row, lse == -INFINITY ? INFINITY : lse * kLog2E);
        if (inside && p.rows_delta) dot = load(p.rows_delta + at * p.heads + head);
        store(p.delta + item * T::kQueries + row, dot);
      }
    }
    if (!p.dq) continue;
    float4* dq = reinterpret_cast<float4*>(p.dq + dq_at<T>(p, number, head));
    for (int i = static_cast<int>(threadIdx.x); i < T::kQueries * T::kHeadDim / 4; i += kRowThreads)
      store(dq + i, float4{0.0f, 0.0f, 0.0f, 0.0f});
  }
}

// bf16 is overwritten, to float32 is added.
template <class T, class Out>
__global__ void __launch_bounds__(kRowThreads)
    attention_backward_end_kernel(const BackwardParameters p, Out* out, int64_t row_stride) {
  constexpr int kPacks = T::kHeadDim / kPack;
  const int64_t items = int64_t{p.query_count} * p.heads;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int number = static_cast<int>(item / p.heads), head = static_cast<int>(item % p.heads);
    const Span q = load_span(p.queries + number);
    for (int i = static_cast<int>(threadIdx.x); i < q.rows * kPacks; i += kRowThreads) {
      const int row = i / kPacks, pack = i % kPacks, within = row % 64;
      const int half = T::kByColumns ? pack / 8 : row / 64;
      // The four threads that held these columns; see wgmma.cuh.
      const int thread = within / 16 * kWarp + within % 8 * 4;
      const float* from = p.dq + dq_at<T>(p, number, head) + half * 64 * 64 + (pack % 8 * kWarpgroup + thread) * 4 +
                          within % 16 / 8 * 2;
      Pack x;
      TOKENRING_UNROLL
      for (int quad = 0; quad < 4; ++quad) {
        const float2 pair = load(reinterpret_cast<const float2*>(from + 4 * quad));
        x.v[2 * quad] = pair.x * p.scale;
        x.v[2 * quad + 1] = pair.y * p.scale;
      }
      Out* to = out + (int64_t{q.row} + row) * row_stride + head * T::kHeadDim + pack * kPack;
      if constexpr (sizeof(Out) == sizeof(float)) {
        const Pack before = load_pack(to, kPack);
        TOKENRING_UNROLL
        for (int j = 0; j < kPack; ++j) x.v[j] += before.v[j];
      }
      store_pack(to, kPack, x);
    }
  }
}

// --- the products --------------------------------------------------------------------------------------------------

// The keys of a block. Sections of heads, then tiles from the heaviest to the lightest, then the heads of the section.
struct BackwardItem {
  Span k;
  int first, count, kv_head;
  __device__ __forceinline__ BackwardItem(const BackwardParameters& p, int item) {
    const int of_section = p.tile_count * p.section, within = item % of_section;
    const KeyTile* tile = p.tiles + within / p.section;
    k = load_span(&tile->k);
    first = load(&tile->first);
    count = load(&tile->count);
    kv_head = item / of_section * p.section + within % p.section;
  }
};

template <class T, bool kWithDq>
__device__ __forceinline__ void produce(const TensorMap& q_map, const TensorMap& k_map, const TensorMap& v_map,
                                        const TensorMap& dout_map, const BackwardParameters& p,
                                        BackwardShared<T, kWithDq>& s) {
  const uint64_t once = evict_first(), again = evict_last();
  const BackwardItem work(p, static_cast<int>(blockIdx.x));
  barrier_arrive_expect(&s.kv_full, sizeof(s.k) + sizeof(s.v));
  copy_box(s.k, &k_map, &s.kv_full, once, 0, work.k.row, 0, work.kv_head);
  copy_box(s.v, &v_map, &s.kv_full, once, 0, work.k.row, 0, work.kv_head);
  Ring<T::kStages> ring;
  for (int g = 0; g < p.group; ++g) {
    const int head = work.kv_head * p.group + g;
    for (int i = 0; i < work.count; ++i) {
      const QueryRange* range = p.ranges + work.first + i;
      const Span q = load_span(&range->q);
      const int number = load(&range->number);
      for (int m = 0; m * T::kQueries < q.rows; ++m, ring.advance()) {
        const int stage = ring.stage(), row = q.row + m * T::kQueries;
        const int64_t statistics = statistics_at<T>(p, number + m, head);
        // dO first: it is free first.
        barrier_wait(&s.dout_empty[stage], ring.parity() ^ 1);
        barrier_arrive_expect(&s.dout_full[stage], sizeof(s.dout[0]) + sizeof(s.delta[0]));
        copy_box(s.dout[stage], &dout_map, &s.dout_full[stage], again, 0, row, 0, head);
        copy_bytes(s.delta[stage], p.delta + statistics, sizeof(s.delta[0]), &s.dout_full[stage]);
        barrier_wait(&s.q_empty[stage], ring.parity() ^ 1);
        barrier_arrive_expect(&s.q_full[stage], sizeof(s.q[0]) + sizeof(s.lse2[0]));
        copy_box(s.q[stage], &q_map, &s.q_full[stage], again, 0, row, 0, head);
        copy_bytes(s.lse2[stage], p.lse2 + statistics, sizeof(s.lse2[0]), &s.q_full[stage]);
      }
    }
  }
}

// Adds two rows of accumulators, r = 0 and 1, to rows of a gradient of keys.
template <int kHeadDim>
__device__ __forceinline__ void add_rows(float* to, const BackwardParameters& p, const BackwardItem& work, int row,
                                         const float (&x)[kHeadDim / 2], float scale) {
  TOKENRING_UNROLL
  for (int r = 0; r < 2; ++r)
    add_row<kHeadDim>(to + (int64_t{work.k.row} + row + 8 * r) * p.gradient_stride + work.kv_head * kHeadDim,
                      row + 8 * r < work.k.rows, x, r, scale);
}

template <class T, bool kWithDq>
__device__ __forceinline__ void consume(const BackwardParameters& p, BackwardShared<T, kWithDq>& s, int consumer) {
  constexpr int kBothReady = 1, kOwnReady = 2;  // barriers by number; each consumer has an own of the second kind
  const int t = static_cast<int>(threadIdx.x) % kWarpgroup, lane = t % kWarp;
  const int row = consumer * 64 + t / kWarp * 16 + lane / 4;  // of the keys, and row + 8
  const BackwardItem work(p, static_cast<int>(blockIdx.x));
  const uint64_t k_rows = k_major(s.k + consumer * 64 * kPanel), v_rows = k_major(s.v + consumer * 64 * kPanel);
  float dk[T::kHeadDim / 2], dv[T::kHeadDim / 2];
  TOKENRING_UNROLL
  for (int i = 0; i < T::kHeadDim / 2; ++i) dk[i] = dv[i] = 0.0f;
  Ring<T::kStages> ring;
  int pass = 0;  // which of the two ds, and which head's dq

  // Queries m of a range, of which the first query sees `visible` keys more than its index; dq is where they add to.
  const auto step = [&](auto masked, const Sight& sight, int m, float* dq_out) {
    const int stage = ring.stage();
    float x[T::kQueries / 2], dp[T::kQueries / 2];
    uint32_t operand[T::kQueries / 4], ds[T::kQueries / 4];
    barrier_wait(&s.q_full[stage], ring.parity());
    const uint64_t q_tile = k_major(s.q[stage]), dout_tile = k_major(s.dout[stage]);
    wgmma_fence();
    TOKENRING_UNROLL
    for (int k = 0; k < T::kHeadDim / 16; ++k)
      Wgmma<T::kQueries>::template step<false>(x, k_rows + k_major_step(k, T::kKeys),
                                               q_tile + k_major_step(k, T::kQueries), k != 0);
    wgmma_commit();
    barrier_wait(&s.dout_full[stage], ring.parity());
    wgmma_fence();
    TOKENRING_UNROLL
    for (int k = 0; k < T::kHeadDim / 16; ++k)
      Wgmma<T::kQueries>::template step<false>(dp, v_rows + k_major_step(k, T::kKeys),
                                               dout_tile + k_major_step(k, T::kQueries), k != 0);
    wgmma_commit();
    wgmma_wait<1>();
    int first[2];  // the first column, less the lane's own, whose query sees the key
    if (decltype(masked)::value) {
      TOKENRING_UNROLL
      for (int r = 0; r < 2; ++r) {
        const int key = row + 8 * r;
        first[r] = key >= sight.rows ? T::kQueries
                                     : (sight.causal ? key - sight.visible - m * T::kQueries + 1 - lane % 4 * 2 : 0);
      }
    }
    TOKENRING_UNROLL
    for (int i = 0; i < T::kQueries / 8; ++i) {
      const float2 lse2 = load(reinterpret_cast<const float2*>(s.lse2[stage]) + 4 * i + lane % 4);
      TOKENRING_UNROLL
      for (int r = 0; r < 2; ++r) TOKENRING_UNROLL
      for (int e = 0; e < 2; ++e) {
        float& y = x[4 * i + 2 * r + e];
        y = exp2_approx(y * p.scale_log2 - (e ? lse2.y : lse2.x));
        if (decltype(masked)::value && 8 * i + e < first[r]) y = 0.0f;
      }
    }
    to_operand<T::kQueries>(x, operand);
    wgmma_wait<0>();
    TOKENRING_UNROLL
    for (int i = 0; i < T::kQueries / 8; ++i) {
      const float2 delta = load(reinterpret_cast<const float2*>(s.delta[stage]) + 4 * i + lane % 4);
      TOKENRING_UNROLL
      for (int r = 0; r < 2; ++r) TOKENRING_UNROLL
      for (int e = 0; e < 2; ++e)
        dp[4 * i + 2 * r + e] = x[4 * i + 2 * r + e] * (dp[4 * i + 2 * r + e] - (e ? delta.y : delta.x));
    }
    to_operand<T::kQueries>(dp, ds);

    wgmma_fence();
    const uint64_t dout_columns = n_major(s.dout[stage], T::kQueries * kPanel * 2);
    TOKENRING_UNROLL
    for (int k = 0; k < T::kQueries / 16; ++k)
      Wgmma<T::kHeadDim>::template step<true>(dv, operand + 4 * k, dout_columns + n_major_step(k), true);
    wgmma_commit();

    [[maybe_unused]] float dq[32];
    if constexpr (kWithDq) {
      char* tile = reinterpret_cast<char*>(s.ds[pass & 1] + consumer * T::kQueries * kPanel);
      TOKENRING_UNROLL
      for (int k = 0; k < T::kQueries / 16; ++k) {
        const int query = 16 * k + lane / 16 * 8 + lane % 8, key = t / kWarp * 16 + lane / 8 % 2 * 8;
        store_matrices_transposed(tile + swizzled(static_cast<uint32_t>(query * 128 + key * 2)), ds[4 * k],
                                  ds[4 * k + 1], ds[4 * k + 2], ds[4 * k + 3]);
      }
      fence_async();
      // Of the last pass both have multiplied by now: they waited for it before they came here.
      named_sync(kBothReady, 2 * kWarpgroup);
      const uint64_t ds_rows = k_major(s.ds[pass & 1] + (T::kByColumns ? 0 : consumer * 64 * kPanel));
      const uint64_t k_columns = n_major(s.k + (T::kByColumns ? consumer * T::kKeys * kPanel : 0), 0);
      wgmma_fence();
      TOKENRING_UNROLL
      for (int k = 0; k < T::kKeys / 16; ++k)
        Wgmma<64>::step<true>(dq, ds_rows + k_major_step(k, T::kQueries), k_columns + n_major_step(k), k != 0);
      wgmma_commit();
    }
    const uint64_t q_columns = n_major(s.q[stage], T::kQueries * kPanel * 2);
    wgmma_fence();
    TOKENRING_UNROLL
    for (int k = 0; k < T::kQueries / 16; ++k)
      Wgmma<T::kHeadDim>::template step<true>(dk, ds + 4 * k, q_columns + n_major_step(k), true);
    wgmma_commit();

    wgmma_wait<kWithDq ? 2 : 1>();
    if (t == 0) barrier_arrive(&s.dout_empty[stage]);
    if constexpr (kWithDq) {
      wgmma_wait<1>();
      if (t == 0) bulk_wait_read<0>();
      named_sync(kOwnReady + consumer, kWarpgroup);
      TOKENRING_UNROLL
      for (int i = 0; i < 8; ++i)
        store(reinterpret_cast<float4*>(s.dq[consumer]) + i * kWarpgroup + t,
              float4{dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]});
      fence_async();
      named_sync(kOwnReady + consumer, kWarpgroup);
      if (t == 0) {
        bulk_add(dq_out + consumer * 64 * 64, s.dq[consumer], sizeof(s.dq[0]));
        bulk_commit();
      }
    }
    wgmma_wait<0>();
    if (t == 0) barrier_arrive(&s.q_empty[stage]);
    ring.advance();
    ++pass;
  };

  barrier_wait(&s.kv_full, 0);
  for (int g = 0; g < p.group; ++g)
    for (int i = 0; i < work.count; ++i) {
      const QueryRange* range = p.ranges + work.first + i;
      const Span q = load_span(&range->q);
      const Sight sight(q, work.k, p.causal);
      const int head = work.kv_head * p.group + g, passes = (q.rows + T::kQueries - 1) / T::kQueries;
      float* dq_out = kWithDq ? p.dq + dq_at<T>(p, load(&range->number), head) : nullptr;
      const int64_t dq_step = dq_at<T>(p, 1, 0);
      int m = 0;
      TOKENRING_NO_UNROLL
      for (; m < passes && sight.limit(m * T::kQueries) < T::kKeys; ++m)
        step(std::true_type(), sight, m, dq_out + m * dq_step);
      TOKENRING_NO_UNROLL
      for (; m < passes; ++m) step(std::false_type(), sight, m, dq_out + m * dq_step);
    }
  add_rows<T::kHeadDim>(p.dk, p, work, row, dk, p.scale);
  add_rows<T::kHeadDim>(p.dv, p, work, row, dv, 1.0f);
  if (kWithDq && t == 0) bulk_wait_read<0>();
}

template <class T, bool kWithDq>
__global__ void __launch_bounds__(T::kThreads, 1)
    attention_backward_kernel(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                              const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap dout_map,
                              const __grid_constant__ BackwardParameters p) {
  using Shared = BackwardShared<T, kWithDq>;
  TOKENRING_DYNAMIC_SHARED(Shared, s);
  if (threadIdx.x == 0) {
    prefetch(&q_map);
    prefetch(&k_map);
    prefetch(&v_map);
    prefetch(&dout_map);
    barrier_init(&s.kv_full, 1);
    for (int i = 0; i < T::kStages; ++i) {
      barrier_init(&s.q_full[i], 1);
      barrier_init(&s.dout_full[i], 1);
      barrier_init(&s.q_empty[i], 2);
      barrier_init(&s.dout_empty[i], 2);
    }
    fence_barrier_init();
  }
  __syncthreads();
  // The same in all lanes, said so that the compiler knows.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  if (warp < kWarpgroup / kWarp) {
    give_registers<24>();
    if (warp == 0 && elect_one()) produce<T, kWithDq>(q_map, k_map, v_map, dout_map, p, s);
  } else {
    claim_registers<240>();
    consume<T, kWithDq>(p, s, warp / (kWarpgroup / kWarp) - 1);
  }
}

// What is chosen until a sweep on a GPU has measured others.
using Backward64 = BackwardTiling<64, 2>;
using Backward128 = BackwardTiling<128, 2>;

int64_t statistics_bytes(int64_t query_count, int heads, int head_dim) {
  return query_count * heads * attention_backward_queries(head_dim) * static_cast<int64_t>(sizeof(float));
}

BackwardParameters parameters_of(const AttentionBackward& work) {
  const int head_dim = work.q.head_dim, group = work.q.heads / work.k.heads;
  char* workspace = static_cast<char*>(work.workspace);
  const int64_t part = statistics_bytes(work.query_count, work.q.heads, head_dim);
  return {work.queries,
          work.tiles,
          work.ranges,
          work.out,
          static_cast<const Bf16*>(work.dout.address),
          work.lse,
          work.delta,
          work.dk,
          work.dv,
          reinterpret_cast<float*>(workspace),
          reinterpret_cast<float*>(workspace + part),
          work.deterministic ? nullptr : reinterpret_cast<float*>(workspace + 2 * part),
          work.dout.row_stride,
          work.gradient_stride ? work.gradient_stride : int64_t{work.k.heads} * head_dim,
          work.query_count,
          work.tile_count,
          work.q.heads,
          group,
          section_of(work.q, group),
          work.scale,
          work.scale * kLog2E,
          work.causal};
}

template <class T, bool kWithDq>
void launch_backward(CudaStream stream, EncodeTiled encode, const AttentionBackward& work) {
  constexpr int kBytes = sizeof(BackwardShared<T, kWithDq>);
  static_assert(kBytes <= 227 << 10, "a block has 227 KB of shared memory");
  const auto attention_backward = attention_backward_kernel<T, kWithDq>;
  TOKENRING_ALLOW_SHARED(attention_backward, kBytes);
  TOKENRING_LAUNCH(attention_backward, static_cast<unsigned>(work.tile_count * work.k.heads), T::kThreads, kBytes,
                   stream)
  (map_of_heads(encode, work.q, T::kQueries), map_of_heads(encode, work.k, T::kKeys),
   map_of_heads(encode, work.v, T::kKeys), map_of_heads(encode, work.dout, T::kQueries), parameters_of(work));
}

template <class T>
void launch_backward(CudaStream stream, EncodeTiled encode, const AttentionBackward& work) {
  work.deterministic ? launch_backward<T, false>(stream, encode, work) : launch_backward<T, true>(stream, encode, work);
}

void check(const AttentionBackward& work) {
  check_shapes(work.q, work.k, work.v, work.scale, work.tile_count);
  require(work.dout.rows == work.q.rows && work.dout.heads == work.q.heads && work.dout.head_dim == work.q.head_dim,
          "attention: gradients of ", work.dout.heads, " heads of ", work.dout.head_dim, " in ", work.dout.rows,
          " rows are not those of the queries");
}

}  // namespace

int attention_backward_queries(int head_dim) { return head_dim == 64 ? Backward64::kQueries : Backward128::kQueries; }

int attention_backward_keys() { return kBackwardKeys; }

size_t attention_backward_workspace(int query_count, int heads, int head_dim, bool deterministic) {
  const int64_t part = statistics_bytes(query_count, heads, head_dim);
  return static_cast<size_t>(deterministic ? 2 * part : (2 + head_dim) * part);
}

void attention_backward_begin(CudaStream stream, const AttentionBackward& work) {
  check(work);
  const int64_t items = int64_t{work.query_count} * work.q.heads;
  if (items == 0) return;
  const auto begin = work.q.head_dim == 64 ? attention_backward_begin_kernel<Backward64>
                                           : attention_backward_begin_kernel<Backward128>;
  TOKENRING_LAUNCH(begin, grid_of(items), kRowThreads, 0, stream)(parameters_of(work));
}

void attention_backward(CudaStream stream, EncodeTiled encode, const AttentionBackward& work) {
  check(work);
  if (work.tile_count == 0) return;
  if (work.q.head_dim == 64)
    launch_backward<Backward64>(stream, encode, work);
  else
    launch_backward<Backward128>(stream, encode, work);
}

namespace {

template <class Out>
void end_backward(CudaStream stream, const AttentionBackward& work, Out* dq, int64_t row_stride) {
  check(work);
  require(!work.deterministic, "attention: deterministic work has its dQ from attention_dq");
  const int64_t items = int64_t{work.query_count} * work.q.heads;
  if (items == 0) return;
  const auto end = work.q.head_dim == 64 ? attention_backward_end_kernel<Backward64, Out>
                                         : attention_backward_end_kernel<Backward128, Out>;
  TOKENRING_LAUNCH(end, grid_of(items), kRowThreads, 0, stream)(parameters_of(work), dq, row_stride);
}

}  // namespace

void attention_backward_end(CudaStream stream, const AttentionBackward& work, Bf16* dq, int64_t row_stride) {
  end_backward(stream, work, dq, row_stride);
}

void attention_backward_end_f32(CudaStream stream, const AttentionBackward& work, float* dq, int64_t row_stride) {
  end_backward(stream, work, dq, row_stride);
}

}  // namespace tokenring::cuda
