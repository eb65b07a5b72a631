// Parameters and AdamW state in a Hugging Face checkpoint directory. config.json is not this file's business.
#pragma once

#include <string>

#include "core/tensor.h"

namespace tokenring {

class Parameters;
class Stream;

// Reads model.safetensors, or the shards that model.safetensors.index.json names (f32, bf16 or f16), and publishes;
// gradients and AdamW state become zero. Failure CHECKPOINT names the file and the tensor that is missing, unknown
// or of another shape or dtype; that is found out before anything changes.
void load_parameters(Parameters&, Stream&, const std::string& directory);

// Writes <directory>/model.safetensors in f32 or bf16 (round to nearest even) under the Hugging Face names. The
// directory exists. The file appears whole or not at all.
void save_parameters(Parameters&, Stream&, const std::string& directory, DType dtype);

// <directory>/optimizer.safetensors: exp_avg.* and exp_avg_sq.* in f32, the number of steps taken as metadata.
void save_optimiser(Parameters&, Stream&, const std::string& directory);
void load_optimiser(Parameters&, Stream&, const std::string& directory);

}  // namespace tokenring
