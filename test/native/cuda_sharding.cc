// Sharding where weights are plain rows that are gathered rounded: a group of one rank on the emulated GPU, which runs
// streams as unordered as CUDA allows and starts memory as NaN, against a rank that holds everything.
#include <vector>

#include "cuda/device.h"
#include "decoder_rig.h"
#include "emulator/runtime.h"
#include "harness.h"
#include "parallel/mesh.h"

namespace tokenring {
namespace {

using emulator::Emulation;

struct Result {
  std::vector<float> weights, logprob;
  std::vector<double> norm;
};

Result train(Device& device, const DecoderConfig& config, Mesh* mesh) {
  Parameters parameters(device, config, mesh);
  TrainerOptions options;
  options.activation_checkpointing = true;
  Trainer trainer(device, parameters, options, mesh);
  const auto stream = device.stream();
  const std::atomic<bool> never{false};
  initialise(parameters, *stream, {0.1f, 3, 0.5f});
  Result result;
  AdamW how;
  how.learning_rate = 1e-2f;
  for (int step = 0; step < 2; ++step) {
    trainer.accumulate(random_batch(config, {21, 1, 40}, 5 + step), PolicyLoss{}, never, step == 0);
    result.norm.push_back(trainer.optimise(how).gradient_norm);
  }
  result.logprob = trainer.score(random_batch(config, {9, 17}, 8), 1.0f, never).logprob;
  const Tensor master = parameters.master();
  result.weights.resize(static_cast<size_t>(master.elements()));
  stream->copy_to_host(result.weights.data(), master.data, master.bytes());
  stream->synchronize();
  return result;
}

}  // namespace

TEST(cuda_sharding_has_the_bits_of_a_rank_that_holds_everything) {
  for (const bool tied : {false, true}) {
    DecoderConfig config = tiny_config(tied);
    config.hidden_size = 64;
    config.head_dim = 64;
    config.num_hidden_layers = 3;
    Result whole;
    {
      Emulation gpu(1);
      const auto device = gpu.device();
      whole = train(*device, config, nullptr);
    }
    for (const int stage : {1, 3})
      for (const uint64_t seed : {1, 2, 3}) {
        Emulation gpu(seed);
        const auto device = gpu.device();
        MeshOptions options;
        options.id = shared_memory().make_id();
        options.shard = stage;
        options.shard_size = 1;
        Mesh mesh(*device, shared_memory(), options);
        mesh.join();
        const Result got = train(*device, config, &mesh);
        if (stage == 1 || !tied) {
          CHECK(got.weights == whole.weights && got.norm == whole.norm && got.logprob == whole.logprob);
        } else {  // the head's part of the embedding's gradient comes first
          CHECK(relative_l2(got.weights, whole.weights) < 1e-3);
        }
      }
  }
}

}  // namespace tokenring
