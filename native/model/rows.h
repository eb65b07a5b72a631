// The rows of a packed batch that a rank computes, and what they predict.
#pragma once

#include <cstdint>
#include <vector>

#include "loss/policy_loss.h"
#include "model/batch.h"
#include "parallel/context_sequences.h"
#include "parallel/shard.h"

namespace tokenring {

struct RankRows {
  std::vector<int32_t> tokens, positions;  // of each row
  // Lanes are aligned with the tokens that they are about; the row before such a token, on whatever rank it lies,
  // predicts it. So shards are cut from rows that know their label, and nothing is lost at an edge.
  LossRows loss;
  std::vector<int32_t> token;  // of the batch, which each entry of `loss` is about
};

// Rows of the shard, whose documents are those of the batch. `every`: all tokens that have a prediction, without lanes
// but the target; otherwise those of weight != 0.
RankRows rank_rows(const PackedBatch&, const Shard&, bool every);

// Where the entries of `part` stand among those of `all`, of which it is some.
std::vector<Run> runs_of(const RankRows& part, const RankRows& all);

}  // namespace tokenring
