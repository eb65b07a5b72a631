#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tokenring {

namespace {

// YaRN's growth of the logits' scale with the context, as a factor on q and k.
double yarn_magnitude(double factor, double mscale) { return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1; }

void apply_yarn(const DecoderConfig& config, RopeFrequencies& rope) {
  const RopeScaling& r = config.rope_scaling;
  const double dim = config.head_dim;
  // The plane (as a real number) that turns so often within the original length.
  const auto plane_of = [&](double turns) {
    return dim * std::log(r.original_max_position_embeddings / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(config.rope_theta));
  };
  double low = plane_of(r.beta_fast), high = plane_of(r.beta_slow);
  if (r.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < rope.radians.size(); ++i) {
    const double stretch = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    rope.radians[i] = rope.radians[i] / r.factor * stretch + rope.radians[i] * (1 - stretch);
  }
  if (r.attention_factor > 0) {
    rope.magnitude = r.attention_factor;
  } else if (r.mscale > 0 && r.mscale_all_dim > 0) {
    rope.magnitude = yarn_magnitude(r.factor, r.mscale) / yarn_magnitude(r.factor, r.mscale_all_dim);
  } else {
    rope.magnitude = yarn_magnitude(r.factor, 1);
  }
}

void apply_llama3(const RopeScaling& r, RopeFrequencies& rope) {
  for (double& radians : rope.radians) {
    // Turns within the original length, from low_freq_factor (stretched whole) to high_freq_factor (left alone).
    const double turns = r.original_max_position_embeddings * radians / (2 * std::numbers::pi);
    const double keep = std::clamp((turns - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor), 0.0, 1.0);
    radians = (1 - keep) * radians / r.factor + keep * radians;
  }
}

}  // namespace

RopeFrequencies rope_frequencies(const DecoderConfig& config) {
  RopeFrequencies rope;
  rope.radians.resize(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < rope.radians.size(); ++i) {
    rope.radians[i] = std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / config.head_dim);
  }
  if (config.rope_scaling.rope_type == RopeScaling::Type::yarn) apply_yarn(config, rope);
  if (config.rope_scaling.rope_type == RopeScaling::Type::llama3) apply_llama3(config.rope_scaling, rope);
  return rope;
}

}  // namespace tokenring
