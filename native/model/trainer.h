// Forward, backward and optimiser step of a decoder on one rank. Called on the engine thread only.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/ops.h"
#include "loss/policy_loss.h"
#include "model/batch.h"
#include "model/config.h"
#include "optim/adamw.h"

namespace tokenring {

class Mesh;        // parallel/mesh.h
class Parameters;  // model/parameters.h: float32 master, compute copies, gradients, AdamW state

// Sums over the batch's rows with weight != 0, and the per-token lanes (aligned with tokens; 0 where no loss).
struct LossResult {
  LossResult() = default;
  explicit LossResult(size_t tokens) : logprob(tokens), entropy(tokens), flags(tokens) {}
  double loss = 0;
  std::vector<float> logprob, entropy;
  std::vector<int32_t> flags;  // 1 clipped low, 2 clipped high, 3 dual clip
};

struct OptimiserResult {
  double gradient_norm = 0;  // before clipping
  int64_t step = 0, version = 0;
};

struct TrainerOptions {
  // Keep the inputs of the layers and what attention gave, and compute the rest again in the backward pass: less
  // memory a token, about a quarter more products, the same bits.
  bool activation_checkpointing = false;
  // Put those in memory of the host between the forward and the backward pass of their layer: the device then holds
  // them for two layers at a time. The same bits.
  bool offload_checkpoints = false;
  // Elements of a part of the optimiser's state, where that lies in the host's memory (Parameters::on_host()).
  int64_t optimiser_part = int64_t{1} << 22;
  // A Chrome trace to add every call's entries to (core/trace.h); empty: none.
  std::string trace = {};
};

// On a mesh every rank makes the same calls in the same order, though with batches of its own. A failure of one rank in
// accumulate(), score() or optimise() breaks the mesh: the others fail with COMMUNICATOR and its cause, in the same
// call or at the latest in optimise(), before their weights change. Gradients that are not finite once they are summed
// are seen by all alike, with NON_FINITE on each, and leave the mesh whole.
class Trainer {
 public:
  // `mesh` has joined before any call; null: one rank alone.
  Trainer(Device&, Parameters&, TrainerOptions = {}, Mesh* mesh = nullptr);
  ~Trainer();
  // Adds the batch's gradients to what is accumulated. Any failure after the checks of its arguments drops all
  // gradients: ABORTED (seen between two layers), or NON_FINITE, which names the lane, tensor or token at fault.
  // On a mesh the batch may be empty; and with `last`, which says that no other comes before optimise(), gradients are
  // summed over the ranks while the backward pass still runs, to the bits that optimise() would give.
  LossResult accumulate(const PackedBatch&, const PolicyLoss&, const std::atomic<bool>& aborted, bool last = false);
  // Logprob and entropy of every token that has a prediction, in the bits that accumulate gives; no gradients.
  // NON_FINITE as above, but nothing is dropped.
  LossResult score(const PackedBatch&, float temperature, const std::atomic<bool>& aborted);
  // One AdamW step from the accumulated gradients, which become zero; new compute copies; version + 1.
  // NON_FINITE names the step and the first gradient that is not finite, with the gradients dropped and the weights
  // as before; or the first weight that the step made not finite, with the weights lost. On a mesh the result is the
  // same on all ranks, and COMMUNICATOR names a rank whose step, weights or options are not those of the others.
  OptimiserResult optimise(const AdamW&);
  void drop_gradients();
  // As for a policy that was just loaded: no gradients, zero moments, step 0. The weights stay.
  void reset_optimiser();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tokenring
