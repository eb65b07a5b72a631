// bf16 products: operands rounded to bf16 and laid out in tiles, accumulation in float32.
//
// The order of operations is that of the instruction TDPBF16PS (Intel SDM): for each block of 32 of the depth, one
// chain of fused multiply-adds over the even and one over the odd positions, both from 0; their sum is added to C.
// Denormal inputs count as 0 and denormal results become 0. Every version keeps this order, so AMX and the plain
// instructions give the same bits (on x86, where denormals can be flushed).
#pragma once

#include <cstddef>
#include <cstdint>

namespace tokenring::cpu {

// A tile holds 16 lines (rows of A, columns of B) by 32 of the depth: 1 KB.
constexpr int64_t kTileLines = 16, kTileDepth = 32, kTileElements = kTileLines * kTileDepth;

constexpr int64_t line_tiles(int64_t lines) { return (lines + kTileLines - 1) / kTileLines; }
constexpr int64_t depth_tiles(int64_t depth) { return (depth + kTileDepth - 1) / kTileDepth; }

// Rounds (to nearest even) a matrix of `lines` by `depth` to bf16. Element (i, d) is from[i * ld + d] if `by_line`,
// else from[d * ld + i]. It goes to tile (i / 16, d / 32), which lies at to + (i / 16) * tile_row + (d / 32) *
// kTileElements; within it, to [i % 16][d % 32] for A, and to [d % 32 / 2][i % 16][d % 2] for B. Beyond `lines` and
// `depth` are zeros.
struct Bf16Pack {
  const float* from;
  int64_t ld, lines, depth;
  bool by_line, for_b;
  uint16_t* to;
  int64_t tile_row;
};

// C [rows, cols] (+)= A B, then + bias[col] if given. Tiles as above, A's of lines = rows, B's of lines = cols.
struct Bf16Gemm {
  int64_t rows, cols, depth_tiles;
  const uint16_t* a;
  int64_t a_row;  // elements between A's rows of tiles
  const uint16_t* b;
  int64_t b_row;
  float* c;
  int64_t ldc;
  bool accumulate;
  const float* bias;
};

struct Bf16Kernels {
  const char* isa;
  void (*pack)(const Bf16Pack&);
  void (*gemm)(const Bf16Gemm&);
};

// Null where the compiler or the CPU's family has no AMX.
const Bf16Kernels* kernels_amx();

// Why this process cannot use AMX; null if it can. The first call asks the kernel for the tiles' state, which makes the
// frames of signals larger; nothing calls it before bf16 is wanted.
const char* amx_fault();

// AMX where it can be used and TOKENRING_ISA does not name another set, else those of choose_kernels().
const Bf16Kernels& choose_bf16_kernels();

}  // namespace tokenring::cpu
