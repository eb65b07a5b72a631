// The parameters of a decoder on one rank: float32 masters, the compute copies made of them, gradients and AdamW
// state; all of them, or on a mesh that shards (ZeRO, arXiv 1910.02054) this rank's share:
//
//  stage 1: masters and AdamW state are this rank's share; copies and gradients are whole. Gradients are summed over
//           the ranks into the share, and what the step has made of the masters is gathered into the copies.
//  stage 3: copies and gradients are whole for two layers at a time (model/weights.h, model/gradients.h).
//
// Masters and AdamW state may lie in the host's memory (pinned), of all of them or of the share: ops then reach them at
// the speed of the link, and an optimiser's step takes them through the device in parts (optim/streamed.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/seams.h"
#include "model/config.h"
#include "model/layout.h"
#include "optim/adamw.h"

namespace tokenring {

class Mesh;  // parallel/mesh.h

class Parameters : public ParamSource, public GradSink {
 public:
  // `mesh` has joined before anything is published or summed; null: one rank alone. Moments in eight bits have the same
  // codes however they are shared: no share cuts one of their blocks. `on_host`: where masters and moments lie. Failure
  // INVALID_ARGUMENT on a device that computes with the masters themselves.
  Parameters(Device&, DecoderConfig, Mesh* mesh = nullptr, MomentForm moments = MomentForm::float32,
             bool on_host = false);
  ~Parameters() override;

  const DecoderConfig& config() const;
  int stage() const;     // 0: not sharded
  bool on_host() const;  // masters and moments
  const std::vector<NamedSlice>& slices() const;
  // What this rank has of them in its flat buffers: each slice as a whole, at its offset, unless they are sharded.
  const std::vector<Fragment>& fragments() const;
  // How many ranks of the mesh hold this very share, and which of them this one is.
  int holders() const;
  int holder() const;
  bool is_first() const;     // rank 0 of the mesh, or alone
  int64_t elements() const;  // of a flat buffer; the zeros between aligned slices count
  int64_t version() const;   // grows with every change of the weights

  // Flat float32 buffers of elements() each. All but the masters are made, as zeros, when they are first asked for:
  // gradients by a backward pass (layer(), head() and embedding() do so too), moments by the first step. Sharded,
  // gradient() holds sums over ranks alone.
  Tensor master();
  Tensor gradient();
  bool has_moments() const;  // else they are zero
  Tensor first_moment();
  Tensor second_moment();
  // All of them; the gradient where there is one. Moments in eight bits are u8 buffers, here and above, with the scales
  // of their blocks.
  OptimiserState optimiser_state();
  int64_t optimiser_step() const;
  void set_optimiser_step(int64_t step);
  // Counts on from `version` where that is ahead: a policy that goes on elsewhere names its weights as before.
  void raise_version(int64_t version);

  // A tied embedding collects the head's gradient apart from its own, so that both sum over the tokens in their
  // order however the batch is split. This adds it to its own, once; call it before gradient() is read.
  void complete_gradients(Stream&) override;
  void zero_gradients(Stream&);
  // The step has left gradient() as zeros: so becomes what else was collected for it.
  void finish_step(Stream&);
  // Whether gradient() is already the sum over the ranks of a mesh; no more may be added then. Zeroing ends it.
  bool gradients_summed() const;
  void set_gradients_summed(bool);
  // Gradients and moments become zero, the step 0.
  void reset_optimiser(Stream&);

  // Name of the first tensor that holds something not finite in `flat`, one of the buffers above; empty if there is
  // none. Waits for the stream. `everywhere`: in no rank's share; collective, the same on all.
  std::string first_non_finite(Stream&, Tensor flat, bool everywhere = false) const;
  // The sum of what the ranks of the shard group say about their shares, in their order. Collective.
  double sum_over_shares(double mine) const;

  // Runs what may fail on one rank of a mesh and not on another, before they go on together: if it fails on any, it
  // fails on all, with the cause of the first. Collective.
  void agree(const std::function<void()>& work) const;
  // What rank 0 of the mesh says. Collective.
  int64_t of_first(int64_t mine) const;

  // Makes the compute copies from the masters and raises the version. Call after every change. Collective at stage 1.
  // `rounded`: all of them went through round() since.
  void publish(Stream&, bool rounded = false);
  // With on_host(): takes new masters from number `offset` on, which lie on the device.
  void round(Stream&, int64_t offset, Tensor weights);
  RopeTable rope() const;

  Tensor acquire_embedding(Schedule&) override;
  void release_embedding(Schedule&) override {}
  LayerWeights acquire(Schedule&, int layer) override;
  void release(Schedule&, int) override {}
  HeadWeights acquire_head(Schedule&) override;
  void release_head(Schedule&) override {}
  HeadGradients head(Schedule&) override;
  void ready_head(Schedule&) override;
  LayerGradients layer(Schedule&, int layer) override;
  void ready(Schedule&, int layer) override;
  Tensor embedding(Schedule&) override;
  void ready_embedding(Schedule&) override;
  std::vector<Bucket> buckets(int unit) override;

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
  int threads = 0;  // that make the numbers, which do not depend on it; 0: as many as the machine has
};
void initialise(Parameters&, Stream&, const Initialisation&);

}  // namespace tokenring
