#include "optim/adamw.h"

#include <cmath>

namespace tokenring {

void AdamW::check() const {
  const auto in = [](const char* name, float value, float low, float high, const char* range) {
    require(value >= low && value <= high, "AdamW: ", name, " is ", value, "; it must be ", range);
  };
  constexpr float kMax = 3.4e38f, kBelowOne = 0.99999994f;
  in("learning_rate", learning_rate, 0, kMax, "a number of at least 0");
  in("beta1", beta1, 0, kBelowOne, "at least 0 and below 1");
  in("beta2", beta2, 0, kBelowOne, "at least 0 and below 1");
  in("epsilon", epsilon, 0, kMax, "a number of at least 0");
  in("weight_decay", weight_decay, 0, kMax, "a number of at least 0");
  in("clip_norm", clip_norm, 0, kMax, "a number of at least 0 (0 = no clipping)");
}

AdamWOptimiser::AdamWOptimiser(Device& device, std::vector<OptimiserSegment> segments, int64_t elements)
    : ops_(device.ops()),
      segments_(std::move(segments)),
      workspace_(device, ops_.sum_of_squares_workspace(elements)),
      sum_(device, sizeof(double)) {}

double AdamWOptimiser::sum_of_squares(Stream& stream, Tensor flat) const {
  double sum = 0;
  ops_.sum_of_squares(stream, flat, static_cast<double*>(sum_.data()),
                      tensor(workspace_.data(), DType::u8, {static_cast<int64_t>(workspace_.bytes())}));
  stream.copy_to_host(&sum, sum_.data(), sizeof(sum));
  stream.synchronize();
  return sum;
}

double AdamWOptimiser::norm_of(double sum_of_squares) {
  return std::sqrt(static_cast<double>(static_cast<float>(sum_of_squares)));
}

void AdamWOptimiser::step(Stream& stream, const AdamW& how, int64_t step, double norm,
                          const OptimiserState& state) const {
  AdamWStep update{how.learning_rate, how.beta1, how.beta2, how.epsilon, how.weight_decay, how.scale(norm), step};
  for (const OptimiserSegment& segment : segments_) {
    const auto part = [&](Tensor flat) { return tensor(flat.f32() + segment.offset, DType::f32, {segment.elements}); };
    update.weight_decay = segment.decay ? how.weight_decay : 0.0f;
    ops_.adamw(stream, update, part(state.weight), part(state.gradient), part(state.first_moment),
               part(state.second_moment));
  }
  ops_.zero(stream, state.gradient);
}

}  // namespace tokenring
