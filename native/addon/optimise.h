// AdamW and the gradient norm on JavaScript's tensors: adamw(...) and gradientNorm(...) of the binding.
#pragma once

#include <napi.h>

#include "addon/arguments.h"
#include "optim/adamw.h"

namespace tokenring::addon {

// learningRate, beta1, beta2, epsilon, weightDecay, clipNorm.
AdamW adamw_argument(const Arguments&);

Napi::Value adamw(const Napi::CallbackInfo&);
Napi::Value gradient_norm(const Napi::CallbackInfo&);

}  // namespace tokenring::addon
