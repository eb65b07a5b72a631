// Attention on JavaScript's tensors: one block here, all ranks through the communicator.
#pragma once

#include <napi.h>

#include <vector>

#include "addon/operands.h"
#include "core/ops.h"
#include "parallel/shard.h"

namespace tokenring::addon {

// The tensors of one attention call, with the heads flattened into rows: q [tokens, heads * head_dim] and so on.
struct AttentionOperands {
  AttentionHeads heads;
  Tensor q, k, v, out, lse;
  Tensor dout, dq, dk, dv;  // backward only

  // `keys_like_queries`: there are as many keys as queries, as where a rank holds both of the same tokens.
  AttentionOperands(Operands&, bool backward, bool keys_like_queries);
};

// A list of segments: an Int32Array of (document, position, length) triples.
Shard shard_argument(const Arguments& from, const char* field);
std::vector<Shard> shards_argument(const Arguments& from, const char* field);

HeadRows head_rows(const Tensor&);

// attention(options) and attentionBackward(options) of the binding.
Napi::Value attention(const Napi::CallbackInfo&);
Napi::Value attention_backward(const Napi::CallbackInfo&);

}  // namespace tokenring::addon
