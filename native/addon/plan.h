// planStep(options) of the binding: model/plan.h.
#pragma once

#include <napi.h>

namespace tokenring::addon {

Napi::Value plan_step(const Napi::CallbackInfo&);

}  // namespace tokenring::addon
