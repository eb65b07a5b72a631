#include "model/rows.h"

namespace tokenring {

RankRows rank_rows(const PackedBatch& batch, const Shard& shard, bool every) {
  std::vector<int64_t> begin(batch.lengths.size());  // token of the batch that each document begins with
  for (size_t d = 1; d < begin.size(); ++d) begin[d] = begin[d - 1] + batch.lengths[d - 1];
  RankRows rows;
  LossRows& loss = rows.loss;
  int32_t document = -1;  // of the last entry
  const auto lane = [](const std::vector<float>& of, size_t token) { return of.empty() ? 0.0f : of[token]; };
  for (const Segment& segment : shard) {
    for (int32_t i = 0; i < segment.length; ++i) {
      const int32_t position = segment.position + i, row = static_cast<int32_t>(rows.tokens.size());
      const size_t token = static_cast<size_t>(begin[segment.document] + position), next = token + 1;
      rows.tokens.push_back(batch.tokens[token]);
      rows.positions.push_back(position);
      if (position + 1 == batch.lengths[segment.document]) continue;  // the last predicts nothing that is there
      if (!every && lane(batch.weight, next) == 0.0f) continue;
      if (segment.document != document) loss.begin.push_back(static_cast<int32_t>(loss.row.size()));
      document = segment.document;
      rows.token.push_back(static_cast<int32_t>(next));
      loss.row.push_back(row);
      loss.target.push_back(batch.tokens[next]);
      if (every) continue;
      loss.weight.push_back(batch.weight[next]);
      loss.advantage.push_back(lane(batch.advantage, next));
      loss.old_logprob.push_back(lane(batch.old_logprob, next));
      loss.reference_logprob.push_back(lane(batch.reference_logprob, next));
    }
  }
  loss.begin.push_back(static_cast<int32_t>(loss.row.size()));
  return rows;
}

std::vector<Run> runs_of(const RankRows& part, const RankRows& all) {
  std::vector<Run> runs;
  int64_t at = 0;
  for (int64_t i = 0; i < part.loss.size(); ++i, ++at) {
    const bool follows = at < all.loss.size() && all.token[at] == part.token[i] && i > 0;
    while (all.token[at] != part.token[i]) ++at;
    if (follows)
      ++runs.back().count;
    else
      runs.push_back({i, at, 1});
  }
  return runs;
}

}  // namespace tokenring
