// Attention forward: one warp copies, two or three warpgroups of 64 queries each multiply and take the softmax, in
// turn.
#include <algorithm>
#include <array>

#include "attention.cuh"

namespace tokenring::cuda {
namespace {

// Queries of a block are 64 a consumer; keys come in tiles of kKeys, kStages of them ahead.
template <int kHeadDim_, int kConsumers_, int kKeys_, int kStages_>
struct ForwardTiling {
  static constexpr int kHeadDim = kHeadDim_, kConsumers = kConsumers_, kKeys = kKeys_, kStages = kStages_;
  static constexpr int kRows = 64 * kConsumers, kThreads = kWarpgroup * (kConsumers + 1);
  // setmaxnreg: how the warpgroups share what the block was given, (65536 / threads) rounded down to 8 each.
  static constexpr int kProducerRegisters = kConsumers == 2 ? 24 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 240 : 160;
};

template <class T>
struct ForwardShared {
  alignas(kTileAlignment) Bf16 q[T::kRows * T::kHeadDim];
  alignas(kTileAlignment) Bf16 k[T::kStages][T::kKeys * T::kHeadDim];
  alignas(kTileAlignment) Bf16 v[T::kStages][T::kKeys * T::kHeadDim];
  Barrier q_full, q_empty, k_full[T::kStages], k_empty[T::kStages], v_full[T::kStages], v_empty[T::kStages];
  Barrier item_full, item_empty;
  int item;
};

struct ForwardParameters {
  const QueryTile* tiles;
  const Span* keys;
  Bf16* out;
  float *lse, *running;
  int* counters;
  int tile_count, heads, group, section;  // heads of a section run beside each other, so that they share keys in L2
  float scale_log2;
  bool causal, fresh;
};

template <class T>
__device__ __forceinline__ void produce(const TensorMap& q_map, const TensorMap& k_map, const TensorMap& v_map,
                                        const ForwardParameters& p, ForwardShared<T>& s) {
  Ring<T::kStages> k_ring, v_ring;
  Ring<1> item_ring;  // of items and their queries
  const uint64_t once = evict_first(), again = evict_last();
  const int items = p.tile_count * p.heads;
  const auto copy = [&](Bf16* to, const TensorMap& map, Barrier& full, Barrier& empty, uint32_t parity, uint64_t policy,
                        uint32_t bytes, int row, int head) {
    barrier_wait(&empty, parity ^ 1);
    barrier_arrive_expect(&full, bytes);
    copy_box(to, &map, &full, policy, 0, row, 0, head);
  };
  const auto copy_v = [&](int row, int head) {
    const int i = v_ring.stage();
    copy(s.v[i], v_map, s.v_full[i], s.v_empty[i], v_ring.parity(), again, sizeof(s.v[i]), row, head);
    v_ring.advance();
  };
  for (int item = static_cast<int>(blockIdx.x);;) {
    barrier_wait(&s.item_empty, item_ring.parity() ^ 1);
    store(&s.item, item);
    barrier_arrive(&s.item_full);
    if (item >= items) break;
    // Asked for now, needed when this item's copies are under way.
    const int next = static_cast<int>(gridDim.x) + atomicAdd(&p.counters[0], 1);
    const QueryItem work(p.tiles, p.tile_count, p.section, item);
    const int kv_head = work.head / p.group;
    copy(s.q, q_map, s.q_full, s.q_empty, item_ring.parity(), once, sizeof(s.q), work.q.row, work.head);
    item_ring.advance();
    // Values come one tile behind the keys: the next scores are needed before the last values.
    int v_row = -1;
    for (int i = 0; i < work.count; ++i) {
      const Span span = load_span(p.keys + work.first + i);
      const Sight sight(work.q, span, p.causal);
      for (int n = KeyTiles<T::kKeys>(sight, work.q.rows).count - 1; n >= 0; --n) {
        const int row = span.row + n * T::kKeys, stage = k_ring.stage();
        copy(s.k[stage], k_map, s.k_full[stage], s.k_empty[stage], k_ring.parity(), again, sizeof(s.k[stage]), row,
             kv_head);
        k_ring.advance();
        if (v_row >= 0) copy_v(v_row, kv_head);
        v_row = row;
      }
    }
    if (v_row >= 0) copy_v(v_row, kv_head);
    item = next;
  }
  // The last block leaves the counters as it found them: all others have drawn for the last time.
  if (atomicAdd(&p.counters[1], 1) == static_cast<int>(gridDim.x) - 1) {
    atomicExch(&p.counters[0], 0);
    atomicExch(&p.counters[1], 0);
  }
}

// Softmax in base 2 of two rows over a tile of scores, which become probabilities; `alpha` rescales what came before.
// `limit`: columns of the tile that the rows see, less the lane's first column.
template <bool kMasked, int kColumns>
__device__ __forceinline__ void online_softmax(float (&x)[kColumns / 2], const int (&limit)[2], float scale_log2,
                                               float (&high)[2], float (&sum)[2], float (&alpha)[2]) {
  if (kMasked) {
    TOKENRING_UNROLL
    for (int i = 0; i < kColumns / 2; ++i)
      if (i / 4 * 8 + i % 2 >= limit[i / 2 % 2]) x[i] = -INFINITY;
  }
  TOKENRING_UNROLL
  for (int r = 0; r < 2; ++r) {
    float top = high[r];
    TOKENRING_UNROLL
    for (int i = 0; i < kColumns / 8; ++i) top = fmaxf(top, fmaxf(x[4 * i + 2 * r], x[4 * i + 2 * r + 1]));
    top = quad_max(top);
    // A row that has seen nothing yet keeps probabilities of 0.
    const float shift = kMasked && top == -INFINITY ? 0.0f : top * scale_log2;
    alpha[r] = exp2_approx(high[r] * scale_log2 - shift);
    high[r] = top;
    float total = 0.0f;
    TOKENRING_UNROLL
    for (int i = 0; i < kColumns / 8; ++i) TOKENRING_UNROLL
    for (int e = 0; e < 2; ++e) {
      float& y = x[4 * i + 2 * r + e];
      y = exp2_approx(y * scale_log2 - shift);
      total += y;
    }
    sum[r] = sum[r] * alpha[r] + total;
  }
}

// Two rows of accumulators, r = 0 and 1, to row `row + 8 r` of the result.
template <int kHeadDim, bool kMerge>
__device__ __forceinline__ void store_rows(const ForwardParameters& p, const QueryItem& work, int row,
                                           const float (&o)[kHeadDim / 2], const float (&high)[2],
                                           const float (&sum)[2]) {
  const unsigned quad = threadIdx.x % 4;
  TOKENRING_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float total = quad_sum(sum[r]);
    // A NaN stays one.
    float mine = total == 0.0f ? 0.0f : __fdividef(1.0f, total);
    float lse2 = total == 0.0f ? -INFINITY : high[r] * p.scale_log2 + log2_approx(total);
    bool inside = row + 8 * r < work.q.rows;
    const int64_t at = (int64_t{work.q.row} + row + 8 * r) * p.heads + work.head;
    float before = 0.0f;
    if (kMerge) {
      // One lane reads what it will write; the shuffle is what the others wait for.
      float old = p.fresh ? -INFINITY : inside && quad == 0 ? load(p.lse + at) * kLog2E : 0.0f;
      old = __shfl_sync(0xffffffffu, old, static_cast<int>(threadIdx.x % kWarp - quad));
      // A row that saw nothing here keeps the bits that it has.
      inside = inside && (total != 0.0f || old == -INFINITY);
      const float top = fmaxf(old, lse2);
      const float a = top == -INFINITY ? 0.0f : exp2_approx(old - top);
      const float b = top == -INFINITY ? 0.0f : exp2_approx(lse2 - top);
      before = a == 0.0f ? 0.0f : __fdividef(a, a + b);
      mine = b == 0.0f ? 0.0f : mine * __fdividef(b, a + b);
      lse2 = top == -INFINITY ? -INFINITY : top + log2_approx(a + b);
    }
    if (inside && quad == 0) store(p.lse + at, lse2 * kLn2);
    if constexpr (kMerge) {
      if (!inside) continue;
      float2* to = reinterpret_cast<float2*>(p.running + at * kHeadDim) + quad;
      TOKENRING_UNROLL
      for (int i = 0; i < kHeadDim / 8; ++i) {
        float2 x = float2{o[4 * i + 2 * r] * mine, o[4 * i + 2 * r + 1] * mine};
        if (before != 0.0f) {
          const float2 old = load(to + 4 * i);
          x = float2{x.x + old.x * before, x.y + old.y * before};
        }
        store(to + 4 * i, x);
      }
    } else {
      store_row<kHeadDim>(p.out + at * kHeadDim, inside, o, r, mine);
    }
  }
}

template <class T, bool kMerge>
__device__ __forceinline__ void consume(const ForwardParameters& p, ForwardShared<T>& s, int consumer) {
  Ring<T::kStages> k_ring, v_ring;
  Ring<1> item_ring;  // of items and their queries
  const int t = static_cast<int>(threadIdx.x) % kWarpgroup, lane = t % kWarp;
  const int row = consumer * 64 + t / kWarp * 16 + lane / 4;  // and row + 8
  const uint64_t q_tile = k_major(s.q + consumer * 64 * kPanel);
  // Consumers take turns at the tensor cores: while one multiplies, the others take their softmax. Barrier 1 + i is
  // the turn of consumer i, given by the one before; the first begins.
  const int my_turn = 1 + consumer, next_turn = 1 + (consumer + 1) % T::kConsumers;
  if (consumer == 0) named_arrive(my_turn, 2 * kWarpgroup);

  for (;;) {
    barrier_wait(&s.item_full, item_ring.parity());
    const int item = __shfl_sync(0xffffffffu, lane == 0 ? load(&s.item) : 0, 0);
    if (lane == 0) barrier_arrive(&s.item_empty);
    if (item >= p.tile_count * p.heads) break;
    const QueryItem work(p.tiles, p.tile_count, p.section, item);

    float o[T::kHeadDim / 2], x[T::kKeys / 2], high[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}, alpha[2];
    uint32_t probabilities[T::kKeys / 4];
    TOKENRING_UNROLL
    for (int i = 0; i < T::kHeadDim / 2; ++i) o[i] = 0.0f;

    const auto begin_scores = [&] {
      const uint64_t k_tile = k_major(s.k[k_ring.stage()]);
      wgmma_fence();
      TOKENRING_UNROLL
      for (int k = 0; k < T::kHeadDim / 16; ++k)
        Wgmma<T::kKeys>::template step<false>(x, q_tile + k_major_step(k, T::kRows), k_tile + k_major_step(k, T::kKeys),
                                              k != 0);
      wgmma_commit();
    };
    const auto begin_values = [&] {
      const uint64_t v_tile = n_major(s.v[v_ring.stage()], T::kKeys * kPanel * 2);
      wgmma_fence();
      TOKENRING_UNROLL
      for (int k = 0; k < T::kKeys / 16; ++k)
        Wgmma<T::kHeadDim>::template step<true>(o, probabilities + 4 * k, v_tile + n_major_step(k), true);
      wgmma_commit();
    };
    const auto free_keys = [&] {
      if (t == 0) barrier_arrive(&s.k_empty[k_ring.stage()]);
      k_ring.advance();
    };
    const auto free_values = [&] {
      if (t == 0) barrier_arrive(&s.v_empty[v_ring.stage()]);
      v_ring.advance();
    };
    const auto soften = [&](auto masked, const Sight& sight, int n) {
      int limit[2];
      TOKENRING_UNROLL
      for (int r = 0; r < 2; ++r) limit[r] = sight.limit(row + 8 * r) - n * T::kKeys - lane % 4 * 2;
      online_softmax<decltype(masked)::value, T::kKeys>(x, limit, p.scale_log2, high, sum, alpha);
    };
    // The scores of the next tile and the values of the last are multiplied while the softmax runs.
    const auto step = [&](auto masked, const Sight& sight, int n) {
      barrier_wait(&s.k_full[k_ring.stage()], k_ring.parity());
      named_sync(my_turn, 2 * kWarpgroup);
      begin_scores();
      barrier_wait(&s.v_full[v_ring.stage()], v_ring.parity());
      begin_values();
      named_arrive(next_turn, 2 * kWarpgroup);
      wgmma_wait<1>();
      free_keys();
      soften(masked, sight, n);
      wgmma_wait<0>();
      free_values();
      // Only now: until the wait the tensor cores read these registers.
      to_operand<T::kKeys>(x, probabilities);
      TOKENRING_UNROLL
      for (int i = 0; i < T::kHeadDim / 2; ++i) o[i] *= alpha[i / 2 % 2];
    };

    barrier_wait(&s.q_full, item_ring.parity());
    item_ring.advance();
    for (int i = 0; i < work.count; ++i) {
      const Sight sight(work.q, load_span(p.keys + work.first + i), p.causal);
      const KeyTiles<T::kKeys> tiles(sight, work.q.rows);
      int n = tiles.count - 1;
      if (i == 0) {
        barrier_wait(&s.k_full[k_ring.stage()], k_ring.parity());
        begin_scores();
        wgmma_wait<0>();
        free_keys();
        soften(std::true_type(), sight, n);
        to_operand<T::kKeys>(x, probabilities);
        --n;
      }
      TOKENRING_NO_UNROLL
      for (; n >= tiles.whole; --n) step(std::true_type(), sight, n);
      TOKENRING_NO_UNROLL
      for (; n >= 0; --n) step(std::false_type(), sight, n);
    }
    // Products keep the threads of a consumer together. Without, one might wait for the queries when the next are
    // there.
    if (work.count == 0) named_sync(1 + T::kConsumers + consumer, kWarpgroup);
    if (t == 0) barrier_arrive(&s.q_empty);
    if (work.count > 0) {
      barrier_wait(&s.v_full[v_ring.stage()], v_ring.parity());
      begin_values();
      wgmma_wait<0>();
      free_values();
    }
    // Read again: through the loop its registers are worth more than the loads.
    store_rows<T::kHeadDim, kMerge>(p, QueryItem(p.tiles, p.tile_count, p.section, item), row, o, high, sum);
  }
  // The turn that is left over.
  if (consumer == 0) named_sync(my_turn, 2 * kWarpgroup);
}

template <class T, bool kMerge>
__global__ void __launch_bounds__(T::kThreads, 1)
    attention_forward_kernel(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                             const __grid_constant__ TensorMap v_map, const __grid_constant__ ForwardParameters p) {
  TOKENRING_DYNAMIC_SHARED(ForwardShared<T>, s);
  if (threadIdx.x == 0) {
    prefetch(&q_map);
    prefetch(&k_map);
    prefetch(&v_map);
    barrier_init(&s.q_full, 1);
    barrier_init(&s.q_empty, T::kConsumers);
    barrier_init(&s.item_full, 1);
    barrier_init(&s.item_empty, T::kConsumers * kWarpgroup / kWarp);
    for (int i = 0; i < T::kStages; ++i) {
      barrier_init(&s.k_full[i], 1);
      barrier_init(&s.v_full[i], 1);
      barrier_init(&s.k_empty[i], T::kConsumers);
      barrier_init(&s.v_empty[i], T::kConsumers);
    }
    fence_barrier_init();
  }
  __syncthreads();
  // The same in all lanes, said so that the compiler knows.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
  if (warp < kWarpgroup / kWarp) {
    give_registers<T::kProducerRegisters>();
    if (warp == 0 && elect_one()) produce<T>(q_map, k_map, v_map, p, s);
  } else {
    claim_registers<T::kConsumerRegisters>();
    consume<T, kMerge>(p, s, warp / (kWarpgroup / kWarp) - 1);
  }
}

// What is chosen for each case until a sweep on a GPU has measured others.
using Causal128 = ForwardTiling<128, 2, 128, 2>;
using Full128 = ForwardTiling<128, 2, 176, 2>;
using All64 = ForwardTiling<64, 3, 128, 2>;

template <class T, bool kMerge>
void launch_forward(CudaStream stream, EncodeTiled encode, const AttentionForward& work, const ForwardParameters& p) {
  constexpr int kBytes = sizeof(ForwardShared<T>);
  static_assert(kBytes <= 227 << 10, "a block has 227 KB of shared memory");
  const auto attention_forward = attention_forward_kernel<T, kMerge>;
  TOKENRING_ALLOW_SHARED(attention_forward, kBytes);
  const int blocks = std::min(p.tile_count * p.heads, work.multiprocessors);
  TOKENRING_LAUNCH(attention_forward, static_cast<unsigned>(blocks), T::kThreads, kBytes, stream)
  (map_of_heads(encode, work.q, T::kRows), map_of_heads(encode, work.k, T::kKeys),
   map_of_heads(encode, work.v, T::kKeys), p);
}

template <class T>
void launch_forward(CudaStream stream, EncodeTiled encode, const AttentionForward& work, const ForwardParameters& p) {
  work.running ? launch_forward<T, true>(stream, encode, work, p) : launch_forward<T, false>(stream, encode, work, p);
}

ForwardParameters parameters_of(const AttentionForward& work) {
  const int group = work.q.heads / work.k.heads;
  return {work.tiles,          work.keys,       work.out,     work.lse, work.running,
          work.counters,       work.tile_count, work.q.heads, group,    section_of(work.k) * group,
          work.scale * kLog2E, work.causal,     work.fresh};
}

}  // namespace

int attention_forward_rows(int head_dim) {
  static_assert(Causal128::kRows == Full128::kRows);
  return head_dim == 64 ? All64::kRows : Causal128::kRows;
}

void attention_forward(CudaStream stream, EncodeTiled encode, const AttentionForward& work) {
  check_shapes(work.q, work.k, work.v, work.scale, work.tile_count);
  require(work.multiprocessors > 0, "attention: ", work.multiprocessors, " multiprocessors");
  if (work.tile_count == 0) return;
  const ForwardParameters p = parameters_of(work);
  if (work.q.head_dim == 64)
    launch_forward<All64>(stream, encode, work, p);
  else if (work.causal)
    launch_forward<Causal128>(stream, encode, work, p);
  else
    launch_forward<Full128>(stream, encode, work, p);
}

}  // namespace tokenring::cuda
