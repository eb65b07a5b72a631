#include "addon/plan.h"

#include "addon/arguments.h"
#include "addon/engine.h"
#include "addon/rank.h"
#include "addon/results.h"

namespace tokenring::addon {

Napi::Value plan_step(const Napi::CallbackInfo& info) {
  // The shared-memory limit of ranks is none here: they are not there.
  constexpr int32_t kMostRanks = 1 << 20;
  return guarded(info.Env(), [&] {
    const Arguments from(info[0], "options");
    StepPlanOptions options;
    options.rank = read_rank_options(from);
    options.rank.mesh = read_mesh_shape(from.object("mesh"), kMostRanks);
    options.lengths = from.integers("lengths");
    options.weight = from.reals("weight");
    options.training = from.boolean("training");
    options.sessions = from.integers("sessions");
    return Engine::of(info.Env())
        .submit<StepPlan>(info.Env(), std::make_shared<Held>(),
                          [options = std::move(options)](Compute&, const std::atomic<bool>& aborted) {
                            return tokenring::plan_step(options, aborted);
                          });
  });
}

}  // namespace tokenring::addon
