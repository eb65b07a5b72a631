// Launch functions of the attention kernels without tensor cores. The plain ones take any head dimension up to 256,
// float32 or bf16: heads that the kernels of attention.h do not take, attention of parts in float32, keys in pages.
// Those of attention_paged.cu, at the end, decode. State: compiled for sm_90a, run in the emulator
// (test/native/emulator), not yet run on a GPU.
//
// Rules as in launch.h. A query sees the keys of its spans up to its own position. A row of a result depends on its own
// query and keys alone: spans in the order of the plan, their keys in order. No atomics: the same inputs give the same
// bits, and a sequence in pages has the bits of the same document in one span.
#pragma once

#include "cuda/attention_plan.h"
#include "cuda/launch.h"

namespace tokenring::cuda {

// Query head h uses key head h / (heads / kv_heads). Head h of a row is head_dim elements from row * stride + h *
// head_dim on.
struct PlainHeads {
  int heads, kv_heads, head_dim;  // head_dim at most 256
  float scale;                    // multiplies q.k
  bool is_float;                  // q, k, v: f32, or else bf16
  const void *q, *k, *v;
  int64_t q_stride, kv_stride;  // elements from a row to the next
};

// Queries of a tile of the plans, keys of a tile.
constexpr int kPlainRows = 32;

struct PlainForward {
  PlainHeads at;
  // A ForwardPlan by kPlainRows, causal, on the device.
  const QueryTile* tiles;
  int tile_count;
  const Span* keys;
  // [rows, heads * head_dim]: one of the two, of float32 queries the second. The rows of the plan's queries are
  // written, others left.
  Bf16* out;
  float* out_f32;
  // `out_f32` and `lse` hold the attention on other keys, and receive the attention on all.
  bool merge;
  float* lse;  // f32 [rows, heads]; of a row that sees no key -infinity, and its out is 0
};
void attention_plain_forward(CudaStream stream, const PlainForward& work);

// delta[row, head] = sum of dout * out over the head: bf16 or f32 [m, heads * head_dim], delta f32 [m, heads].
void attention_delta(CudaStream stream, int64_t m, int heads, int head_dim, const Bf16* dout, const Bf16* out,
                     float* delta);
void attention_delta_f32(CudaStream stream, int64_t m, int heads, int head_dim, const float* dout, const float* out,
                         float* delta);

struct PlainBackward {
  PlainHeads at;
  const void* dout;  // of the dtype of q, [rows, heads * head_dim]
  const float *lse, *delta;
  // For dq, a ForwardPlan by kPlainRows; for dk and dv a BackwardPlan of tiles of kPlainRows queries and keys.
  const QueryTile* query_tiles;
  int query_tile_count;
  const Span* keys;
  const KeyTile* key_tiles;
  int key_tile_count;
  const QueryRange* ranges;
  // dk and dv laid out as k and v, rows of dq dq_stride elements apart. bf16 ones are overwritten, to f32 ones is
  // added; rows that no tile names are left.
  void *dq, *dk, *dv;
  int64_t dq_stride;
  bool gradients_are_float;  // as those of float32 queries are
};
void attention_plain_backward(CudaStream stream, const PlainBackward& work);

// --- keys in pages -------------------------------------------------------------------------------------------------
// A page of one layer: bf16 [2][kPageTokens][kv_heads * head_dim], keys, then values.

// A row of qkv, bf16 [m, (heads + 2 kv_heads) * head_dim], at a position of its sequence, whose pages are
// pages[first], pages[first + 1], ... Of a row at position -1 nothing is stored, and it is given out = 0.
struct PagedRow {
  int32_t row, position, first;
};

struct PagedHeads {
  int heads, kv_heads, head_dim;
  const PagedRow* rows;
  int row_count;
  const int32_t* pages;
};

// Writes the keys and values of the rows into their places.
void kv_append(CudaStream stream, const PagedHeads& at, const Bf16* qkv, Bf16* pool);

// out, bf16 [m, heads * head_dim]: each row's query on the keys at positions up to its own.
void attention_paged(CudaStream stream, const PagedHeads& at, float scale, const Bf16* qkv, const Bf16* pool,
                     Bf16* out);

// --- attention_paged.cu: heads of 64 and 128 ------------------------------------------------------------------------

// Bytes of workspace for attention_decode.
size_t attention_decode_workspace(int row_count, int heads, int head_dim, int most_keys);

// The same as attention_paged for few rows of many keys: keys are read once for all heads that share them, and many of
// them are split over blocks, whose results are merged in order, by the row's own length alone. most_keys: the last
// position of any row, and one. pool and out at multiples of 16 bytes. Failure INVALID_ARGUMENT for other heads.
void attention_decode(CudaStream stream, const PagedHeads& at, int most_keys, float scale, const Bf16* qkv,
                      const Bf16* pool, Bf16* out, void* workspace);

// Keys and values of the positions [0, count) of a sequence, as rows: bf16 [count, 2 * width] = [keys | values], width
// = kv_heads * head_dim, a multiple of 8. pages: those of the sequence.
void gather_pages(CudaStream stream, int64_t count, int64_t width, const int32_t* pages, const Bf16* pool, Bf16* to);

}  // namespace tokenring::cuda
