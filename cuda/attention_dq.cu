// dQ of attention without sums between blocks: a block owns 128 queries of a head and meets their keys in order. One
// warp copies, two warpgroups of 64 queries each multiply, in turn, as in the forward.
#include "attention.cuh"

namespace tokenring::cuda {
namespace {

template <int kHeadDim_, int kKeys_, int kStages_>
struct DqTiling {
  static constexpr int kHeadDim = kHeadDim_, kKeys = kKeys_, kStages = kStages_;
  static constexpr int kRows = 128, kThreads = 3 * kWarpgroup;
};

template <class T>
struct DqShared {
  alignas(kTileAlignment) Bf16 q[T::kRows * T::kHeadDim];
  alignas(kTileAlignment) Bf16 dout[T::kRows * T::kHeadDim];
  alignas(kTileAlignment) Bf16 k[T::kStages][T::kKeys * T::kHeadDim];
  alignas(kTileAlignment) Bf16 v[T::kStages][T::kKeys * T::kHeadDim];
  Barrier q_full, k_full[T::kStages], k_empty[T::kStages], v_full[T::kStages], v_empty[T::kStages];
};

struct DqParameters {
  const QueryTile* tiles;
  const Span* keys;
  const Bf16 *out, *dout;
  const float *lse, *delta;
  Bf16* dq;
  float* dq_sum;
  int64_t dout_stride, row_stride;
  int tile_count, heads, group, section;
  float scale, scale_log2;
  bool causal;
};

template <class T>
__device__ __forceinline__ void produce(const TensorMap& q_map, const TensorMap& k_map, const TensorMap& v_map,
                                        const TensorMap& dout_map, const DqParameters& p, DqShared<T>& s) {
  const uint64_t once = evict_first(), again = evict_last();
  const QueryItem work(p.tiles, p.tile_count, p.section, static_cast<int>(blockIdx.x));
  const int kv_head = work.head / p.group;
  if (work.count == 0) return;
  barrier_arrive_expect(&s.q_full, sizeof(s.q) + sizeof(s.dout));
  copy_box(s.q, &q_map, &s.q_full, once, 0, work.q.row, 0, work.head);
  copy_box(s.dout, &dout_map, &s.q_full, once, 0, work.q.row, 0, work.head);
  Ring<T::kStages> ring;
  for (int i = 0; i < work.count; ++i) {
    const Span span = load_span(p.keys + work.first + i);
    const Sight sight(work.q, span, p.causal);
    for (int n = KeyTiles<T::kKeys>(sight, work.q.rows).count - 1; n >= 0; --n, ring.advance()) {
      const int stage = ring.stage(), row = span.row + n * T::kKeys;
      // V first: it is free first.
      barrier_wait(&s.v_empty[stage], ring.parity() ^ 1);
      barrier_arrive_expect(&s.v_full[stage], sizeof(s.v[0]));
      copy_box(s.v[stage], &v_map, &s.v_full[stage], again, 0, row, 0, kv_head);
      barrier_wait(&s.k_empty[stage], ring.parity() ^ 1);
      barrier_arrive_expect(&s.k_full[stage], sizeof(s.k[0]));
      copy_box(s.k[stage], &k_map, &s.k_full[stage], again, 0, row, 0, kv_head);
    }
  }
}

template <class T>
__device__ __forceinline__ void consume(const DqParameters& p, DqShared<T>& s, int consumer) {
  const int t = static_cast<int>(threadIdx.x) % kWarpgroup, lane = t % kWarp;
  const int row = consumer * 64 + t / kWarp * 16 + lane / 4;  // and row + 8
  const QueryItem work(p.tiles, p.tile_count, p.section, static_cast<int>(blockIdx.x));
  const uint64_t q_tile = k_major(s.q + consumer * 64 * kPanel), dout_tile = k_major(s.dout + consumer * 64 * kPanel);
  const int my_turn = 1 + consumer, next_turn = 2 - consumer;
  if (consumer == 0) named_arrive(my_turn, 2 * kWarpgroup);

  // Of the two rows: lse in base 2, infinite where there is none, which makes P zero; and D.
  float lse2[2], delta[2];
  TOKENRING_UNROLL
  for (int r = 0; r < 2; ++r) {
    const bool inside = row + 8 * r < work.q.rows;
    const int64_t at = int64_t{work.q.row} + row + 8 * r;
    const float lse = inside ? load(p.lse + at * p.heads + work.head) : -INFINITY;
    lse2[r] = lse == -INFINITY ? INFINITY : lse * kLog2E;
    float dot = 0.0f;
    if (inside && p.delta) {
      dot = lane % 4 == 0 ? load(p.delta + at * p.heads + work.head) : 0.0f;
    } else if (inside) {
      TOKENRING_UNROLL
      for (int i = 0; i < T::kHeadDim / kPack; i += 4) {
        const int column = (i + lane % 4) * kPack;
        const Pack a = load_pack(p.dout + at * p.dout_stride + work.head * T::kHeadDim + column, kPack);
        const Pack b = load_pack(p.out + (at * p.heads + work.head) * T::kHeadDim + column, kPack);
        TOKENRING_UNROLL
        for (int j = 0; j < kPack; ++j) dot += a.v[j] * b.v[j];
      }
    }
    delta[r] = quad_sum(dot);
  }

  float dq[T::kHeadDim / 2], x[T::kKeys / 2], dp[T::kKeys / 2];
  uint32_t ds[T::kKeys / 4];
  TOKENRING_UNROLL
  for (int i = 0; i < T::kHeadDim / 2; ++i) dq[i] = 0.0f;
  Ring<T::kStages> ring, last;  // of the scores, and of dQ one tile behind

  const auto begin_scores = [&] {
    const int stage = ring.stage();
    const uint64_t k_tile = k_major(s.k[stage]), v_tile = k_major(s.v[stage]);
    wgmma_fence();
    TOKENRING_UNROLL
    for (int k = 0; k < T::kHeadDim / 16; ++k)
      Wgmma<T::kKeys>::template step<false>(x, q_tile + k_major_step(k, T::kRows), k_tile + k_major_step(k, T::kKeys),
                                            k != 0);
    TOKENRING_UNROLL
    for (int k = 0; k < T::kHeadDim / 16; ++k)
      Wgmma<T::kKeys>::template step<false>(dp, dout_tile + k_major_step(k, T::kRows),
                                            v_tile + k_major_step(k, T::kKeys), k != 0);
    wgmma_commit();
  };
  const auto begin_dq = [&] {
    const uint64_t k_columns = n_major(s.k[last.stage()], T::kKeys * kPanel * 2);
    wgmma_fence();
    TOKENRING_UNROLL
    for (int k = 0; k < T::kKeys / 16; ++k)
      Wgmma<T::kHeadDim>::template step<true>(dq, ds + 4 * k, k_columns + n_major_step(k), true);
    wgmma_commit();
  };
  const auto wait_for_tile = [&] {
    barrier_wait(&s.k_full[ring.stage()], ring.parity());
    barrier_wait(&s.v_full[ring.stage()], ring.parity());
  };
  const auto free_values = [&] {
    if (t == 0) barrier_arrive(&s.v_empty[ring.stage()]);
    ring.advance();
  };
  const auto free_keys = [&] {
    if (t == 0) barrier_arrive(&s.k_empty[last.stage()]);
    last.advance();
  };
  // dS in place of dP.
  const auto differentiate = [&](auto masked, const Sight& sight, int n) {
    TOKENRING_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int limit = sight.limit(row + 8 * r) - n * T::kKeys - lane % 4 * 2;
      TOKENRING_UNROLL
      for (int i = 0; i < T::kKeys / 8; ++i) TOKENRING_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int j = 4 * i + 2 * r + e;
        float probability = exp2_approx(x[j] * p.scale_log2 - lse2[r]);
        if (decltype(masked)::value && 8 * i + e >= limit) probability = 0.0f;
        dp[j] = probability * (dp[j] - delta[r]);
      }
    }
  };
  // The products of the next tile and the dQ of the last run while the other consumer differentiates.
  const auto step = [&](auto masked, const Sight& sight, int n) {
    wait_for_tile();
    named_sync(my_turn, 2 * kWarpgroup);
    begin_scores();
    begin_dq();
    named_arrive(next_turn, 2 * kWarpgroup);
    wgmma_wait<1>();
    free_values();
    differentiate(masked, sight, n);
    wgmma_wait<0>();
    free_keys();
    to_operand<T::kKeys>(dp, ds);
  };

