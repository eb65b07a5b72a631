// AdamW with moments in eight bits, in double, from the description in core/moment_codes.h: tables and rounding are
// made anew, the nearest value is looked for among all.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/ops.h"

namespace tokenring::reference {

// Magnitudes by code: N steps in decade d, N = `first` 2^d.
inline std::vector<double> magnitudes(int first) {
  std::vector<double> values{0};
  for (int decade = 0; decade < 7; ++decade) {
    const int steps = first << decade;
    for (int k = 0; k < steps; ++k) values.push_back(std::pow(10.0, decade - 6) * (0.1 + 0.9 * (k + 0.5) / steps));
  }
  if (first == 1) {
    values.back() = 1;
  } else {
    values.push_back(1);
  }
  return values;
}

struct Moments8 {
  std::vector<uint8_t> m, v;
  std::vector<float> m_scale, v_scale;
  explicit Moments8(int64_t n) : m(n), v(n), m_scale((n + 255) / 256), v_scale(m_scale.size()) {}

  double mean(int64_t i) const {
    static const std::vector<double> values = magnitudes(1);
    return (m[i] & 128 ? -1 : 1) * values[m[i] & 127] * m_scale[i / 256];
  }
  double root(int64_t i) const {
    static const std::vector<double> values = magnitudes(2);
    return values[v[i]] * v_scale[i / 256];
  }
};

// How far the nearest magnitude is from a share.
inline double distance(int first, double share) {
  double least = 1;
  for (const double value : magnitudes(first)) least = std::min(least, std::abs(value - share));
  return least;
}

// What is wrong with `after`, and the weights, as one update of `before`: the largest error of a weight, of a scale,
// and of a share beyond that of the nearest magnitude.
struct Wrong {
  double weight = 0, scale = 0, share = 0;
};
inline Wrong compare(const Moments8& before, const Moments8& after, const std::vector<float>& w0,
                     const std::vector<float>& g, const std::vector<float>& w1, const AdamWStep& how) {
  Wrong wrong;
  const int64_t n = static_cast<int64_t>(w0.size());
  for (int64_t begin = 0; begin < n; begin += 256) {
    const int64_t end = std::min(n, begin + 256);
    std::vector<double> mean, root;
    for (int64_t i = begin; i < end; ++i) {
      const double gi = static_cast<double>(g[i]) * how.gradient_scale, b1 = how.beta1, b2 = how.beta2;
      mean.push_back(b1 * before.mean(i) + (1 - b1) * gi);
      root.push_back(std::sqrt(b2 * before.root(i) * before.root(i) + (1 - b2) * gi * gi));
      const double top = mean.back() / (1 - std::pow(b1, how.step));
      const double bottom = root.back() / std::sqrt(1 - std::pow(b2, how.step)) + how.epsilon;
      const double rate = how.learning_rate, expected = w0[i] * (1 - rate * how.weight_decay) - rate * top / bottom;
      wrong.weight = std::max(wrong.weight, std::abs(w1[i] - expected));
    }
    double most_mean = 0, most_root = 0;
    for (const double x : mean) most_mean = std::max(most_mean, std::abs(x));
    for (const double x : root) most_root = std::max(most_root, x);
    const auto off = [](double got, double expected) {
      return expected == 0 ? std::abs(got) : std::abs(got / expected - 1);
    };
    wrong.scale =
        std::max({wrong.scale, off(after.m_scale[begin / 256], most_mean), off(after.v_scale[begin / 256], most_root)});
    for (int64_t i = begin; i < end; ++i) {
      const double a = mean[i - begin], r = root[i - begin];
      if (most_mean > 0)
        wrong.share =
            std::max(wrong.share, std::abs(after.mean(i) - a) / most_mean - distance(1, std::abs(a) / most_mean));
      if (most_root == 0) continue;
      // The smallest magnitude, where the nearest is 0 and the value is not.
      const double least = r > 0 ? std::max(distance(2, r / most_root), magnitudes(2)[1] - r / most_root) : 0;
      wrong.share = std::max(wrong.share, std::abs(after.root(i) - r) / most_root - least);
    }
  }
  return wrong;
}

}  // namespace tokenring::reference
