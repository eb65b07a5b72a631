#include "model/batch.h"

#include "core/failure.h"

namespace tokenring {

void PackedBatch::check(int32_t vocab_size, int32_t max_positions, bool may_be_empty) const {
  require(may_be_empty || !tokens.empty(), "batch: tokens is empty");
  int64_t sum = 0;
  for (size_t d = 0; d < lengths.size(); ++d) {
    require(lengths[d] > 0, "batch: lengths[", d, "] is ", lengths[d], "; a document has at least one token");
    require(lengths[d] <= max_positions, "batch: document ", d, " has ", lengths[d],
            " tokens, more than the model's context (", max_positions, ")");
    sum += lengths[d];
  }
  require(sum == static_cast<int64_t>(tokens.size()), "batch: lengths sum to ", sum, " but there are ", tokens.size(),
          " tokens");
  for (size_t i = 0; i < tokens.size(); ++i) {
    require(tokens[i] >= 0 && tokens[i] < vocab_size, "batch: tokens[", i, "] is ", tokens[i],
            ", outside the vocabulary of ", vocab_size);
  }
  const auto lane = [&](const char* name, const std::vector<float>& values) {
    require(values.empty() || values.size() == tokens.size(), "batch: ", name, " has ", values.size(), " entries for ",
            tokens.size(), " tokens; give one a token, or none");
  };
  lane("weight", weight);
  lane("advantage", advantage);
  lane("old_logprob", old_logprob);
  lane("reference_logprob", reference_logprob);
  if (weight.empty()) return;
  size_t first = 0;
  for (size_t d = 0; d < lengths.size(); first += static_cast<size_t>(lengths[d]), ++d) {
    require(weight[first] == 0.0f, "batch: weight[", first, "] is ", weight[first], " but token ", first,
            " is the first of document ", d, ", which nothing predicts; set it to 0");
  }
}

std::vector<PackedBatch> PackedBatch::parts(int64_t tokens, int64_t unit) const {
  std::vector<PackedBatch> parts;
  size_t document = 0, token = 0;
  while (document < lengths.size()) {
    const size_t first = document, from = token;
    const auto taken = [&] { return static_cast<int64_t>(token - from); };
    const auto full = [&] {
      return tokens > 0 && taken() % unit == 0 && 2 * taken() >= tokens && taken() + lengths[document] > tokens;
    };
    do {
      token += static_cast<size_t>(lengths[document++]);
    } while (document < lengths.size() && !full());
    const auto part = [&](const auto& lane) {
      return lane.empty() ? lane : std::decay_t<decltype(lane)>(lane.begin() + from, lane.begin() + token);
    };
    parts.push_back({.tokens = part(this->tokens),
                     .lengths = {lengths.begin() + first, lengths.begin() + document},
                     .weight = part(weight),
                     .advantage = part(advantage),
                     .old_logprob = part(old_logprob),
                     .reference_logprob = part(reference_logprob)});
  }
  return parts;
}

}  // namespace tokenring
