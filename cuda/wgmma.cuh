// Products of a warpgroup on the tensor cores: D[64, N] (+)= A[64, 16] B[16, N], bf16 with float32 accumulators.
//
// Operands in shared memory are tiles of panels [rows][kPanel] in the 128-byte swizzle, as copy_box() brings them.
// Accumulators: thread t of the warpgroup holds, as d[4 i + 2 r + e], row 16 (t / 32) + t % 32 / 4 + 8 r and column
// 8 i + 2 (t % 4) + e. Registers of A: a[2 h + r] are the columns 8 h + 2 (t % 4) and the next of that row, so the
// accumulators of columns 16 k .. 16 k + 15, packed in order, are the A of step k of a product that follows.
//
// A product is a group: wgmma_fence(), the steps, wgmma_commit(). Until wgmma_wait() the registers of its D and A are
// the tensor cores'; ptxas inserts waits, and warns, where code touches them before.
#pragma once

#include "ptx.cuh"

namespace tokenring::cuda {
namespace {

// The operand that begins at `p`, contiguous along the product's K: A, or the rows of B^T.
__device__ __forceinline__ uint64_t k_major(const void* p) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | uint64_t{1} << 16 | (shared_address(p) & 0x3ffff) >> 4;
}
// The operand B contiguous along N: its rows are K, its panels `panel_bytes` apart.
__device__ __forceinline__ uint64_t n_major(const void* p, uint32_t panel_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | static_cast<uint64_t>(panel_bytes >> 4) << 16 | (shared_address(p) & 0x3ffff) >> 4;
}

// What step k adds to a descriptor: 16 columns of a tile of `rows` rows ...
__device__ __forceinline__ constexpr uint64_t k_major_step(int k, int rows) {
  return static_cast<uint64_t>((k / 4 * rows * kPanel * 2 + k % 4 * 32) >> 4);
}
// ... or 16 rows.
__device__ __forceinline__ constexpr uint64_t n_major_step(int k) { return static_cast<uint64_t>(k * 2048 >> 4); }

// wgmma_step<N, kNMajor>(d, a, b, accumulate): one step; A by descriptor or as four registers.
template <int N>
struct Wgmma;

#if defined(__CUDACC__)

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last `kLeft` groups are done.
template <int kLeft>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// Operand names %0 .. %(n - 1), and the accumulators they stand for, by eights.
// clang-format off
#define TR_N8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define TR_N16 TR_N8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define TR_N24 TR_N16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define TR_N32 TR_N24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define TR_N40 TR_N32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define TR_N48 TR_N40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define TR_N56 TR_N48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define TR_N64 TR_N56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define TR_N72 TR_N64 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define TR_N80 TR_N72 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define TR_N88 TR_N80 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define TR_N96 TR_N88 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define TR_D(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
                "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define TR_D32 TR_D(0), TR_D(8), TR_D(16), TR_D(24)
#define TR_D40 TR_D32, TR_D(32)
#define TR_D48 TR_D40, TR_D(40)
#define TR_D56 TR_D48, TR_D(48)
#define TR_D64 TR_D56, TR_D(56)
#define TR_D72 TR_D64, TR_D(64)
#define TR_D80 TR_D72, TR_D(72)
#define TR_D88 TR_D80, TR_D(80)
#define TR_D96 TR_D88, TR_D(88)

// For N columns of H = N / 2 accumulators a thread; P0 .. P6 are H .. H + 6, the operands after them.
#define TR_WGMMA(N, H, P0, P1, P2, P3, P4, P5, P6)                                                             \
  template <>                                                                                                  \
  struct Wgmma<N> {                                                                                            \
    template <bool kNMajor>                                                                                    \
    static __device__ __forceinline__ void step(float (&d)[H], uint64_t a, uint64_t b, bool accumulate) {      \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P2 ", 0;\n"                                           \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" TR_N##H "}, "                  \
                   "%" #P0 ", %" #P1 ", p, 1, 1, 0, %" #P3 ";\n}"                                              \
                   : TR_D##H                                                                                   \
                   : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kNMajor ? 1 : 0));                 \
    }                                                                                                          \
    template <bool kNMajor>                                                                                    \
    static __device__ __forceinline__ void step(float (&d)[H], const uint32_t* a, uint64_t b,                  \
                                                bool accumulate) {                                             \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P5 ", 0;\n"                                           \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" TR_N##H "}, "                  \
                   "{%" #P0 ", %" #P1 ", %" #P2 ", %" #P3 "}, %" #P4 ", p, 1, 1, %" #P6 ";\n}"                 \
                   : TR_D##H                                                                                   \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),    \
                     "n"(kNMajor ? 1 : 0));                                                                    \
    }                                                                                                          \
  };
TR_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
TR_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46)
TR_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
TR_WGMMA(112, 56, 56, 57, 58, 59, 60, 61, 62)
TR_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
TR_WGMMA(144, 72, 72, 73, 74, 75, 76, 77, 78)
TR_WGMMA(160, 80, 80, 81, 82, 83, 84, 85, 86)
TR_WGMMA(176, 88, 88, 89, 90, 91, 92, 93, 94)
TR_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)
// clang-format on

#else

template <int N>
struct Wgmma {
  template <bool kNMajor, class A>
  static void step(float (&d)[N / 2], A a, uint64_t b, bool accumulate,
                   std::source_location where = std::source_location::current()) {
    emulator::wgmma(N, kNMajor, d, a, b, accumulate, where);
  }
};

#endif

}  // namespace
}  // namespace tokenring::cuda
