#include "optim/streamed.h"

#include <algorithm>
#include <vector>

#include "core/moment_codes.h"

namespace tokenring {

namespace {

// `count` elements of a flat buffer, from number `offset` on.
Tensor cut(Tensor flat, int64_t offset, int64_t count) {
  if (!flat) return {};
  auto* data = static_cast<std::byte*>(flat.data) + static_cast<size_t>(offset) * size_of(flat.dtype);
  return tensor(data, flat.dtype, {count});
}

}  // namespace

StreamedAdamW::StreamedAdamW(Device& device, const AdamWOptimiser& optimiser, int64_t elements, int64_t part)
    : device_(device),
      optimiser_(optimiser),
      elements_(elements),
      part_(std::min(part, elements)),
      in_(device.stream()),
      out_(device.stream()) {
  if (part < 1 || part % kMomentBlock) fail("INTERNAL", "a part of the optimiser's state cuts a block of moments");
}

std::array<Tensor, 5> StreamedAdamW::on_host(const OptimiserState& s) {
  return {s.weight, s.first_moment, s.second_moment, s.first_scale, s.second_scale};
}

OptimiserState StreamedAdamW::part_of(const OptimiserState& state, int64_t offset, int64_t count) const {
  const auto blocks = [&](Tensor scale) { return cut(scale, offset / kMomentBlock, moment_blocks(count)); };
  return {cut(state.weight, offset, count),
          cut(state.gradient, offset, count),
          cut(state.first_moment, offset, count),
          cut(state.second_moment, offset, count),
          blocks(state.first_scale),
          blocks(state.second_scale)};
}

// The gradient is where it was.
OptimiserState StreamedAdamW::slot_of(const OptimiserState& part, size_t slot) {
  OptimiserState here = part;
  auto* next = static_cast<std::byte*>(slots_[slot].data());
  for (Tensor* tensor :
       {&here.weight, &here.first_moment, &here.second_moment, &here.first_scale, &here.second_scale}) {
    if (!*tensor) continue;
    tensor->data = next;
    next += (tensor->bytes() + 255) / 256 * 256;
  }
  return here;
}

double StreamedAdamW::step(Stream& stream, const AdamW& how, int64_t step, double norm, const OptimiserState& state,
                           const std::function<void(int64_t, Tensor)>& updated) {
  const int64_t parts = (elements_ + part_ - 1) / part_;
  const auto part = [&](int64_t i) { return part_of(state, i * part_, std::min(part_, elements_ - i * part_)); };
  if (!sums_.data()) {
    size_t bytes = 0;
    for (const Tensor& tensor : on_host(part(0))) bytes += tensor ? (tensor.bytes() + 255) / 256 * 256 : 0;
    for (Buffer& slot : slots_) slot = Buffer(device_, bytes, "optimiser parts");
    sums_ = Buffer(device_, static_cast<size_t>(parts) * sizeof(double));
  }
  const auto slot = [&](int64_t i) { return slot_of(part(i), static_cast<size_t>(i) % kSlots); };
  const auto fetch = [&](int64_t i) {
    const auto to = on_host(slot(i)), from = on_host(part(i));
    for (size_t t = 0; t < to.size(); ++t)
      if (to[t]) in_->copy_to_device(to[t].data, from[t].data, to[t].bytes());
  };
  const auto store = [&](int64_t i) {
    const auto to = on_host(part(i)), from = on_host(slot(i));
    for (size_t t = 0; t < to.size(); ++t)
      if (to[t]) out_->copy_to_host(to[t].data, from[t].data, to[t].bytes());
  };
  auto* sums = static_cast<double*>(sums_.data());

  // The state lies still: the step before has waited for its copies out, and whoever else wrote it for its own. Each
  // wait is for what the other stream was given before it, and for no more.
  fetch(0);
  for (int64_t i = 0; i < parts; ++i) {
    stream.wait(*in_);
    if (i + 1 < parts) {
      if (i > 0) in_->wait(*out_);  // the part that was in the slot
      fetch(i + 1);
    }
    const OptimiserState here = slot(i);
    optimiser_.update(stream, how, step, norm, here, i * part_);
    updated(i * part_, here.weight);
    optimiser_.queue_sum_of_squares(stream, here.weight, sums + i);
    out_->wait(stream);
    store(i);
  }
  stream.wait(*out_);
  device_.ops().zero(stream, state.gradient);
  std::vector<double> each(static_cast<size_t>(parts));
  stream.copy_to_host(each.data(), sums, each.size() * sizeof(double));
  stream.synchronize();
  double sum = 0;
  for (const double one : each) sum += one;
  return sum;
}

}  // namespace tokenring
