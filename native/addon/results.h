// Native results as fresh JavaScript values; typed arrays are copies.
#pragma once

#include <napi.h>

#include <vector>

#include "model/plan.h"
#include "model/sampler.h"
#include "model/trainer.h"

namespace tokenring::addon {

struct Nothing {};

struct Version {
  int64_t version = 0;
};

// When each was most.
struct MostHeld {
  std::vector<HeldMemory> device, host;
};

Napi::Value to_js(Napi::Env, const Nothing&);  // undefined
Napi::Value to_js(Napi::Env, const int64_t&);
Napi::Value to_js(Napi::Env, const double&);
Napi::Value to_js(Napi::Env, const Version&);
Napi::Value to_js(Napi::Env, const LossResult&);
Napi::Value to_js(Napi::Env, const OptimiserResult&);
Napi::Value to_js(Napi::Env, const SampleResult&);
Napi::Value to_js(Napi::Env, const MostHeld&);
Napi::Value to_js(Napi::Env, const StepPlan&);
Napi::Value to_js(Napi::Env, const Sampler::Usage&);

}  // namespace tokenring::addon
