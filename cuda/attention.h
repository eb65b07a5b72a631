// Launch functions of the attention kernels: wgmma and TMA, bf16, head dimension 64 and 128.
// State: compiled for sm_90a without spills, run in the emulator (test/native/emulator), not yet run on a GPU.
//
// Each queues its kernels on `stream` and returns; it neither allocates nor synchronises. What the kernels read is
// device memory. All rows of q, k and v are finite, also those that no span names: a tile may load its neighbours'
// rows. A row of a result depends on its own query and keys alone, through an order that the rows of its spans of keys
// fix.
#pragma once

#include "attention_plan.h"
#include "launch.h"
#include "tensor_map.h"

namespace tokenring::cuda {

// O = softmax(scale Q K^T) V, and the logarithm of each row's sum of exponentials.
struct AttentionForward {
  // Of one head_dim; q.heads is a multiple of k.heads = v.heads, and query head h uses key head h / (q.heads /
  // k.heads).
  HeadTensor q, k, v;
  // A ForwardPlan by attention_forward_rows() and `causal`, on the device.
  const QueryTile* tiles;
  int tile_count;
  const Span* keys;
  bool causal;
  float scale;  // positive
  // Written for the rows of the plan's queries: bf16 [q.rows, q.heads * head_dim] and f32 [q.rows, q.heads]. A row
  // that sees no key is 0, and its lse -infinity.
  Bf16* out;
  float* lse;
  // If not null, f32, takes the place of `out`: it holds with `lse` the result over other keys, and then over both.
  // Rows of lse = -infinity are taken as empty, whatever `running` holds. No effect on rows that see no key.
  float* running;
  // Two zeros, which each launch leaves zero.
  int32_t* counters;
  int multiprocessors;  // at most so many blocks run
};

// Queries of a tile of the plan.
int attention_forward_rows(int head_dim);

// Failure INVALID_ARGUMENT for shapes that the kernels do not take.
void attention_forward(CudaStream stream, EncodeTiled encode, const AttentionForward& work);

}  // namespace tokenring::cuda
