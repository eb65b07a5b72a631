// The head of the policy: from hidden rows to losses and gradients, without the [tokens, vocabulary] matrix.
//
// Only rows that carry loss get logits, and only chunk_rows of them at a time:
//   gather rows -> logits -> (lse, logprob, entropy) -> scalar stage (g = d loss / d logprob, weight included)
//   -> d logits in place -> d rows (scattered back) and d head
// The scalar stage of nll, ppo_clip and cispo needs nothing beyond the token, so both sweeps over the vocabulary are
// one. gspo needs the logprobs of the whole document first: a sweep for them alone comes before, and the logits of
// each chunk are made twice, unless all rows are one chunk.
#pragma once

#include <cstdint>
#include <vector>

#include "core/ops.h"
#include "core/schedule.h"

namespace tokenring {

struct PolicyLoss {
  PolicyScalars scalars;
  float temperature = 1.0f;
  int32_t chunk_rows = 0;  // rows of logits alive at once; 0 = as many as the backend likes (logits_rows)

  void check() const;  // Failure INVALID_ARGUMENT that names the field
};

// The rows that are predicted, ascending, with their lanes. Entry i: the hidden state of packed row row[i]
// predicts token target[i], which is packed row row[i] + 1.
struct LossRows {
  std::vector<int32_t> row, target;
  std::vector<float> weight, advantage, old_logprob, reference_logprob;  // empty for score()
  std::vector<int32_t> begin;  // first entry of each document that has any, and size(); only gspo reads it
  int64_t size() const { return static_cast<int64_t>(row.size()); }
};

// Per entry of LossRows. Filled when the stream has been synchronised; sized by the functions below.
struct LossLanes {
  std::vector<float> logprob, entropy, loss;
  std::vector<int32_t> flags;
};

// Where the head's weight and gradient come from. wgrad adds to `gradient` (f32 [v,h]).
struct PolicyHead {
  const Ops& ops;
  Weight weight;
  Tensor gradient;
};

// Who takes the means of gspo where other ranks hold rows of the same documents.
class SequenceRatios {
 public:
  virtual ~SequenceRatios() = default;
  // logprob and sequence: f32 [rows.size()], empty slots for none; fills `sequence` as Ops::sequence_log_ratio does.
  virtual void add(Schedule&, Slot logprob, Slot sequence) = 0;
};

// Adds loss and gradient to the schedule; returns dhidden [m,h], which the caller releases. hidden [m,h].
// `rows` and `lanes` live until the stream has been synchronised. Bits do not depend on chunk_rows.
// With `ratios`, gspo's means are theirs, else those of the rows here.
Slot policy_loss(Schedule&, const PolicyHead&, const PolicyLoss&, Slot hidden, const LossRows& rows, LossLanes& lanes,
                 SequenceRatios* ratios = nullptr);

// Logprob and entropy only, with the bits that policy_loss() gives.
void policy_score(Schedule&, const PolicyHead&, float temperature, int32_t chunk_rows, Slot hidden,
                  const LossRows& rows, LossLanes& lanes);

}  // namespace tokenring
