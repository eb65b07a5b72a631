// AMX: bf16 products in tile registers.
#include <initializer_list>

#include "cpu/bf16.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#define TOKENRING_ISA_AVX512
#define TOKENRING_ISA_AMX
#include "cpu/bf16.inl.h"
#include "cpu/flush.inl.h"

namespace tokenring {
namespace {

constexpr int64_t kTileBytes = kTileElements * 2, kStride = 64;
// Depth of one block, in tiles: 32 columns of B (64 KB) stay near while the rows pass by.
constexpr int64_t kDepthTiles = 32;

// GCC 12's intrinsics do not say that they read memory: what was stored before must not be moved behind them.
TOKENRING_INLINE void settle() { __asm__ volatile("" : : : "memory"); }

// Operand of LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {};
  uint8_t rows[16] = {};
};

// Registers: C in 0..3 (two rows of tiles by two columns), A in 4 and 5, B in 6 and 7.
void configure(int64_t first_rows, int64_t second_rows) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) config.bytes_a_row[i] = 64;
  for (const int i : {0, 1, 4}) config.rows[i] = static_cast<uint8_t>(first_rows);
  for (const int i : {2, 3, 5}) config.rows[i] = static_cast<uint8_t>(second_rows);
  for (const int i : {6, 7}) config.rows[i] = 16;
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// MB by NB tiles of C over `tiles` of the depth.
template <int MB, int NB>
TOKENRING_INLINE void amx_block(int64_t tiles, const uint16_t* a, int64_t a_row, const uint16_t* b, int64_t b_row,
                                float* c, int64_t ldc, bool accumulate, const float* c_next) {
  const int64_t ld = ldc * static_cast<int64_t>(sizeof(float));
  settle();
  if (accumulate) {
    _tile_loadd(0, c, ld);
    if constexpr (NB > 1) _tile_loadd(1, c + kTileLines, ld);
    if constexpr (MB > 1) _tile_loadd(2, c + kTileLines * ldc, ld);
    if constexpr (MB > 1 && NB > 1) _tile_loadd(3, c + kTileLines * ldc + kTileLines, ld);
  } else {
    _tile_zero(0);
    if constexpr (NB > 1) _tile_zero(1);
    if constexpr (MB > 1) _tile_zero(2);
    if constexpr (MB > 1 && NB > 1) _tile_zero(3);
  }
  for (int64_t t = 0; t < tiles; ++t, a += kTileElements, b += kTileElements) {
    _tile_loadd(6, b, kStride);
    _tile_loadd(4, a, kStride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (NB > 1) {
      _tile_loadd(7, b + b_row, kStride);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (MB > 1) {
      _tile_loadd(5, a + a_row, kStride);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (MB > 1 && NB > 1) _tile_dpbf16ps(3, 5, 7);
    if (t < MB * kTileLines / 2)  // C comes from afar: two rows of the next block a step
      for (int r = 0; r < 2; ++r)
        for (int v = 0; v < NB; ++v) __builtin_prefetch(c_next + (2 * t + r) * ldc + v * kTileLines, 1);
  }
  _tile_stored(0, c, ld);
  if constexpr (NB > 1) _tile_stored(1, c + kTileLines, ld);
  if constexpr (MB > 1) _tile_stored(2, c + kTileLines * ldc, ld);
  if constexpr (MB > 1 && NB > 1) _tile_stored(3, c + kTileLines * ldc + kTileLines, ld);
}

// At most 32 rows (MB rows of tiles) and 32 columns.
template <int MB>
void amx_part(const Bf16Gemm& g, const float* c_next) {
  if (g.cols == 2 * kTileLines)
    return amx_block<MB, 2>(g.depth_tiles, g.a, g.a_row, g.b, g.b_row, g.c, g.ldc, g.accumulate, c_next);
  for (int64_t j = 0; j < g.cols; j += kTileLines) {
    const int n = static_cast<int>(g.cols - j < kTileLines ? g.cols - j : kTileLines);
    const uint16_t* b = g.b + j / kTileLines * g.b_row;
    if (n == kTileLines) {
      amx_block<MB, 1>(g.depth_tiles, g.a, g.a_row, b, g.b_row, g.c + j, g.ldc, g.accumulate, c_next);
      continue;
    }
    alignas(64) float edge[kTileElements];  // 32 rows of 16
    if (g.accumulate)
      for (int64_t r = 0; r < g.rows; ++r) store(edge + r * kLanes, load_n(g.c + r * g.ldc + j, n));
    amx_block<MB, 1>(g.depth_tiles, g.a, g.a_row, b, g.b_row, edge, kLanes, g.accumulate, c_next);
    for (int64_t r = 0; r < g.rows; ++r) store_n(g.c + r * g.ldc + j, load(edge + r * kLanes), n);
  }
}

void amx_gemm(const Bf16Gemm& g) {
  const FlushDenormals flush;  // for the bias
  constexpr int64_t kBlock = 2 * kTileLines;
  const auto most = [](int64_t left, int64_t block) { return left < block ? left : block; };
  int64_t configured = 0;
  for (int64_t t = 0; t == 0 || t < g.depth_tiles; t += kDepthTiles)
    for (int64_t j = 0; j < g.cols; j += kBlock)
      for (int64_t i = 0; i < g.rows; i += kBlock) {
        Bf16Gemm part = g;
        part.rows = most(g.rows - i, kBlock);
        part.cols = most(g.cols - j, kBlock);
        part.depth_tiles = most(g.depth_tiles - t, kDepthTiles);
        part.a = g.a + i / kTileLines * g.a_row + t * kTileElements;
        part.b = g.b + j / kTileLines * g.b_row + t * kTileElements;
        part.c = g.c + i * g.ldc + j;
        part.accumulate = g.accumulate || t > 0;
        if (part.rows != configured) {
          configure(most(part.rows, kTileLines), part.rows > kTileLines ? part.rows - kTileLines : 1);
          configured = part.rows;
        }
        const float* next = i + kBlock < g.rows ? part.c + kBlock * g.ldc : g.c + most(j + kBlock, g.cols - 1);
        part.rows > kTileLines ? amx_part<2>(part, next) : amx_part<1>(part, next);
      }
  _tile_release();
  if (!g.bias) return;
  for (int64_t i = 0; i < g.rows; ++i)
    for_lanes(
        g.cols, TOKENRING_LANES_BODY(j, k) {
          store(g.c + i * g.ldc + j, add(load(g.c + i * g.ldc + j, k), load(g.bias + j, k)), k);
        });
}

}  // namespace
}  // namespace tokenring

namespace tokenring::cpu {

const Bf16Kernels* kernels_amx() {
  static constexpr Bf16Kernels table{.isa = "amx", .pack = bf16_pack, .gemm = amx_gemm};
  return &table;
}

const char* amx_fault() {
  static const char* const fault = []() -> const char* {
    unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
    if (!__builtin_cpu_supports("avx512bw")) return "this CPU has no AMX";
    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    if (!(edx >> 22 & 1u) || !(edx >> 24 & 1u)) return "this CPU has no AMX with bf16";
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0)
      return "the kernel does not let this process use AMX (Linux 5.16 or newer is needed)";
    return nullptr;
  }();
  return fault;
}

}  // namespace tokenring::cpu

#else

namespace tokenring::cpu {

const Bf16Kernels* kernels_amx() { return nullptr; }
const char* amx_fault() { return "AMX exists on x86-64 alone"; }

}  // namespace tokenring::cpu

#endif
