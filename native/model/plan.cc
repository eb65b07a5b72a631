#include "model/plan.h"

#include "comm/dry.h"
#include "cuda/dry.h"
#include "model/parameters.h"

namespace tokenring {

StepPlan plan_step(const StepPlanOptions& options, const std::atomic<bool>& aborted) {
  options.config.check();
  const cuda::DryGpu gpu;
  const auto device = cuda::make_device(gpu.libraries());
  Mesh mesh(*device, dry_transport(), options.mesh);
  mesh.join();
  Parameters parameters(*device, options.config, &mesh, options.moments);
  Trainer trainer(*device, parameters, options.trainer, &mesh);

  std::vector<PlannedEntry>* into = nullptr;
  device->on_schedule = [&](const Schedule& schedule) {
    for (const Entry& e : schedule.entries())
      if (into) into->push_back({e.op, e.layer, e.track, e.after, e.bytes, e.flops});
  };
  PackedBatch batch;
  batch.lengths = options.lengths;
  batch.weight = options.weight;
  batch.tokens.resize(options.weight.size());
  batch.advantage.resize(options.weight.size(), 1.0f);
  batch.old_logprob.resize(options.weight.size());
  PolicyLoss loss;
  loss.scalars.objective = PolicyObjective::ppo_clip;

  StepPlan plan;
  into = &plan.accumulate;
  trainer.accumulate(batch, loss, aborted);
  into = &plan.last;
  trainer.accumulate(batch, loss, aborted, true);
  into = &plan.optimise;
  trainer.optimise({});
  // AdamW is no entry of a schedule: it reads four float32 buffers of the rank's share and writes them (in eight bits,
  // two of them are a byte an element), then makes the copies in bf16, which at stage 1 every rank has of the whole
  // model.
  const int64_t bytes = options.moments == MomentForm::eight_bit ? 26 : 38;
  plan.optimise.push_back({"adamw", -1, Track::compute, {}, bytes * parameters.elements(), 0});
  if (options.mesh.shard == 1) {
    const int64_t whole = Layout(options.config).elements;
    plan.optimise.push_back({"all_gather", -1, Track::gradients, {true, false, false}, 2 * whole, 0});
  }
  into = &plan.score;
  trainer.score(batch, 1.0f, aborted);
  plan.memory = device->most_held();
  return plan;
}

}  // namespace tokenring
