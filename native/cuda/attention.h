// Launch functions of the attention kernels: wgmma and TMA, bf16, head dimension 64 and 128.
// State: compiled for sm_90a without spills, run in the emulator (test/native/emulator), not yet run on a GPU.
//
// Each queues its kernels on `stream` and returns; it neither allocates nor synchronises. What the kernels read is
// device memory. All rows of q, k and v are finite, also those that no span names: a tile may load its neighbours'
// rows. A row of a result depends on its own query and keys alone, through an order that the rows of its spans of keys
// fix.
#pragma once

#include "cuda/attention_plan.h"
#include "cuda/launch.h"
#include "cuda/tensor_map.h"

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
  // `running` and `lse` hold nothing yet, and are overwritten for the rows of the plan's queries.
  bool fresh = false;
};

// Queries of a tile of the plan.
int attention_forward_rows(int head_dim);

// Failure INVALID_ARGUMENT for shapes that the kernels do not take.
void attention_forward(CudaStream stream, EncodeTiled encode, const AttentionForward& work);

// The gradients: with D = rowsum(dO * O), P = exp(scale Q K^T - lse), dS = P * (dO V^T - D):
// dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO. Three launches on one stream: attention_backward_begin once, then
// attention_backward for each part of the keys (a ring has several), then attention_backward_end.
struct AttentionBackward {
  HeadTensor q, k, v;  // as the forward had them
  HeadTensor dout;     // of q's shape
  // As the forward wrote them over all keys.
  const Bf16* out;
  const float* lse;
  // A BackwardPlan by attention_backward_queries(), attention_backward_keys() and `causal`, on the device. Further
  // parts of the keys have plans of their own, of the same spans of queries.
  const Span* queries;
  int query_count;
  const KeyTile* tiles;
  int tile_count;
  const QueryRange* ranges;
  bool causal;
  float scale;
  // f32 [k.rows, k.heads * head_dim]: the gradients of the plan's keys are added. The sums run in the order of query
  // heads and queries, so they are the same bits each time.
  float *dk, *dv;
  // attention_backward_workspace() bytes, 16-byte aligned, kept from begin to end.
  void* workspace;
  // dQ comes from blocks of keys, which add in any order: its last bits change from run to run. Deterministic work
  // leaves it to attention_dq and needs no end.
  bool deterministic;
  // D where it is known, f32 [q.rows, q.heads]; else null, and it is taken from `out`.
  const float* delta = nullptr;
  // Elements from a row of dk and dv to the next, where their heads do not fill it.
  int64_t gradient_stride = 0;
};

// Queries of a pass, keys of a block.
int attention_backward_queries(int head_dim);
int attention_backward_keys();

size_t attention_backward_workspace(int query_count, int heads, int head_dim, bool deterministic);

void attention_backward_begin(CudaStream stream, const AttentionBackward& work);
// Failure INVALID_ARGUMENT for shapes that the kernels do not take.
void attention_backward(CudaStream stream, EncodeTiled encode, const AttentionBackward& work);
// Writes dq, bf16, as row_stride and heads of `dq` say, for the rows of the plan's queries.
void attention_backward_end(CudaStream stream, const AttentionBackward& work, Bf16* dq, int64_t row_stride);
// Adds it to float32.
void attention_backward_end_f32(CudaStream stream, const AttentionBackward& work, float* dq, int64_t row_stride);

// dQ by blocks of queries, which take their keys in order: the same bits each time, and no workspace, for the scores
// and dP computed once more. Of bf16 all keys of a query are in one launch.
struct AttentionDq {
  HeadTensor q, k, v, dout;
  const Bf16* out;
  const float* lse;
  // A ForwardPlan by attention_dq_rows() and `causal`, on the device.
  const QueryTile* tiles;
  int tile_count;
  const Span* keys;
  bool causal;
  float scale;
  // Written for the rows of the plan's queries: bf16, heads side by side, rows `row_stride` elements apart; both at
  // multiples of 16 bytes.
  Bf16* dq;
  int64_t row_stride;
  const float* delta = nullptr;  // as in AttentionBackward
  float* dq_sum = nullptr;       // f32, takes the place of `dq`: what other keys gave, to which is added
};

int attention_dq_rows();

// Failure INVALID_ARGUMENT for shapes that the kernels do not take.
void attention_dq(CudaStream stream, EncodeTiled encode, const AttentionDq& work);

}  // namespace tokenring::cuda
