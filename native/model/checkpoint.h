// Parameters and AdamW state in a Hugging Face checkpoint directory. config.json is not this file's business.
#pragma once

#include <string>

#include "core/tensor.h"

namespace tokenring {

class Parameters;
class Stream;

// Reads model.safetensors, or the shards that model.safetensors.index.json names (f32, bf16 or f16), and publishes;
// gradients and AdamW state become zero. Failure CHECKPOINT names the file and the tensor that is missing, unknown
// or of another shape or dtype, or holds something not finite, or a tied head that differs from the embedding; that is
// found out before anything changes.
void load_parameters(Parameters&, Stream&, const std::string& directory);

// Bytes of tensors that one file holds unless told otherwise: what transformers 4 writes.
constexpr int64_t kShardBytes = 5'000'000'000;

// Writes <directory>/model.safetensors in f32 or bf16 (round to nearest even) under the Hugging Face names; where the
// tensors come to more than `shard_bytes`, model-0000i-of-0000n.safetensors and model.safetensors.index.json instead.
// The directory exists. Every file appears whole or not at all, and what an earlier save left of the other form, or
// of more shards, is removed at the end. Weights that are not finite are not written, lest they take the
// place of the last good ones: NON_FINITE names them.
void save_parameters(Parameters&, Stream&, const std::string& directory, DType dtype,
                     int64_t shard_bytes = kShardBytes);

// <directory>/optimizer.safetensors: exp_avg.* and exp_avg_sq.* in f32, as metadata the number of steps taken and the
// version of the weights, from which a load counts on.
void save_optimiser(Parameters&, Stream&, const std::string& directory);
void load_optimiser(Parameters&, Stream&, const std::string& directory);

}  // namespace tokenring
