// The log ratios of whole documents (gspo) where a context group shares them. Logprobs are few: every rank gets those
// of the group and takes the means itself, in the order and with the bits of one rank that holds everything.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "loss/policy_loss.h"

namespace tokenring {

// `count` consecutive rows, from `own` on on this rank and from `all` on among all of the group's.
struct Run {
  int64_t own, all, count;
};

class ContextSequences : public SequenceRatios {
 public:
  // all: rows of all ranks of the group, of which those of the runs are here. The object outlives the run of the
  // schedules and what they queue.
  ContextSequences(const Ops& ops, Communicator& context, LossRows all, std::vector<Run> runs)
      : ops_(ops), context_(context), all_(std::move(all)), runs_(std::move(runs)) {}

  void add(Schedule&, Slot logprob, Slot sequence) override;

 private:
  const Ops& ops_;
  Communicator& context_;
  LossRows all_;
  std::vector<Run> runs_;
};

}  // namespace tokenring
