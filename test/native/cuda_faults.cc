// The emulator itself: right kernels pass, and each kind of wrong kernel is caught.
#include <algorithm>
#include <tuple>

#include "emulator/rig.h"
// The emulator comes before the kernels.
#include "../../cuda/device.cuh"

using rig::Buffer;
using namespace tokenring::cuda;

namespace {

constexpr int kThreads = 64;

// Turns each run of 64 numbers around through shared memory; wait = false forgets to wait for the others.
void reverse_kernel(bool wait, const float* x, float* y) {
  __shared__ float copy[kThreads];
  copy[threadIdx.x] = x[blockIdx.x * kThreads + threadIdx.x];
  if (wait) __syncthreads();
  y[blockIdx.x * kThreads + threadIdx.x] = copy[kThreads - 1 - threadIdx.x];
}

// The same through load() and store().
void watched_reverse_kernel(bool wait, const float* x, float* y) {
  __shared__ float copy[kThreads];
  store(copy + threadIdx.x, load(x + threadIdx.x));
  if (wait) __syncthreads();
  store(y + threadIdx.x, load(copy + kThreads - 1 - threadIdx.x));
}

// Copies n numbers by packs; `slack` = 1 takes one too many.
void copy_kernel(int64_t n, int64_t slack, const float* x, float* y) {
  const int64_t j = static_cast<int64_t>(threadIdx.x) * kPack;
  if (j < n) store_pack(y + j, n - j, load_pack(x + j, n + slack - j));
}

void raw_store_kernel(int64_t n, float* y) {
  if (threadIdx.x == 0) y[n] = 1.0f;
}

void misaligned_kernel(const float* x, float* y) { store(y, load(reinterpret_cast<const float4*>(x + 1)).x); }

void barrier_in_branch_kernel(float* y) {
  if (threadIdx.x < 40) __syncthreads();
  store(y + threadIdx.x, 1.0f);
}

void two_barriers_kernel(float* y) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  store(y + threadIdx.x, 1.0f);
}

void shuffle_in_branch_kernel(float* y) {
  float x = 1.0f;
  if (threadIdx.x % 2) x = __shfl_xor_sync(0xffffffffu, x, 1);
  store(y + threadIdx.x, x);
}

void two_writers_kernel(float* y) { store(y + threadIdx.x / 2, 1.0f); }

// Blocks have no barrier between them.
void next_block_kernel(float* y) { store(y + blockIdx.x, load(y + (blockIdx.x + 1) % gridDim.x)); }

void shuffles_kernel(const float* x, float* down, double* sums) {
  __shared__ double scratch[kThreads / kWarp];
  const float mine = load(x + threadIdx.x);
  store(down + threadIdx.x, __shfl_down_sync(0xffffffffu, mine, 5));
  double sum = block_sum(static_cast<double>(mine), scratch);
  sum += block_sum(2.0 * mine, scratch);  // the scratch is used again at once
  store(sums + threadIdx.x, sum);
}

const rig::Values kNumbers = rig::random_floats(4 * kThreads, 1);

std::tuple<rig::Values> reversed(void (*kernel)(bool, const float*, float*), bool wait, unsigned blocks) {
  const Buffer<float> x(kNumbers), y(kThreads * blocks);
  TOKENRING_LAUNCH(kernel, blocks, kThreads, 0, nullptr)(wait, x.data(), y.data());
  return {y.read()};
}

rig::Values reversed_numbers(unsigned blocks) {
  rig::Values expected(kNumbers.begin(), kNumbers.begin() + kThreads * blocks);
  for (unsigned b = 0; b < blocks; ++b) std::reverse(&expected[b * kThreads], &expected[b * kThreads] + kThreads);
  return expected;
}

}  // namespace

TEST(emulator_runs_blocks_with_barriers) {
  const auto [raw] = rig::on_two_schedules([] { return reversed(reverse_kernel, true, 4); });
  CHECK(raw == reversed_numbers(4));
  const auto [watched] = rig::on_two_schedules([] { return reversed(watched_reverse_kernel, true, 1); });
  CHECK(watched == reversed_numbers(1));
}

TEST(emulator_catches_a_missing_barrier) {
  CHECK_FAILS("RACE", reversed(watched_reverse_kernel, false, 1));
  // Unseen by load() and store(), it makes wrong numbers that change with the schedule.
  emulator::seed(1);
  const auto first = std::get<0>(reversed(reverse_kernel, false, 4));
  emulator::seed(2);
  const auto second = std::get<0>(reversed(reverse_kernel, false, 4));
  CHECK(!rig::same_bits(first, reversed_numbers(4)) && !rig::same_bits(first, second));
}

