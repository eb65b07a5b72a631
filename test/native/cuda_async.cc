// The emulator of copy engine and tensor cores: a right kernel passes under every schedule, each planted fault is
// caught.
#include <tuple>

#include "emulator/ptx.h"
#include "emulator/rig.h"
// The emulator comes before the kernels.
#include "../../cuda/wgmma.cuh"

using rig::Buffer;
using namespace tokenring::cuda;

namespace {

// What is wrong with the kernel.
enum class Plant {
  nothing,
  no_wait_for_copy,
  wrong_phase,
  no_wait_for_release,
  no_release,
  early_release,
  no_wait_for_product,
  no_wgmma_fence,
  no_proxy_fence,
  no_wait_between_stores,
  no_wait_for_addition,
  too_few_bytes,
  too_many_arrivals,
  no_barrier_fence,
};

constexpr int kTile = 64, kStages = 2;

struct Shared {
  Bf16 a[kStages][kTile * kPanel], b[kStages][kTile * kPanel];
  Bf16 v[kTile * kPanel];
  Bf16 c[kTile * kPanel];
  float d[kTile * kTile];
  Barrier full[kStages], empty[kStages], full_v;
};

// out += (a b^T)^T v, in the order of accumulators, twice: a, b [64, 64 steps], v [64, 64]. The product of a and b
// is rounded to bf16 and goes through shared memory. One warpgroup loads, one computes.
void product_kernel(Plant plant, const TensorMap a, const TensorMap b, const TensorMap v, int steps, float* out) {
  TOKENRING_DYNAMIC_SHARED(Shared, s);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], 1);
    }
    barrier_init(&s.full_v, 1);
    if (plant != Plant::no_barrier_fence) fence_barrier_init();
  }
  __syncthreads();
  constexpr uint32_t kBytes = sizeof(s.a[0]) + sizeof(s.b[0]);
  Ring<kStages> ring;
  if (threadIdx.x < kWarpgroup) {
    give_registers<24>();
    if (threadIdx.x / kWarp != 0 || !elect_one()) return;
    barrier_arrive_expect(&s.full_v, sizeof(s.v));
    copy_box(s.v, &v, &s.full_v, evict_last(), 0, 0, 0, 0);
    for (int pass = 0; pass < 2; ++pass)
      for (int k = 0; k < steps; ++k, ring.advance()) {
        if (plant != Plant::no_wait_for_release) barrier_wait(&s.empty[ring.stage()], ring.parity() ^ 1);
        barrier_arrive_expect(&s.full[ring.stage()], plant == Plant::too_few_bytes ? kBytes / 2 : kBytes);
        copy_box(s.a[ring.stage()], &a, &s.full[ring.stage()], evict_first(), 0, 0, 0, k);
        copy_box(s.b[ring.stage()], &b, &s.full[ring.stage()], evict_first(), 0, 0, 0, k);
      }
    return;
  }
  claim_registers<232>();
  const int t = static_cast<int>(threadIdx.x) % kWarpgroup, lane = t % kWarp, warp = t / kWarp;
  barrier_wait(&s.full_v, 0);
  for (int pass = 0; pass < 2; ++pass) {
    float c[kTile / 2], d[kTile / 2];
    for (int k = 0; k < steps; ++k, ring.advance()) {
      if (plant != Plant::no_wait_for_copy)
        barrier_wait(&s.full[ring.stage()], plant == Plant::wrong_phase ? ring.parity() ^ 1 : ring.parity());
      if (plant != Plant::no_wgmma_fence) wgmma_fence();
      for (int i = 0; i < kTile / 16; ++i)
        Wgmma<kTile>::step<false>(c, k_major(s.a[ring.stage()]) + k_major_step(i, kTile),
                                  k_major(s.b[ring.stage()]) + k_major_step(i, kTile), k != 0 || i != 0);
      wgmma_commit();
      if (plant == Plant::early_release && t == 0) barrier_arrive(&s.empty[ring.stage()]);
      if (plant != Plant::no_wait_for_product || k + 1 < steps) wgmma_wait<0>();
      if (plant != Plant::early_release && plant != Plant::no_release && t == 0) barrier_arrive(&s.empty[ring.stage()]);
      if (plant == Plant::too_many_arrivals && t == 0) barrier_arrive(&s.empty[ring.stage()]);
    }
    // c^T to shared memory: a thread's four registers are two by two blocks of 8x8.
    for (int k = 0; k < kTile / 16; ++k) {
      uint32_t m[4];
      for (int i = 0; i < 4; ++i) m[i] = pack_bf16(c[8 * k + 2 * i], c[8 * k + 2 * i + 1]);
      const int row = 16 * k + lane / 16 * 8 + lane % 8, column = 16 * warp + lane / 8 % 2 * 8;
      store_matrices_transposed(reinterpret_cast<char*>(s.c) + swizzled(static_cast<uint32_t>(row * 128 + column * 2)),
                                m[0], m[1], m[2], m[3]);
    }
    if (plant != Plant::no_proxy_fence) fence_async();
    named_sync(1, kWarpgroup);
    wgmma_fence();
    for (int k = 0; k < kTile / 16; ++k)
      Wgmma<kTile>::step<true>(d, k_major(s.c) + k_major_step(k, kTile), n_major(s.v, 0) + n_major_step(k), k != 0);
    wgmma_commit();
    wgmma_wait<0>();
    if (t == 0 && plant != Plant::no_wait_for_addition) bulk_wait_read<0>();
    if (plant != Plant::no_wait_between_stores) named_sync(1, kWarpgroup);
    for (int i = 0; i < kTile / 8; ++i)
      store(reinterpret_cast<float4*>(s.d) + i * kWarpgroup + t,
            float4{d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]});
    fence_async();
    named_sync(1, kWarpgroup);
    if (t == 0) {
      bulk_add(out, s.d, sizeof(s.d));
      bulk_commit();
    }
  }
  if (t == 0) bulk_wait_read<0>();
}

