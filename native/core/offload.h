// Slots that lie in the host's memory between the forward and the backward pass of their layer, so that the arena holds
// those of two layers at a time. They are copied on Track::host while compute goes on: out behind the layer that made
// them, back in one layer before the one that wants them. The last layer's stay where they are.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "core/device.h"
#include "core/schedule.h"

namespace tokenring {

class Offload {
 public:
  // `stream` is that of Track::host for every schedule that is given to put() and get().
  Offload(Device& device, Stream& stream) : device_(device), stream_(stream) {}

  using Slots = std::array<Slot, 3>;

  // A pass of so many layers begins. put() follows for each from the first to the last, once compute has queued all
  // that its forward pass does with the slots, which this releases; then get() from the last to the first, before its
  // backward pass, which releases what it gets. All layers have slots alike, matrices.
  void begin(int layers);
  void put(Schedule&, int layer, const Slots&);
  Slots get(Schedule&, int layer);

 private:
  static size_t room(const Slots&);  // in the host's memory
  void fetch(Schedule&, int layer);

  Device& device_;
  Stream& stream_;
  Buffer memory_;
  int layers_ = 0;
  // Of the layer whose copies out were queued last, or that comes next in the backward pass.
  Slots near_;
};

}  // namespace tokenring
