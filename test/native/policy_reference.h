// Tokens on all sides of every clip, and what the formulas of PolicyObjective and PolicyScalars (core/ops.h) say of
// them in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/ops.h"

namespace policy_reference {

using tokenring::PolicyObjective;
using tokenring::PolicyScalars;

// Every objective, plain and with what can be added to it.
inline std::vector<PolicyScalars> variants() {
  std::vector<PolicyScalars> all;
  for (const PolicyObjective objective :
       {PolicyObjective::nll, PolicyObjective::ppo_clip, PolicyObjective::gspo, PolicyObjective::cispo}) {
    all.push_back({.objective = objective, .clip_low = 0.2f, .clip_high = 0.28f});
    all.push_back(
        {.objective = objective, .clip_low = 0.2f, .clip_high = 0.28f, .kl_coef = 0.3f, .entropy_coef = 0.7f});
  }
  all.push_back({.objective = PolicyObjective::ppo_clip, .clip_low = 0.2f, .clip_high = 0.1f, .dual_clip = 1.2f});
  all.push_back({.objective = PolicyObjective::gspo, .clip_low = 0.02f, .clip_high = 0.02f});
  all.push_back({.objective = PolicyObjective::cispo, .clip_low = 1.0f, .clip_high = 4.0f});  // an upper bound alone
  return all;
}

// What is constant under differentiation is taken at `now`. Logarithms of ratios are bounded as the kernels bound them.
struct Token {
  double now, weight, old, advantage, sequence, reference, entropy;
};

inline double ratio(double log_ratio) { return std::exp(std::clamp(log_ratio, -20.0, 20.0)); }

inline double objective(const PolicyScalars& p, const Token& t, double lp) {
  const double low = 1.0 - p.clip_low, high = 1.0 + p.clip_high, a = t.advantage;
  if (p.objective == PolicyObjective::nll) return -t.weight * lp;
  if (p.objective == PolicyObjective::cispo) return -t.weight * std::clamp(ratio(t.now - t.old), low, high) * a * lp;
  const double r = ratio(p.objective == PolicyObjective::gspo ? t.sequence + lp - t.now : lp - t.old);
  double gain = std::min(r * a, std::clamp(r, low, high) * a);
  if (p.dual_clip > 0 && a < 0) gain = std::max(gain, p.dual_clip * a);
  return -t.weight * gain;
}

inline double kl(const PolicyScalars& p, const Token& t, double lp) {
  const double d = std::clamp(t.reference - lp, -20.0, 20.0);
  return t.weight * p.kl_coef * (std::exp(d) - d - 1.0);
}

inline double loss(const PolicyScalars& p, const Token& t) {
  return objective(p, t, t.now) + kl(p, t, t.now) - t.weight * p.entropy_coef * t.entropy;
}

// d loss / d logprob by central differences, of each term alone: beyond the limit the KL term is a huge constant.
inline double slope(const PolicyScalars& p, const Token& t) {
  const double step = 1e-6, up = t.now + step, down = t.now - step;
  return (objective(p, t, up) - objective(p, t, down)) / (2 * step) + (kl(p, t, up) - kl(p, t, down)) / (2 * step);
}

inline int32_t flag(const PolicyScalars& p, const Token& t) {
  if (p.objective == PolicyObjective::nll) return 0;
  const double r = ratio(p.objective == PolicyObjective::gspo ? t.sequence : t.now - t.old);
  const bool held = p.objective == PolicyObjective::cispo;  // whatever the advantage
  if (p.dual_clip > 0 && t.advantage < 0 && r > p.dual_clip) return 3;
  if (r < 1.0 - p.clip_low && (held || t.advantage < 0)) return 1;
  if (r > 1.0 + p.clip_high && (held || t.advantage > 0)) return 2;
  return 0;
}

// Every combination of ratio and advantage, `times` times over, as lanes; the sequences' ratios are others than the
// tokens' own, and the references lie on all sides of the limit.
struct Tokens {
  std::vector<float> logprob, old, advantage, weight, sequence, reference, entropy;

  explicit Tokens(int times) {
    const float deltas[] = {-30.0f, -1.0f, -0.3f, -0.1f, 0.0f, 0.1f, 0.3f, 1.0f, 30.0f};
    const float distances[] = {-25.0f, -0.5f, 0.0f, 0.4f, 2.0f, 25.0f};
    for (int turn = 0; turn < times; ++turn)
      for (float delta : deltas)
        for (float a : {-1.5f, 0.0f, 2.0f}) {
          const size_t i = old.size();
          logprob.push_back(-2.0f + delta);
          old.push_back(-2.0f);
          advantage.push_back(a);
          weight.push_back(0.25f);
          sequence.push_back(deltas[(i / 3 + 2) % 9]);
          reference.push_back(logprob.back() + distances[i % 6]);
          entropy.push_back(0.1f * static_cast<float>(i % 11));
        }
  }

  int64_t count() const { return static_cast<int64_t>(old.size()); }

  Token at(int64_t i) const {
    return {logprob[i], weight[i], old[i], advantage[i], sequence[i], reference[i], entropy[i]};
  }
};

}  // namespace policy_reference
