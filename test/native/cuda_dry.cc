// The GPU that is not there tells what an emulated one holds, and what its kernels say of their workspaces.
#include "cuda/dry.h"

#include "comm/dry.h"
#include "decoder_rig.h"
#include "emulator/runtime.h"
#include "harness.h"
#include "model/plan.h"

namespace tokenring {
namespace {

using cuda::DryGpu;

// Heads for the Hopper kernels; for the plain ones, normed, the head tied.
DecoderConfig hopper_config() {
  DecoderConfig c = tiny_config(false);
  c.hidden_size = 64;
  c.head_dim = 64;
  return c;
}

std::vector<HeldMemory> held_by_step(Device& device, const DecoderConfig& config, TrainerOptions options,
                                     const PackedBatch& batch) {
  Parameters parameters(device, config);
  const std::unique_ptr<Stream> stream = device.stream();
  initialise(parameters, *stream, {});
  Trainer trainer(device, parameters, options);
  const std::atomic<bool> never{false};
  PolicyLoss loss;
  loss.scalars.objective = PolicyObjective::ppo_clip;
  trainer.accumulate(batch, loss, never);
  trainer.optimise({});
  trainer.score(batch, 1.0f, never);
  return device.most_held();
}

TEST(cuda_dry_holds_what_an_emulated_gpu_holds) {
  for (const DecoderConfig& config : {hopper_config(), qwen3_config()})
    for (const bool checkpointing : {false, true})
      for (const std::vector<int32_t>& lengths : {std::vector<int32_t>{21, 12}, {100}}) {
        const PackedBatch batch = random_batch(config, lengths, 5);
        emulator::Emulation real(1);
        const std::unique_ptr<Device> emulated = real.device();
        const std::vector<HeldMemory> measured = held_by_step(*emulated, config, {checkpointing}, batch);
        const DryGpu gpu;
        const std::unique_ptr<Device> device = cuda::make_device(gpu.libraries());
        const std::vector<HeldMemory> told = held_by_step(*device, config, {checkpointing}, batch);
        CHECK(!told.empty() && told.size() == measured.size());
        for (size_t i = 0; i < told.size() && i < measured.size(); ++i) {
          CHECK(told[i].purpose == measured[i].purpose);
          CHECK_NEAR(static_cast<double>(told[i].bytes), static_cast<double>(measured[i].bytes), 0, told[i].purpose);
        }
      }
}

TEST(cuda_dry_has_the_kernels_sizes) {
  const DryGpu gpu;
  const cuda::Kernels& k = *gpu.libraries().kernels;
  for (const int64_t m : {1, 31, 64, 65, 4096, 4097, 100'000}) {
    CHECK(k.rmsnorm_backward_workspace(m, 96) == cuda::rmsnorm_backward_workspace(m, 96));
    CHECK(k.qk_norm_backward_workspace(m, 64) == cuda::qk_norm_backward_workspace(m, 64));
    CHECK(k.sum_of_rows_workspace(m, 96) == cuda::sum_of_rows_workspace(m, 96));
    CHECK(k.embedding_backward_workspace(m) == cuda::embedding_backward_workspace(m));
    CHECK(k.sum_of_squares_workspace(m) == cuda::sum_of_squares_workspace(m));
  }
  CHECK(k.attention_backward_keys() == cuda::attention_backward_keys());
  CHECK(k.attention_dq_rows() == cuda::attention_dq_rows());
  for (const int d : {64, 128}) {
    CHECK(k.attention_forward_rows(d) == cuda::attention_forward_rows(d));
    CHECK(k.attention_backward_queries(d) == cuda::attention_backward_queries(d));
    for (const bool deterministic : {false, true})
      CHECK(k.attention_backward_workspace(7, 5, d, deterministic) ==
            cuda::attention_backward_workspace(7, 5, d, deterministic));
    for (const int keys : {1, 1024, 1025, 4096})
      CHECK(k.attention_decode_workspace(7, 5, d, keys) == cuda::attention_decode_workspace(7, 5, d, keys));
  }
}

TEST(cuda_dry_has_small_blocks_and_zeros_in_large_ones) {
  const DryGpu gpu;
  const std::unique_ptr<Device> device = cuda::make_device(gpu.libraries());
  const std::unique_ptr<Stream> stream = device->stream();
  const Buffer small(*device, 16), large(*device, size_t{1} << 40);  // more than any machine has
  const std::vector<int32_t> from{1, 2, 3, 4};
  std::vector<int32_t> to(4, 9);
  stream->copy_to_device(small.data(), from.data(), 16);
  stream->copy_to_host(to.data(), small.data(), 16);
  CHECK(to == from);
  stream->copy_to_device(static_cast<std::byte*>(large.data()) + 4096, from.data(), 16);
  stream->copy_to_host(to.data(), static_cast<std::byte*>(large.data()) + 4096, 16);
  CHECK(to == std::vector<int32_t>(4, 0));
}

TEST(cuda_dry_plans_each_pass_of_a_step) {
  StepPlanOptions options;
  options.rank.config = hopper_config();
  options.rank.device = "cuda";
  options.lengths = {12, 20};
  options.weight.assign(32, 1.0f);
  options.weight[0] = options.weight[12] = 0;
  options.rank.mesh.emplace();
  options.rank.mesh->size = 4;
  options.rank.mesh->rank = 2;
  const std::atomic<bool> never{false};
  const StepPlan plan = plan_step(options, never);
  const auto count = [](const std::vector<PlannedEntry>& entries, const std::string& op) {
    return std::count_if(entries.begin(), entries.end(), [&](const PlannedEntry& e) { return e.op == op; });
  };
  const int layers = options.rank.config.num_hidden_layers;
  CHECK(count(plan.score, "attention_forward") == layers && count(plan.score, "attention_backward") == 0);
  CHECK(count(plan.accumulate, "attention_backward") == layers && count(plan.accumulate, "all_reduce") == 0);
  // A bucket of each layer, the head and the embedding, behind what computes them.
  CHECK(count(plan.last, "all_reduce") == layers + 2);
  for (const PlannedEntry& e : plan.last)
    if (e.op == "all_reduce") CHECK(e.track == Track::gradients && e.after[0] && e.bytes > 0);
  CHECK(count(plan.optimise, "adamw") == 1);
  CHECK(!plan.memory.empty());
  const std::atomic<bool> aborted{true};
  for (const char* device : {"cuda", "cpu"}) {
    options.rank.device = device;
    CHECK_FAILS("ABORTED", plan_step(options, aborted));
    options.sessions = {7};
    CHECK_FAILS("ABORTED", plan_step(options, aborted));
  }
}

}  // namespace
}  // namespace tokenring
