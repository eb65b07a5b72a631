// Tokens on all sides of the clip, and what DAPO's clipped objective (arXiv 2503.14476, eq. 8) says of them in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace policy_reference {

constexpr double kLow = 0.2, kHigh = 0.28;

struct Tokens {
  std::vector<float> logprob, old, advantage, weight;

  // Every combination of ratio and advantage, `times` times over.
  explicit Tokens(int times) {
    for (int turn = 0; turn < times; ++turn)
      for (float delta : {-30.0f, -1.0f, -0.3f, -0.1f, 0.0f, 0.1f, 0.3f, 1.0f, 30.0f})
        for (float a : {-1.5f, 0.0f, 2.0f}) {
          logprob.push_back(-2.0f + delta);
          old.push_back(-2.0f);
          advantage.push_back(a);
          weight.push_back(0.25f);
        }
  }

  int64_t count() const { return static_cast<int64_t>(old.size()); }

  // Loss of token i if its logprob were lp. The log ratio is bounded as the kernel bounds it.
  double loss(int64_t i, double lp) const {
    const double r = std::exp(std::clamp(lp - old[i], -20.0, 20.0)), a = advantage[i];
    return -weight[i] * std::min(r * a, std::clamp(r, 1 - kLow, 1 + kHigh) * a);
  }
  double loss(int64_t i) const { return loss(i, logprob[i]); }

  // d loss / d logprob by central differences.
  double slope(int64_t i) const {
    const double at = logprob[i], step = 1e-6;
    return (loss(i, at + step) - loss(i, at - step)) / (2 * step);
  }

  int32_t flag(int64_t i) const {
    const double r = std::exp(static_cast<double>(logprob[i]) - old[i]);
    return advantage[i] < 0 && r < 1 - kLow ? 1 : advantage[i] > 0 && r > 1 + kHigh ? 2 : 0;
  }
};

}  // namespace policy_reference