  for (int i = 0; i < work.count; ++i) {
    const Sight sight(work.q, load_span(p.keys + work.first + i), p.causal);
    const KeyTiles<T::kKeys> tiles(sight, work.q.rows);
    int n = tiles.count - 1;
    if (i == 0) {
      barrier_wait(&s.q_full, 0);
      wait_for_tile();
      begin_scores();
      wgmma_wait<0>();
      free_values();
      differentiate(std::true_type(), sight, n);
      to_operand<T::kKeys>(dp, ds);
      --n;
    }
    TOKENRING_NO_UNROLL
    for (; n >= tiles.whole; --n) step(std::true_type(), sight, n);
    TOKENRING_NO_UNROLL
    for (; n >= 0; --n) step(std::false_type(), sight, n);
  }
  if (work.count > 0) {
    begin_dq();
    wgmma_wait<0>();
  }
  if (consumer == 0) named_sync(my_turn, 2 * kWarpgroup);
  TOKENRING_UNROLL
  for (int r = 0; r < 2; ++r) {
    const bool inside = row + 8 * r < work.q.rows;
    const int64_t at = (int64_t{work.q.row} + row + 8 * r) * p.row_stride + work.head * T::kHeadDim;
    if (p.dq_sum)
      add_row<T::kHeadDim>(p.dq_sum + at, inside, dq, r, p.scale);
    else
      store_row<T::kHeadDim>(p.dq + at, inside, dq, r, p.scale);
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    attention_dq_kernel(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                        const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap dout_map,
                        const __grid_constant__ DqParameters p) {
  TOKENRING_DYNAMIC_SHARED(DqShared<T>, s);
  if (threadIdx.x == 0) {
    prefetch(&q_map);
    prefetch(&k_map);
    prefetch(&v_map);
    prefetch(&dout_map);
    barrier_init(&s.q_full, 1);
    for (int i = 0; i < T::kStages; ++i) {
      barrier_init(&s.k_full[i], 1);
      barrier_init(&s.v_full[i], 1);
      barrier_init(&s.k_empty[i], 2);
      barrier_init(&s.v_empty[i], 2);
    }
    fence_barrier_init();
  }
  __syncthreads();
  // The same in all lanes, said so that the compiler knows.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  if (warp < kWarpgroup / kWarp) {
    give_registers<24>();
    if (warp == 0 && elect_one()) produce<T>(q_map, k_map, v_map, dout_map, p, s);
  } else {
    claim_registers<240>();
    consume<T>(p, s, warp / (kWarpgroup / kWarp) - 1);
  }
}

// What is chosen until a sweep on a GPU has measured others.
using Dq64 = DqTiling<64, 128, 3>;
using Dq128 = DqTiling<128, 96, 3>;

template <class T>
void launch_dq(CudaStream stream, EncodeTiled encode, const AttentionDq& work) {
  constexpr int kBytes = sizeof(DqShared<T>);
  static_assert(kBytes <= 227 << 10, "a block has 227 KB of shared memory");
  const int group = work.q.heads / work.k.heads;
  const DqParameters p{work.tiles,
                       work.keys,
                       work.out,
                       static_cast<const Bf16*>(work.dout.address),
                       work.lse,
                       work.delta,
                       work.dq,
                       work.dq_sum,
                       work.dout.row_stride,
                       work.row_stride,
                       work.tile_count,
                       work.q.heads,
                       group,
                       section_of(work.k) * group,
                       work.scale,
                       work.scale * kLog2E,
                       work.causal};
  const auto attention_dq = attention_dq_kernel<T>;
  TOKENRING_ALLOW_SHARED(attention_dq, kBytes);
  TOKENRING_LAUNCH(attention_dq, static_cast<unsigned>(work.tile_count * work.q.heads), T::kThreads, kBytes, stream)
  (map_of_heads(encode, work.q, T::kRows), map_of_heads(encode, work.k, T::kKeys),
   map_of_heads(encode, work.v, T::kKeys), map_of_heads(encode, work.dout, T::kRows), p);
}

}  // namespace

int attention_dq_rows() { return Dq128::kRows; }

void attention_dq(CudaStream stream, EncodeTiled encode, const AttentionDq& work) {
  check_shapes(work.q, work.k, work.v, work.scale, work.tile_count);
  require(work.dout.rows == work.q.rows && work.dout.heads == work.q.heads && work.dout.head_dim == work.q.head_dim,
          "attention: gradients of ", work.dout.heads, " heads of ", work.dout.head_dim, " in ", work.dout.rows,
          " rows are not those of the queries");
  if (work.tile_count == 0) return;
  if (work.q.head_dim == 64)
    launch_dq<Dq64>(stream, encode, work);
  else
    launch_dq<Dq128>(stream, encode, work);
}

}  // namespace tokenring::cuda
