#include "model/plan.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>

#include "comm/dry.h"
#include "core/random.h"
#include "cuda/dry.h"
#include "model/parameters.h"
#include "model/sampler.h"

namespace tokenring {

namespace {

// A device that is not there, and what it needs to be so.
struct DryDevice {
  explicit DryDevice(const RankOptions& options) {
    if (options.device == "cpu") {
      device = make_dry_cpu_device(options.threads, options.precision);
      return;
    }
    require(options.device == "cuda", "device must be \"cpu\" or \"cuda\", got \"", options.device, "\"");
    gpu.emplace();
    device = cuda::make_device(gpu->libraries(), options.deterministic);
  }
  std::optional<cuda::DryGpu> gpu;
  std::unique_ptr<Device> device;
};

// Reads the sessions, and samples a token of each. They share no prefix.
void sample(Sampler& sampler, const DecoderConfig& config, const std::vector<int32_t>& sessions,
            const std::atomic<bool>& aborted) {
  // The sampler ends what an abort leaves open, later than this function.
  const auto failed = std::make_shared<std::exception_ptr>();
  for (size_t s = 0; s < sessions.size(); ++s) {
    std::vector<int32_t> tokens(static_cast<size_t>(std::max(sessions[s] - 1, 1)));
    for (size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<int32_t>(random_bits(s, i) % static_cast<uint64_t>(config.vocab_size));
    const int64_t id = sampler.open();
    sampler.extend(id, tokens.data(), tokens.size());
    sampler.sample(id, {}, [failed](SampleResult, std::exception_ptr error) {
      if (error && !*failed) *failed = error;
    });
  }
  while (sampler.busy() && !*failed) {
    if (aborted) fail("ABORTED", "the computation was aborted by its caller");
    sampler.tick();
  }
  if (*failed) std::rethrow_exception(*failed);
}

}  // namespace

StepPlan plan_step(const StepPlanOptions& options, const std::atomic<bool>& aborted) {
  const RankOptions& rank = options.rank;
  rank.check();
  const DryDevice dry(rank);
  Device& device = *dry.device;
  std::optional<Mesh> among;
  if (rank.mesh && rank.mesh->size > 1) among.emplace(device, dry_transport(), rank.mesh->with_real_shares()).join();
  Mesh* mesh = among ? &*among : nullptr;
  Parameters parameters(device, rank.config, mesh, rank.moments, rank.offload_optimiser);
  Trainer trainer(device, parameters, rank.trainer, mesh);
  Sampler sampler(device, parameters, rank.sampler);

  StepPlan plan;
  sample(sampler, rank.config, options.sessions, aborted);
  std::vector<PlannedEntry>* into = nullptr;
  device.on_schedule = [&](const Schedule& schedule) {
    for (const Entry& e : schedule.entries()) into->push_back({e.op, e.layer, e.track, e.after, e.bytes, e.flops});
  };
  PackedBatch batch;
  batch.lengths = options.lengths;
  batch.weight = options.weight;
  batch.tokens.resize(options.weight.size());
  batch.advantage.resize(options.weight.size(), 1.0f);
  batch.old_logprob.resize(options.weight.size());
  PolicyLoss loss;
  loss.scalars.objective = PolicyObjective::ppo_clip;

  if (options.training && !batch.lengths.empty()) {
    into = &plan.accumulate;
    trainer.accumulate(batch, loss, aborted);
    into = &plan.last;
    trainer.accumulate(batch, loss, aborted, true);
    into = &plan.optimise;
    trainer.optimise({});
    // AdamW is no entry of a schedule: it reads four float32 buffers of the rank's share and writes them (in eight
    // bits, two of them are a byte an element), then makes the copies in bf16, which at stage 1 every rank has of the
    // whole model.
    const bool coded = rank.moments == MomentForm::eight_bit;
    const int64_t bytes = coded ? 26 : 38;
    // What lies on the host goes there and back at once: a master and its moments each way.
    if (parameters.on_host())
      plan.optimise.push_back({"copy_to_device", -1, Track::host, {}, (coded ? 6 : 12) * parameters.elements(), 0});
    plan.optimise.push_back({"adamw", -1, Track::compute, {}, bytes * parameters.elements(), 0});
    if (parameters.on_host()) plan.optimise.push_back({"wait", -1, Track::compute, {false, false, false, true}, 0, 0});
    if (parameters.stage() == 1) {
      const int64_t whole = Layout(rank.config).elements;
      plan.optimise.push_back({"all_gather", -1, Track::gradients, {true, false, false}, 2 * whole, 0});
    }
  }
  if (!batch.lengths.empty()) {
    into = &plan.score;
    trainer.score(batch, 1.0f, aborted);
  }
  plan.memory = device.most_held();
  plan.host = device.most_held_of_host();
  device.on_schedule = nullptr;
  return plan;
}

}  // namespace tokenring
