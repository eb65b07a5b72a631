// AdamW over flat buffers that lie in the host's memory: parts of them go through two slots on the device, copied in
// and out by streams of their own while compute updates another part. What is computed is what AdamWOptimiser computes,
// bit for bit; the gradient lies on the device.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>

#include "core/device.h"
#include "optim/adamw.h"

namespace tokenring {

class StreamedAdamW {
 public:
  // `elements`: length of the flat buffers. A part has `part` elements, a multiple of kMomentBlock. The device and
  // `optimiser` outlive it.
  StreamedAdamW(Device&, const AdamWOptimiser& optimiser, int64_t elements, int64_t part);

  // As AdamWOptimiser::step(). `updated` is called for each part, whose elements begin at number `offset`, to queue on
  // `stream` what is made of the new weights while they are on the device. Returns the sum of their squares, in float64
  // and part by part, and waits for the stream.
  double step(Stream& stream, const AdamW&, int64_t step, double norm, const OptimiserState&,
              const std::function<void(int64_t offset, Tensor weights)>& updated);

 private:
  static constexpr size_t kSlots = 2;
  // Those that lie in the host's memory, or go to a slot; scales are null where there are none.
  static std::array<Tensor, 5> on_host(const OptimiserState&);
  // Elements [offset, offset + count) of the state on the host, and a slot's room for them.
  OptimiserState part_of(const OptimiserState&, int64_t offset, int64_t count) const;
  OptimiserState slot_of(const OptimiserState& part, size_t slot);

  Device& device_;
  const AdamWOptimiser& optimiser_;
  int64_t elements_, part_;
  std::unique_ptr<Stream> in_, out_;
  std::array<Buffer, kSlots> slots_;  // made by the first step
  Buffer sums_;
};

}  // namespace tokenring
