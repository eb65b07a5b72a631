// The optimiser's update, with moments in float32 and in eight bits.
#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/moment_codes.h"
#include "cpu/ops.h"
#include "cpu/stream.h"

namespace tokenring::cpu {
namespace {

constexpr int64_t kFlatBlock = 4096;
static_assert(kFlatBlock % kMomentBlock == 0);

AdamWConstants constants_of(const AdamWStep& step) {
  require(step.step >= 1, "adamw: step is ", step.step, "; it counts from 1");
  const double t = static_cast<double>(step.step);
  return {.decay = static_cast<float>(1.0 - double{step.learning_rate} * double{step.weight_decay}),
          .beta1 = step.beta1,
          .one_minus_beta1 = static_cast<float>(1.0 - double{step.beta1}),
          .beta2 = step.beta2,
          .one_minus_beta2 = static_cast<float>(1.0 - double{step.beta2}),
          .step_size = static_cast<float>(double{step.learning_rate} / (1.0 - std::pow(double{step.beta1}, t))),
          .root_correction = static_cast<float>(std::sqrt(1.0 - std::pow(double{step.beta2}, t))),
          .epsilon = step.epsilon,
          .gradient_scale = step.gradient_scale};
}

void check_f32(const char* op, const char* name, const Tensor& t, int64_t n) {
  require(t.dtype == DType::f32 && t.elements() == n && (t.data || n == 0), op, ": ", name, " is ", shape_text(t),
          ", must be f32 with ", n, " elements");
}

}  // namespace

void CpuOps::adamw(Stream& stream, AdamWStep step, Tensor w, Tensor g, Tensor m, Tensor v) const {
  const int64_t n = w.elements();
  for (const auto& [name, t] : {std::pair{"w", w}, {"g", g}, {"m", m}, {"v", v}}) check_f32("adamw", name, t, n);
  const AdamWConstants c = constants_of(step);
  cpu_stream(stream).enqueue([=, this] {
    share((n + kFlatBlock - 1) / kFlatBlock, kFlatBlock * 0.7, [&](int64_t begin, int64_t end) {
      const int64_t i = begin * kFlatBlock, to = std::min(end * kFlatBlock, n);
      k_.adamw(to - i, c, w.f32() + i, g.f32() + i, m.f32() + i, v.f32() + i);
    });
  });
}

void CpuOps::adamw8(Stream& stream, AdamWStep step, Tensor w, Tensor g, Tensor m, Tensor v, Tensor m_scale,
                    Tensor v_scale) const {
  const int64_t n = w.elements(), blocks = moment_blocks(n);
  for (const auto& [name, t] : {std::pair{"w", w}, {"g", g}}) check_f32("adamw8", name, t, n);
  for (const auto& [name, t] : {std::pair{"m_scale", m_scale}, {"v_scale", v_scale}})
    check_f32("adamw8", name, t, blocks);
  for (const auto& [name, t] : {std::pair{"m", m}, {"v", v}})
    require(t.dtype == DType::u8 && t.elements() == n && (t.data || n == 0), "adamw8: ", name, " is ", shape_text(t),
            ", must be u8 with ", n, " elements");
  const AdamWConstants c = constants_of(step);
  cpu_stream(stream).enqueue([=, this] {
    share(blocks, kMomentBlock * 20.0, [&](int64_t begin, int64_t end) {
      float mean[kMomentBlock], square[kMomentBlock];
      for (int64_t b = begin; b < end; ++b) {
        const int64_t i = b * kMomentBlock, count = std::min(kMomentBlock, n - i);
        uint8_t *of_mean = static_cast<uint8_t*>(m.data) + i, *of_root = static_cast<uint8_t*>(v.data) + i;
        decode_mean(count, of_mean, m_scale.f32()[b], mean);
        decode_square(count, of_root, v_scale.f32()[b], square);
        k_.adamw(count, c, w.f32() + i, g.f32() + i, mean, square);
        m_scale.f32()[b] = encode_mean(count, mean, of_mean);
        v_scale.f32()[b] = encode_square(count, square, of_root);
      }
    });
  });
}

}  // namespace tokenring::cpu
