#include "optim/adamw.h"

#include <algorithm>
#include <cmath>

#include "core/moment_codes.h"

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

void read_flat(Stream& stream, Tensor flat, Tensor scale, bool second, int64_t offset, int64_t count, float* to) {
  if (!scale) {
    stream.copy_to_host(to, flat.f32() + offset, static_cast<size_t>(count) * sizeof(float));
    return stream.synchronize();
  }
  const int64_t first = offset / kMomentBlock, blocks = moment_blocks(offset + count) - first;
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  std::vector<float> scales(static_cast<size_t>(blocks));
  stream.copy_to_host(codes.data(), static_cast<const uint8_t*>(flat.data) + offset, codes.size());
  stream.copy_to_host(scales.data(), scale.f32() + first, scales.size() * sizeof(float));
  stream.synchronize();
  for (int64_t done = 0; done < count;) {
    const int64_t block = (offset + done) / kMomentBlock;
    const int64_t here = std::min(count - done, (block + 1) * kMomentBlock - offset - done);
    (second ? decode_square : decode_mean)(here, codes.data() + done, scales[block - first], to + done);
    done += here;
  }
}

void encode_flat(Stream& stream, const float* from, bool second, Tensor flat, Tensor scale) {
  const int64_t count = flat.elements();
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  std::vector<float> scales(static_cast<size_t>(moment_blocks(count)));
  for (int64_t at = 0; at < count; at += kMomentBlock) {
    const int64_t here = std::min(kMomentBlock, count - at);
    scales[at / kMomentBlock] = (second ? encode_square : encode_mean)(here, from + at, codes.data() + at);
  }
  const Drain drain{stream};
  stream.copy_to_device(flat.data, codes.data(), codes.size());
  stream.copy_to_device(scale.data, scales.data(), scales.size() * sizeof(float));
  stream.synchronize();
}

AdamWOptimiser::AdamWOptimiser(Device& device, std::vector<OptimiserSegment> segments, int64_t elements)
    : ops_(device.ops()),
      segments_(std::move(segments)),
      workspace_(device, ops_.sum_of_squares_workspace(elements)),
      sum_(device, sizeof(double)) {}

void AdamWOptimiser::queue_sum_of_squares(Stream& stream, Tensor flat, double* to) const {
  ops_.sum_of_squares(stream, flat, to,
                      tensor(workspace_.data(), DType::u8, {static_cast<int64_t>(workspace_.bytes())}));
}

double AdamWOptimiser::sum_of_squares(Stream& stream, Tensor flat) const {
  double sum = 0;
  queue_sum_of_squares(stream, flat, static_cast<double*>(sum_.data()));
  stream.copy_to_host(&sum, sum_.data(), sizeof(sum));
  stream.synchronize();
  return sum;
}

double AdamWOptimiser::norm_of(double sum_of_squares) {
  return std::sqrt(static_cast<double>(static_cast<float>(sum_of_squares)));
}

void AdamWOptimiser::step(Stream& stream, const AdamW& how, int64_t step, double norm,
                          const OptimiserState& state) const {
  update(stream, how, step, norm, state, 0);
  ops_.zero(stream, state.gradient);
}

void AdamWOptimiser::update(Stream& stream, const AdamW& how, int64_t step, double norm, const OptimiserState& part,
                            int64_t begin) const {
  AdamWStep update{how.learning_rate, how.beta1, how.beta2, how.epsilon, how.weight_decay, how.scale(norm), step};
  const int64_t end = begin + part.weight.elements();
  for (const OptimiserSegment& segment : segments_) {
    const int64_t from = std::max(segment.offset, begin), to = std::min(segment.offset + segment.elements, end);
    if (from >= to) continue;
    const int64_t offset = from - begin, count = to - from;
    const auto cut = [&](Tensor flat) { return tensor(flat.f32() + offset, DType::f32, {count}); };
    update.weight_decay = segment.decay ? how.weight_decay : 0.0f;
    if (!part.first_scale) {
      ops_.adamw(stream, update, cut(part.weight), cut(part.gradient), cut(part.first_moment), cut(part.second_moment));
      continue;
    }
    if (offset % kMomentBlock) fail("INTERNAL", "a segment begins within a block of moments");
    const auto codes = [&](Tensor flat) {
      return tensor(static_cast<uint8_t*>(flat.data) + offset, DType::u8, {count});
    };
    const auto scales = [&](Tensor flat) {
      return tensor(flat.f32() + offset / kMomentBlock, DType::f32, {moment_blocks(count)});
    };
    ops_.adamw8(stream, update, cut(part.weight), cut(part.gradient), codes(part.first_moment),
                codes(part.second_moment), scales(part.first_scale), scales(part.second_scale));
  }
}

}  // namespace tokenring
