// The functions of cuda/ptx.cuh on a CPU, for kernels of sm_90a. Include it in place of emulator/cuda.h.
//
// What is emulated, so that a kernel which relies on luck fails:
//  - copies and products happen some time after they are begun, in any order that the hardware allows: at once, soon,
//  or
//    only when no thread can go on. A product reads its operands, registers too, and writes its accumulators then;
//  - shared memory has a second view, which copy engine and tensor cores read: a thread's stores reach it at that
//    thread's fence_async();
//  - the 128-byte swizzle and the descriptors are those of the hardware, by address.
//
// Further codes of Failure:
//   RACE      a tile is read, copied into or stored to while a copy or product that conflicts is in flight, whether or
//             not it has happened yet; or a block ends before its copies;
//   DEADLOCK  no thread can go on, and nothing is in flight;
//   BARRIER   a barrier that was not made, or has more arrivals or bytes than its phase takes;
//   FENCE     a product that no wgmma_fence() precedes, or a copy to a barrier without fence_barrier_init();
//   LAUNCH    an instruction with operands that the hardware, or the emulator, does not take.
// Limits: it is our reading of the PTX manual; accesses to dynamic shared memory race unseen except with copies and
// products; no clusters; the fence for registers is checked by groups, not by registers.
#pragma once

#define TOKENRING_EMULATED_PTX

#include <bit>

#include "cuda.h"
#include "cuda/tensor_map.h"

#define __grid_constant__
#define TOKENRING_DYNAMIC_SHARED(Type, name) Type& name = *static_cast<Type*>(emulator::dynamic_shared(sizeof(Type)))
#define TOKENRING_ALLOW_SHARED(kernel, bytes)

namespace emulator {

using Where = std::source_location;

void* dynamic_shared(size_t bytes);
uint32_t shared_address(const void* p);

void barrier_init(void* b, uint32_t arrivals);
void fence_barrier_init();
void barrier_arrive(void* b, Where where);
void barrier_arrive_expect(void* b, uint32_t bytes, Where where);
void barrier_wait(void* b, uint32_t parity, Where where);
void named_sync(int id, int threads, Where where);
void named_arrive(int id, int threads, Where where);

// As the driver's; it checks what the driver documents.
int encode_tiled(tokenring::cuda::TensorMap* map, int element, uint32_t rank, void* address, const uint64_t* sizes,
                 const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides, int interleave,
                 int swizzle, int l2_promotion, int out_of_bounds_fill);
void copy_box(void* to, const tokenring::cuda::TensorMap* map, void* b, const int (&at)[4]);
void copy_bytes(void* to, const void* from, uint32_t bytes, void* b);
void bulk_add(float* to, const float* from, uint32_t bytes);
void bulk_commit();
void bulk_wait_read(unsigned left, Where where);

void fence_async();
void store_matrices(void* row, const uint32_t (&m)[4], bool transposed, Where where);
void set_registers(int count, Where where);

void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned left, Where where);
void wgmma(int n, bool n_major, float* d, uint64_t a, uint64_t b, bool accumulate, Where where);
void wgmma(int n, bool n_major, float* d, const uint32_t* a, uint64_t b, bool accumulate, Where where);

}  // namespace emulator

namespace tokenring::cuda {

inline uint32_t shared_address(const void* p) { return emulator::shared_address(p); }

inline void barrier_init(void* b, uint32_t arrivals) { emulator::barrier_init(b, arrivals); }
inline void fence_barrier_init() { emulator::fence_barrier_init(); }
inline void barrier_arrive(void* b, emulator::Where where = emulator::Where::current()) {
  emulator::barrier_arrive(b, where);
}
inline void barrier_arrive_expect(void* b, uint32_t bytes, emulator::Where where = emulator::Where::current()) {
  emulator::barrier_arrive_expect(b, bytes, where);
}
inline void barrier_wait(void* b, uint32_t parity, emulator::Where where = emulator::Where::current()) {
  emulator::barrier_wait(b, parity, where);
}
inline void named_sync(int id, int threads, emulator::Where where = emulator::Where::current()) {
  emulator::named_sync(id, threads, where);
}
inline void named_arrive(int id, int threads, emulator::Where where = emulator::Where::current()) {
  emulator::named_arrive(id, threads, where);
}

inline void prefetch(const TensorMap*) {}
inline uint64_t evict_first() { return 0; }
inline uint64_t evict_last() { return 0; }
inline void copy_box(void* to, const TensorMap* map, void* b, uint64_t /* policy */, int c0, int c1, int c2, int c3) {
  emulator::copy_box(to, map, b, {c0, c1, c2, c3});
}
inline void copy_bytes(void* to, const void* from, uint32_t bytes, void* b) {
  emulator::copy_bytes(to, from, bytes, b);
}
inline void bulk_add(float* to, const float* from, uint32_t bytes) { emulator::bulk_add(to, from, bytes); }
inline void bulk_commit() { emulator::bulk_commit(); }
template <int kLeft>
void bulk_wait_read(emulator::Where where = emulator::Where::current()) {
  emulator::bulk_wait_read(kLeft, where);
}

inline void fence_async() { emulator::fence_async(); }
inline void store_matrices_transposed(void* row, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3,
                                      emulator::Where where = emulator::Where::current()) {
  emulator::store_matrices(row, {m0, m1, m2, m3}, true, where);
}

// Not lane 0: which lane it is, is the hardware's choice.
inline bool elect_one() { return emulator::this_lane() == 21; }
template <int kCount>
void give_registers(emulator::Where where = emulator::Where::current()) {
  emulator::set_registers(kCount, where);
}
template <int kCount>
void claim_registers(emulator::Where where = emulator::Where::current()) {
  emulator::set_registers(kCount, where);
}

inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline uint32_t pack_bf16(float low, float high) {
  return __float2bfloat16_rn(low).bits | static_cast<uint32_t>(__float2bfloat16_rn(high).bits) << 16;
}

inline void wgmma_fence() { emulator::wgmma_fence(); }
inline void wgmma_commit() { emulator::wgmma_commit(); }
template <int kLeft>
void wgmma_wait(emulator::Where where = emulator::Where::current()) {
  emulator::wgmma_wait(kLeft, where);
}

}  // namespace tokenring::cuda
