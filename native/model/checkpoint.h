// Parameters and AdamW state in a Hugging Face checkpoint directory. config.json is not this file's business.
//
// The files know nothing of ranks: every rank reads and writes its own slices of the tensors, in whatever way they are
// cut. So what one mesh has saved, any other loads, and so does one rank, or another tool.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/tensor.h"

namespace tokenring {

class Parameters;
class Stream;

// Reads model.safetensors, or the shards that model.safetensors.index.json names (f32, bf16 or f16), and publishes;
// gradients and AdamW state become zero. Failure CHECKPOINT names the file and the tensor that is missing, unknown
// or of another shape or dtype, or holds something not finite, or a tied head that differs from the embedding; that is
// found out before anything changes. On a mesh all ranks load, and fail, together.
void load_parameters(Parameters&, Stream&, const std::string& directory);

// Bytes of tensors that one file holds unless told otherwise: what transformers 4 writes.
constexpr int64_t kShardBytes = 5'000'000'000;

// What save() writes: <directory>/model.safetensors in f32 or bf16 (round to nearest even) under the Hugging Face
// names; where the tensors come to more than `shard_bytes`, model-0000i-of-0000n.safetensors and
// model.safetensors.index.json instead. With `optimiser` also optimizer.safetensors, and that index in any case:
// exp_avg.* and exp_avg_sq.* in f32, from moments in eight bits too, which become the same eight bits when they are
// loaded, as metadata the number of steps taken and the version of the weights, from which a load counts on.
struct SaveOptions {
  DType dtype = DType::f32;
  int64_t shard_bytes = kShardBytes;
  bool weights = true, optimiser = false;
};

// A save by the ranks of a mesh, or by one alone: each rank write()s its slices, to files that have not got their names
// yet; when all have, one of them commit()s. Until then an older checkpoint in the directory is as it was. The
// directory is made if it must be, and all ranks see it.
class Save {
 public:
  // `copy`: takes a copy to host memory, 4 bytes for each parameter of this rank's share, 12 with the optimiser; then
  // write() may run on another thread, while training goes on. Else it reads the parameters, a part at a time. Ranks
  // that hold the same share divide it between them.
  Save(Parameters&, Stream&, SaveOptions, bool copy);
  ~Save();

  // `token`: what the ranks of this save, and no other save into the directory, have in common. What is not finite is
  // not written, lest it take the place of the last good weights: NON_FINITE names it. CHECKPOINT where a file cannot
  // be written; what this rank has written is removed then.
  void write(const std::string& directory, const std::string& token) const;
  // Gives the files their names, then removes what an earlier save left of the other form, or of more shards.
  void commit(const std::string& directory, const std::string& token) const;
  // Removes the files instead.
  void discard(const std::string& directory, const std::string& token) const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The whole of it; on a mesh all ranks save, and fail, together.
void save(Parameters&, Stream&, const std::string& directory, const SaveOptions&);
void save_parameters(Parameters&, Stream&, const std::string& directory, DType dtype,
                     int64_t shard_bytes = kShardBytes);
void save_optimiser(Parameters&, Stream&, const std::string& directory);

// Failures as of load_parameters().
void load_optimiser(Parameters&, Stream&, const std::string& directory);

}  // namespace tokenring
