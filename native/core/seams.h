// The three seams between the decoder and whoever runs it. One rank implements them plainly
// (native/model); native/parallel implements them with shards, buckets and rings.
#pragma once

#include <cstdint>
#include <vector>

#include "core/ops.h"
#include "core/schedule.h"

namespace tokenring {

// What one decoder layer computes with. `index` -1 is the embedding and, with the last layer, the head.
struct LayerWeights {
  Weight qkv, o, gate_up, down;                            // compute copies
  Tensor qkv_bias, q_norm, k_norm, input_norm, post_norm;  // f32; the first three null where the model has none
};
struct LayerGradients {
  Tensor qkv, qkv_bias, q_norm, k_norm, o, gate_up, down, input_norm, post_norm;  // f32, accumulated into
};
struct EdgeWeights {
  Tensor embedding;   // f32 [v,h]
  Weight head;        // [v,h]
  Tensor final_norm;  // f32 [h]
};
struct EdgeGradients {
  Tensor embedding, head, final_norm;  // head's is apart from embedding's even when the weights are tied
};

// Who has the parameters. acquire() adds to the schedule whatever makes them readable on `stream`.
class ParamSource {
 public:
  virtual ~ParamSource() = default;
  virtual LayerWeights acquire(Schedule&, int layer) = 0;
  virtual void release(Schedule&, int layer) = 0;
  virtual EdgeWeights acquire_edge(Schedule&) = 0;
  virtual void release_edge(Schedule&) = 0;
};

// Who takes the gradients. ready() says that nothing more of this pass adds to them; in the last pass of a step, whose
// sums run behind those of the passes before it, that they are complete. Layers come from the last to the first, then
// the edge.
class GradSink {
 public:
  virtual ~GradSink() = default;
  virtual LayerGradients layer(Schedule&, int layer) = 0;
  virtual EdgeGradients edge(Schedule&) = 0;
  virtual void ready(Schedule&, int layer) = 0;
  virtual void ready_edge(Schedule&) = 0;

  // The same memory as flat f32 tensors, as few as it takes, which all ranks cut alike; -1: the edge's.
  virtual std::vector<Tensor> bucket(int layer) = 0;
  // Adds what is collected apart (see EdgeGradients::head) to its place in bucket(-1); once a step, after the passes.
  virtual void complete_gradients(Stream&) = 0;
};

// Who attends. forward() leaves output and log-sum-exp in slots that backward() reads, so that
// recomputation of a layer never repeats the attention.
class Attend {
 public:
  virtual ~Attend() = default;
  virtual void forward(Schedule&, int layer, Slot qkv, Slot out, Slot lse) = 0;
  virtual void backward(Schedule&, int layer, Slot dout, Slot qkv, Slot out, Slot lse, Slot dqkv) = 0;
};

}  // namespace tokenring
