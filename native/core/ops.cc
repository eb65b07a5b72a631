#include "core/ops.h"

#include <cmath>

namespace tokenring {

void PolicyScalars::check() const {
  require(objective == PolicyObjective::nll || objective == PolicyObjective::ppo_clip ||
              objective == PolicyObjective::gspo || objective == PolicyObjective::cispo,
          "loss: objective ", static_cast<int>(objective), " is unknown");
  require(clip_low >= 0 && clip_low <= 1, "loss: clip_low is ", clip_low, "; it must be between 0 and 1");
  require(std::isfinite(clip_high) && clip_high >= 0, "loss: clip_high is ", clip_high, "; it must not be negative");
  require(dual_clip == 0 || (std::isfinite(dual_clip) && dual_clip > 1), "loss: dual_clip is ", dual_clip,
          "; it must be 0 (off) or above 1");
  require(dual_clip == 0 || objective == PolicyObjective::ppo_clip,
          "loss: dual_clip bounds the objective ppo_clip only; leave it at 0 with the others");
  require(std::isfinite(kl_coef) && kl_coef >= 0, "loss: kl_coef is ", kl_coef, "; it must not be negative");
  require(std::isfinite(entropy_coef) && entropy_coef >= 0, "loss: entropy_coef is ", entropy_coef,
          "; it must not be negative");
}

}  // namespace tokenring
