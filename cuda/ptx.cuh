// The instructions of sm_90a that the Hopper kernels are written in, one thin function each. On a CPU the emulator
// (test/native/emulator/ptx.h) gives the same functions, so that the same kernels run there.
//
// Shared memory has two readers: threads (the generic proxy) and the copy engine and tensor cores (the asynchronous
// proxy). What a thread stored is seen by the latter only after that thread's fence_async().
#pragma once

#include "cuda/tensor_map.h"
#include "device.cuh"

#if defined(__CUDACC__)
#include <cuda.h>
#elif !defined(TOKENRING_EMULATED_PTX)
#error "Compile with nvcc, or include test/native/emulator/ptx.h before this file to run kernels on a CPU"
#endif

namespace tokenring::cuda {
namespace {

constexpr int kWarpgroup = 128;

// What barriers and swizzled tiles are aligned to in shared memory.
constexpr int kTileAlignment = 1024;

// An mbarrier. A phase ends when its arrivals and the bytes it expects are in; phases alternate 0, 1, 0, ...
struct alignas(8) Barrier {
  uint64_t bits;
};

// Where a ring of `kStages` buffers stands: the stage, and the parity of the phase that fills it.
template <int kStages>
struct Ring {
  int at = 0;  // one register: below kStages the parity is 0, above it 1
  __device__ __forceinline__ int stage() const { return at < kStages ? at : at - kStages; }
  __device__ __forceinline__ uint32_t parity() const { return at < kStages ? 0 : 1; }
  __device__ __forceinline__ void advance() { at = at + 1 < 2 * kStages ? at + 1 : 0; }
};

// Byte offset of byte `offset` of a tile that lies in the 128-byte swizzle, the tile being aligned to 1024.
__device__ __forceinline__ uint32_t swizzled(uint32_t offset) { return offset ^ ((offset >> 7 & 7) << 4); }

#if defined(__CUDACC__)

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) == alignof(CUtensorMap));
static_assert(driver::kBf16Element == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 &&
              driver::kNoInterleave == CU_TENSOR_MAP_INTERLEAVE_NONE &&
              driver::kSwizzle128 == CU_TENSOR_MAP_SWIZZLE_128B &&
              driver::kL2Promotion256 == CU_TENSOR_MAP_L2_PROMOTION_L2_256B &&
              driver::kFillWithZeros == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

// The launch's dynamic shared memory as one object.
#define TOKENRING_DYNAMIC_SHARED(Type, name)                     \
  extern __shared__ __align__(1024) unsigned char dynamic_raw[]; \
  Type& name = *reinterpret_cast<Type*>(dynamic_raw)

// More than 48 KB of it must be asked for, once a device.
#define TOKENRING_ALLOW_SHARED(kernel, bytes) \
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// --- barriers ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(Barrier* b, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}
// By the thread that made the barriers, before others or the copy engine use them.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(Barrier* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
// Arrives, and makes the phase expect that many bytes of copies.
__device__ __forceinline__ void barrier_arrive_expect(Barrier* b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
}
// Waits until the phase of this parity has ended. On a fresh barrier parity 1 has.
__device__ __forceinline__ void barrier_wait(Barrier* b, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again_%=;\n"
      "}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}

// Barriers by number (0 is __syncthreads), for `threads` threads, whole warps: those that wait and those that pass.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- copies --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// What the L2 cache should make of the data of a copy.
__device__ __forceinline__ uint64_t evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t evict_last() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// A box of a map of rank 4 into shared memory; its bytes count towards the barrier's phase. By one thread.
__device__ __forceinline__ void copy_box(void* to, const TensorMap* map, Barrier* b, uint64_t policy, int c0, int c1,
                                         int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(b)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy)
      : "memory");
}

// Contiguous bytes into shared memory; addresses and size are multiples of 16. By one thread.
__device__ __forceinline__ void copy_bytes(void* to, const void* from, uint32_t bytes, Barrier* b) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(b))
               : "memory");
}

// to[i] += from[i], atomically each, from shared memory; addresses and size are multiples of 16. By one thread.
__device__ __forceinline__ void bulk_add(float* to, const float* from, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all but the thread's last `kLeft` groups have read their shared memory.
template <int kLeft>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kLeft) : "memory");
}

// --- shared memory -------------------------------------------------------------------------------------------------

// Orders the thread's own accesses to shared memory before later ones by copy engine and tensor cores.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. Lane l holds, of each
// matrix, elements 2 (l % 4) and the next of row l / 4 — transposed: of column l / 4.
__device__ __forceinline__ void store_matrices_transposed(void* row, uint32_t m0, uint32_t m1, uint32_t m2,
                                                          uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

// --- threads -------------------------------------------------------------------------------------------------------

// True in one lane of a warp whose lanes are all here.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// Registers a thread, for a whole warpgroup: a multiple of 8 from 24 to 256. A claim waits for those that others give.
template <int kCount>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// --- arithmetic ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Two floats to bf16, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

#endif

}  // namespace
}  // namespace tokenring::cuda
