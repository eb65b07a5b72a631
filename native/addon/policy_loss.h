// The policy loss on JavaScript's tensors: policyLoss(options, loss) of the binding, and its options.
#pragma once

#include <napi.h>

#include "addon/arguments.h"
#include "loss/policy_loss.h"

namespace tokenring::addon {

double check_temperature(double temperature);
// objective, clipLow, clipHigh, dualClip, klCoef, entropyCoef, temperature, chunkRows.
PolicyLoss policy_loss_argument(const Arguments&);

Napi::Value policy_loss(const Napi::CallbackInfo&);

}  // namespace tokenring::addon