TEST(emulator_catches_accesses_out_of_bounds) {
  for (int64_t n : {1, 8, 13, 16, 61}) {
    const rig::Values numbers(kNumbers.begin(), kNumbers.begin() + n);
    const Buffer<float> x(numbers), y(static_cast<size_t>(n));
    TOKENRING_LAUNCH(copy_kernel, 1, 32, 0, nullptr)(n, 0, x.data(), y.data());
    CHECK(y.read() == numbers);
    if (n % kPack)
      CHECK_FAILS("OUT_OF_BOUNDS", TOKENRING_LAUNCH(copy_kernel, 1, 32, 0, nullptr)(n, 1, x.data(), y.data()));
    CHECK_FAILS("OUT_OF_BOUNDS", TOKENRING_LAUNCH(raw_store_kernel, 1, 32, 0, nullptr)(n, y.data()));
    CHECK_FAILS("OUT_OF_BOUNDS", TOKENRING_LAUNCH(raw_store_kernel, 1, 32, 0, nullptr)(-1, y.data()));
  }
  rig::Values outside(64);
  const Buffer<float> x(kNumbers);
  CHECK_FAILS("OUT_OF_BOUNDS", TOKENRING_LAUNCH(copy_kernel, 1, 32, 0, nullptr)(64, 0, outside.data() + 1, x.data()));
}

TEST(emulator_catches_misalignment_divergence_and_races) {
  const Buffer<float> x(kNumbers), y(kThreads);
  CHECK_FAILS("MISALIGNED", TOKENRING_LAUNCH(misaligned_kernel, 1, 32, 0, nullptr)(x.data(), y.data()));
  CHECK_FAILS("DIVERGENCE", TOKENRING_LAUNCH(barrier_in_branch_kernel, 1, kThreads, 0, nullptr)(y.data()));
  CHECK_FAILS("DIVERGENCE", TOKENRING_LAUNCH(two_barriers_kernel, 1, kThreads, 0, nullptr)(y.data()));
  CHECK_FAILS("DIVERGENCE", TOKENRING_LAUNCH(shuffle_in_branch_kernel, 1, kThreads, 0, nullptr)(y.data()));
  CHECK_FAILS("RACE", TOKENRING_LAUNCH(two_writers_kernel, 1, kThreads, 0, nullptr)(y.data()));
  CHECK_FAILS("RACE", TOKENRING_LAUNCH(next_block_kernel, 8, 32, 0, nullptr)(y.data()));
  CHECK_FAILS("LAUNCH", TOKENRING_LAUNCH(two_writers_kernel, 0, kThreads, 0, nullptr)(y.data()));
  CHECK_FAILS("LAUNCH", TOKENRING_LAUNCH(two_writers_kernel, 1, 2048, 0, nullptr)(y.data()));
  // What failed before leaves nothing behind.
  CHECK(std::get<0>(reversed(watched_reverse_kernel, true, 1)) == reversed_numbers(1));
}

TEST(emulator_shuffles_and_sums_blocks) {
  const auto [down, sums] = rig::on_two_schedules([] {
    const Buffer<float> x(kNumbers), d(kThreads);
    const Buffer<double> s(kThreads);
    TOKENRING_LAUNCH(shuffles_kernel, 1, kThreads, 0, nullptr)(x.data(), d.data(), s.data());
    return std::tuple{d.read(), s.read()};
  });
  double sum = 0;
  for (int i = 0; i < kThreads; ++i) sum += kNumbers[i];
  for (int i = 0; i < kThreads; ++i) {
    CHECK(down[i] == kNumbers[i % 32 < 27 ? i + 5 : i]);
    CHECK_NEAR(sums[i], 3 * sum, 1e-13);
  }
}

// Every float32 whose lower half is 0, just below, at and just above the middle to the next, against float64.
TEST(emulator_rounds_to_bf16_as_nearest_even) {
  for (uint32_t high = 0; high < 0x7f80; high += 7)
    for (uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const float x = std::bit_cast<float>(high << 16 | low);
      const double below = rig::value(Bf16{static_cast<uint16_t>(high)});
      // Past the largest number comes infinity, as if it were the next power of two.
      const double above = high == 0x7f7f ? 0x1p128 : rig::value(Bf16{static_cast<uint16_t>(high + 1)});
      const double to_below = x - below, to_above = above - x;
      const bool up = to_above < to_below || (to_above == to_below && high % 2);
      CHECK(to_bf16(x).bits == high + up && to_bf16(-x).bits == (0x8000 | (high + up)));
    }
  CHECK(to_bf16(NAN).bits == 0x7fff && to_bf16(INFINITY).bits == 0x7f80);
}
