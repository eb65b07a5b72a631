// The parameters of a decoder on one rank: float32 masters, the compute copies made of them, gradients and AdamW
// state, each one flat buffer; and the names by which Hugging Face knows their rows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/seams.h"
#include "model/config.h"

namespace tokenring {

// A Hugging Face tensor as a slice of the flat buffer ("model.layers.0.self_attn.q_proj.weight").
struct NamedSlice {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // in elements
  bool decay = true;   // weight decay applies (matrices, not norms and biases)

  int64_t elements() const {
    int64_t n = 1;
    for (const int64_t size : shape) n *= size;
    return n;
  }
};

class Parameters : public ParamSource, public GradSink {
 public:
  Parameters(Device&, DecoderConfig);
  ~Parameters() override;

  const DecoderConfig& config() const;
  const std::vector<NamedSlice>& slices() const;  // by offset
  int64_t elements() const;                       // of a flat buffer; the zeros between aligned slices count
  int64_t version() const;                        // grows with every change of the weights

  // Flat float32 buffers of elements() each. All but the masters are made, as zeros, when they are first asked for, as
  // layer() and edge() do.
  Tensor master();
  Tensor gradient();
  Tensor first_moment();
  Tensor second_moment();
  int64_t optimiser_step() const;
  void set_optimiser_step(int64_t step);
  // Counts on from `version` where that is ahead: a policy that goes on elsewhere names its weights as before.
  void raise_version(int64_t version);

  // A tied embedding collects the head's gradient apart from its own, so that both sum over the tokens in their
  // order however the batch is split. This adds it to gradient(), once; call it before gradient() is read.
  void complete_gradients(Stream&) override;
  void zero_gradients(Stream&);
  // Whether gradient() is already the sum over the ranks of a mesh; no more may be added then. Zeroing ends it.
  bool gradients_summed() const;
  void set_gradients_summed(bool);
  // Gradients and moments become zero, the step 0.
  void reset_optimiser(Stream&);

  // Name of the first tensor that holds something not finite in `flat`, one of the buffers above; empty if there is
  // none. Waits for the stream.
  std::string first_non_finite(Stream&, Tensor flat) const;

  // Makes the compute copies from the masters and raises the version. Call after every change.
  void publish(Stream&);
  RopeTable rope() const;

  LayerWeights acquire(Schedule&, int layer) override;
  void release(Schedule&, int layer) override;
  EdgeWeights acquire_edge(Schedule&) override;
  void release_edge(Schedule&) override;
  LayerGradients layer(Schedule&, int layer) override;
  EdgeGradients edge(Schedule&) override;
  void ready(Schedule&, int layer) override;
  void ready_edge(Schedule&) override;
  std::vector<Tensor> bucket(int layer) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Random initialisation: normal(0, std) for matrices, 1 for norms, 0 for biases; `seed` decides every number.
// previous_token_bias > 0 gives the query and key biases of layer 0 the values that make its heads attend to
// fixed relative positions (1, 2, 1, 3, ... per head) under RoPE; it is the amplitude A of the biases, and the
// induction circuit forms from it about ten times faster. The heads stay trainable.
// Publishes; gradients and optimiser state become zero.
struct Initialisation {
  float std = 0.02f;
  uint64_t seed = 0;
  float previous_token_bias = 0.0f;
};
void initialise(Parameters&, Stream&, const Initialisation&);

}  // namespace tokenring
