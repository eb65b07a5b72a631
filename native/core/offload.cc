#include "core/offload.h"

namespace tokenring {

namespace {

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

int64_t bytes_of(const Offload::Slots& slots) {
  int64_t sum = 0;
  for (const Slot& slot : slots) sum += static_cast<int64_t>(slot.bytes());
  return sum;
}

// Compute goes on when the copies queued so far have ended.
void wait(Schedule& schedule, int layer) {
  schedule.add(Track::compute, {Track::host}, "wait", layer, 0, 0, [](const Frame&) {});
}

}  // namespace

size_t Offload::room(const Slots& slots) {
  size_t sum = 0;
  for (const Slot& slot : slots) sum += aligned(slot.bytes());
  return sum;
}

void Offload::begin(int layers) {
  layers_ = layers;
  near_ = {};
}

void Offload::put(Schedule& schedule, int layer, const Slots& slots) {
  if (layer > 0) {
    wait(schedule, layer);
    for (const Slot& slot : near_) schedule.release(slot);
  }
  near_ = slots;
  if (layer + 1 == layers_) return;
  if (const size_t bytes = room(slots) * static_cast<size_t>(layers_ - 1); bytes > memory_.bytes()) {
    stream_.synchronize();  // copies of an earlier pass may still use the old memory
    memory_ = Buffer();
    memory_ = Buffer(device_, bytes, "checkpoints", Buffer::Of::host);
  }
  std::byte* to = static_cast<std::byte*>(memory_.data()) + room(slots) * static_cast<size_t>(layer);
  schedule.add(Track::host, {Track::compute}, "copy_to_host", layer, bytes_of(slots), 0, [slots, to](const Frame& f) {
    size_t at = 0;
    for (const Slot& slot : slots) {
      f.stream.copy_to_host(to + at, f[slot].data, slot.bytes());
      at += aligned(slot.bytes());
    }
  });
}

Offload::Slots Offload::get(Schedule& schedule, int layer) {
  if (layer + 1 < layers_) wait(schedule, layer);
  const Slots slots = near_;
  if (layer > 0) fetch(schedule, layer - 1);
  return slots;
}

// Into slots that compute may still be using for what was there before.
void Offload::fetch(Schedule& schedule, int layer) {
  for (Slot& slot : near_) slot = schedule.slot(slot.dtype, {slot.shape[0], slot.shape[1]});
  const std::byte* from = static_cast<const std::byte*>(memory_.data()) + room(near_) * static_cast<size_t>(layer);
  schedule.add(Track::host, {Track::compute}, "copy_to_device", layer, bytes_of(near_), 0,
               [slots = near_, from](const Frame& f) {
                 size_t at = 0;
                 for (const Slot& slot : slots) {
                   f.stream.copy_to_device(f[slot].data, from + at, slot.bytes());
                   at += aligned(slot.bytes());
                 }
               });
}

}  // namespace tokenring
