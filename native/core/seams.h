// The three seams between the decoder and whoever runs it. One rank implements them plainly
// (native/model); native/parallel implements them with shards, buckets and rings.
#pragma once

#include <cstdint>
#include <vector>

#include "core/ops.h"
#include "core/schedule.h"

namespace tokenring {

// What one decoder layer computes with.
struct LayerWeights {
  Weight qkv, o, gate_up, down;                            // compute copies
  Tensor qkv_bias, q_norm, k_norm, input_norm, post_norm;  // f32; the first three null where the model has none
};
struct LayerGradients {
  Tensor qkv, qkv_bias, q_norm, k_norm, o, gate_up, down, input_norm, post_norm;  // f32, accumulated into
};
struct HeadWeights {
  Weight weight;      // [v,h]
  Tensor final_norm;  // f32 [h]
};
struct HeadGradients {
  Tensor weight, final_norm;  // f32; the weight's is apart from the embedding's even when the two are tied
};

// Who has the parameters. What acquire() gives is readable by the entries up to release(); a pass acquires the
// embedding, the layers from the first to the last and the head, backward the head and the layers from the last to the
// first, and the head any number of times in a row.
class ParamSource {
 public:
  virtual ~ParamSource() = default;
  virtual Tensor acquire_embedding(Schedule&) = 0;  // [v,h], f32 or of the activations' dtype
  virtual void release_embedding(Schedule&) = 0;
  virtual LayerWeights acquire(Schedule&, int layer) = 0;
  virtual void release(Schedule&, int layer) = 0;
  virtual HeadWeights acquire_head(Schedule&) = 0;
  virtual void release_head(Schedule&) = 0;
};

// Gradients of one run of parameters, as flat f32 tensors that all ranks cut alike, for a sum over ranks.
struct Bucket {
  Tensor whole;  // what this rank has collected; null where each pass sums it over the shard group itself
  Tensor part;   // where this rank's part of the shard group's sum goes; null: the whole is kept by every rank
};

// Who takes the gradients. ready() says that nothing more of this pass adds to them; in the last pass of a step, whose
// sums run behind those of the passes before it, that they are complete. The head comes first, then the layers from the
// last to the first, then the embedding; in a pass, head() and ready_head() come before the backward pass acquires a
// layer.
class GradSink {
 public:
  virtual ~GradSink() = default;
  virtual HeadGradients head(Schedule&) = 0;
  virtual void ready_head(Schedule&) = 0;
  virtual LayerGradients layer(Schedule&, int layer) = 0;
  virtual void ready(Schedule&, int layer) = 0;
  virtual Tensor embedding(Schedule&) = 0;
  virtual void ready_embedding(Schedule&) = 0;

  // The same memory, as few tensors as it takes. unit: a layer, kHeadUnit or kEmbeddingUnit; a tied head's gradient is
  // the embedding's.
  virtual std::vector<Bucket> buckets(int unit) = 0;
  // Adds what is collected apart (see HeadGradients) to its place among the embedding's; once a step, after the passes.
  virtual void complete_gradients(Stream&) = 0;
};
constexpr int kEmbeddingUnit = -1, kHeadUnit = -2;

// Who attends. forward() leaves output and log-sum-exp in slots that backward() reads, so that
// recomputation of a layer never repeats the attention.
class Attend {
 public:
  virtual ~Attend() = default;
  virtual void forward(Schedule&, int layer, Slot qkv, Slot out, Slot lse) = 0;
  virtual void backward(Schedule&, int layer, Slot dout, Slot qkv, Slot out, Slot lse, Slot dqkv) = 0;
};

}  // namespace tokenring
