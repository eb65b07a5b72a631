// Packed documents with their per-token lanes, as the trainer takes them.
#pragma once

#include <cstdint>
#include <vector>

namespace tokenring {

// Token i of a document carries the weight, the advantage and the behaviour logprob of token i itself (the
// token as predicted from those before it). The first token of a document has no prediction: weight 0.
// Lanes may be empty: `weight` empty = all zero (forward only), `advantage` and `old_logprob` empty for nll,
// `reference_logprob` empty without a KL term.
struct PackedBatch {
  std::vector<int32_t> tokens;   // all documents, one after the other
  std::vector<int32_t> lengths;  // of each document; they sum to tokens.size()
  std::vector<float> weight;     // 0 = carries no loss; any aggregation is made of these
  std::vector<float> advantage;
  std::vector<float> old_logprob;        // under the policy that sampled
  std::vector<float> reference_logprob;  // under the policy to stay near

  // Failure INVALID_ARGUMENT that names the entry; a batch without tokens only where `may_be_empty`.
  void check(int32_t vocab_size, int32_t max_positions, bool may_be_empty = false) const;

  // The same documents in order, in batches of about `tokens` (0: one batch): half of it to all of it where documents
  // are short, and a multiple of `unit`, except for the last.
  std::vector<PackedBatch> parts(int64_t tokens, int64_t unit) const;
};

}  // namespace tokenring