// Two of three warpgroups claim more than the third gives.
void greedy_kernel() {
  if (threadIdx.x < kWarpgroup)
    give_registers<24>();
  else
    claim_registers<248>();
}

std::vector<Bf16> small_integers(size_t n, uint64_t seed) {
  std::vector<Bf16> values;
  for (int32_t id : rig::random_ids(n, seed, 3)) values.push_back(to_bf16(static_cast<float>(id - 1)));
  return values;
}

// Of `kSteps` blocks of 64 columns as heads side by side: small integers, so every sum is exact.
constexpr int kSteps = 5;
const std::vector<Bf16> kA = small_integers(kTile * kTile * kSteps, 1), kB = small_integers(kTile * kTile * kSteps, 2),
                        kV = small_integers(kTile * kTile, 3);

std::vector<float> run(Plant plant) {
  const Buffer<Bf16> a(kA), b(kB), v(kV);
  const Buffer<float> out(std::vector<float>(kTile * kTile, 1.0f));
  const auto map = [](const Buffer<Bf16>& x, int heads) {
    return map_of_heads(emulator::encode_tiled, {x.data(), kTile, kTile * heads, heads, kTile}, kTile);
  };
  TOKENRING_LAUNCH(product_kernel, 1, 2 * kWarpgroup, sizeof(Shared), nullptr)
  (plant, map(a, kSteps), map(b, kSteps), map(v, 1), kSteps, out.data());
  return out.read();
}

std::vector<float> expected() {
  std::vector<float> out(kTile * kTile, 1.0f);
  std::vector<double> c(kTile * kTile);
  for (int i = 0; i < kTile; ++i)
    for (int j = 0; j < kTile; ++j)
      for (int k = 0; k < kTile * kSteps; ++k)
        c[i * kTile + j] += rig::value(kA[i * kTile * kSteps + k]) * rig::value(kB[j * kTile * kSteps + k]);
  for (int t = 0; t < kWarpgroup; ++t)
    for (int i = 0; i < kTile / 8; ++i)
      for (int r = 0; r < 2; ++r)
        for (int e = 0; e < 2; ++e) {
          const int row = 16 * (t / 32) + t % 32 / 4 + 8 * r, column = 8 * i + 2 * (t % 4) + e;
          double sum = 0;
          for (int m = 0; m < kTile; ++m) sum += c[m * kTile + row] * rig::value(kV[m * kTile + column]);
          out[(i * kWarpgroup + t) * 4 + 2 * r + e] += 2 * static_cast<float>(sum);
        }
  return out;
}

// How a plant ends, over a few schedules: the code of the first Failure, else "wrong" or "right" numbers.
std::string outcome(Plant plant, uint64_t seeds) {
  const std::vector<float> right = expected();
  std::string how = "right";
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    emulator::seed(seed);
    try {
      if (run(plant) != right) how = "wrong";
    } catch (const tokenring::Failure& failure) {
      return failure.code();
    }
  }
  return how;
}

}  // namespace

TEST(emulator_multiplies_on_tensor_cores) { CHECK(outcome(Plant::nothing, 40) == "right"); }

TEST(emulator_catches_faults_of_asynchronous_kernels) {
  const auto check = [](Plant plant, const std::string& how, const char* as) {
    if (how != as) harness::report(__FILE__, __LINE__, "plant ", static_cast<int>(plant), " ends ", how, ", not ", as);
  };
  // Under every schedule, and at once.
  for (const auto& [plant, as] : {std::pair{Plant::no_release, "DEADLOCK"},
                                  {Plant::early_release, "RACE"},
                                  {Plant::no_wait_for_product, "RACE"},
                                  {Plant::no_wgmma_fence, "FENCE"},
                                  {Plant::no_proxy_fence, "wrong"},
                                  {Plant::no_barrier_fence, "FENCE"}})
    check(plant, outcome(plant, 1), as);
  // Under some.
  for (Plant plant : {Plant::no_wait_for_copy, Plant::wrong_phase, Plant::no_wait_for_release, Plant::too_few_bytes,
                      Plant::too_many_arrivals, Plant::no_wait_between_stores, Plant::no_wait_for_addition})
    if (outcome(plant, 20) == "right") check(plant, "right", "caught");
  CHECK_FAILS("LAUNCH", TOKENRING_LAUNCH(greedy_kernel, 1, 3 * kWarpgroup, 0, nullptr)());
  // What failed before leaves nothing behind.
  CHECK(outcome(Plant::nothing, 2) == "right");
}
