#include "core/schedule.h"

#include <algorithm>

namespace tokenring {

namespace {
constexpr size_t kAlignment = 256;
// A recording of a large model is some thousand launches, which the device's driver holds.
constexpr size_t kMostRecordings = 64;
size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
}  // namespace

size_t Slot::bytes() const {
  if (rank == 0) return 0;
  size_t n = size_of(dtype);
  for (int i = 0; i < rank; ++i) n *= static_cast<size_t>(shape[i]);
  return n;
}

Slot Slot::rows(int64_t begin, int64_t count) const {
  if (rank == 0 || begin < 0 || count < 0 || begin + count > shape[0]) {
    fail("INTERNAL", "rows ", begin, "..", begin + count, " of a slot of ", rank ? shape[0] : 0, " rows");
  }
  Slot part = *this;
  size_t row = size_of(dtype);
  for (int i = 1; i < rank; ++i) row *= static_cast<size_t>(shape[i]);
  part.offset += static_cast<size_t>(begin) * row;
  part.shape[0] = count;
  return part;
}

Slot outside(const Tensor& t) {
  Slot slot;
  slot.memory = static_cast<std::byte*>(t.data);
  slot.dtype = t.dtype;
  slot.rank = t.rank;
  slot.shape = t.shape;
  return slot;
}

Tensor Frame::operator[](const Slot& slot) const {
  if (!slot) return Tensor{};
  return Tensor{(slot.memory ? slot.memory : arena) + slot.offset, slot.dtype, slot.rank, slot.shape};
}

Slot Schedule::slot(DType dtype, std::initializer_list<int64_t> shape) {
  Slot slot;
  slot.dtype = dtype;
  for (int64_t n : shape) {
    if (n < 0 || slot.rank == 4) fail("INTERNAL", "a slot has at most 4 dimensions, none negative");
    slot.shape[slot.rank++] = n;
  }
  const size_t bytes = aligned(slot.bytes());
  size_t offset = 0;
  auto next = held_.begin();
  for (; next != held_.end() && next->offset - offset < bytes; ++next) offset = next->offset + next->bytes;
  slot.offset = offset;
  if (bytes) held_.insert(next, Block{offset, bytes});
  high_water_ = std::max(high_water_, offset + bytes);
  return slot;
}

void Schedule::release(const Slot& slot) {
  if (slot.bytes() == 0 || slot.memory) return;
  const auto at = std::lower_bound(held_.begin(), held_.end(), slot.offset,
                                   [](const Block& block, size_t offset) { return block.offset < offset; });
  if (at == held_.end() || at->offset != slot.offset || at->bytes != aligned(slot.bytes())) {
    fail("INTERNAL", "released a slot at ", slot.offset, " that the schedule does not hold");
  }
  held_.erase(at);
}

const char* name_of(Track track) {
  constexpr const char* kNames[kTracks] = {"compute", "context", "gradients", "host"};
  return kNames[static_cast<size_t>(track)];
}

void Schedule::add(const char* op, int layer, int64_t bytes, int64_t flops, std::function<void(const Frame&)> run) {
  entries_.push_back(Entry{op, layer, bytes, flops, std::move(run)});
}

void Schedule::add(Track track, std::initializer_list<Track> after, const char* op, int layer, int64_t bytes,
                   int64_t flops, std::function<void(const Frame&)> run) {
  add(op, layer, bytes, flops, std::move(run));
  entries_.back().track = track;
  for (const Track other : after) entries_.back().after[static_cast<size_t>(other)] = true;
}

void Schedule::add_of_host(const char* op, int64_t bytes, std::function<void(const Frame&)> run) {
  add(op, -1, bytes, 0, std::move(run));
  entries_.back().of_host = true;
}

void Schedule::run_part(std::byte* arena, Stream& stream, size_t begin, size_t end) const {
  for (size_t i = begin; i < end; ++i) entries_[i].run(Frame{arena, stream});
}

std::pair<size_t, size_t> Schedule::recordable() const {
  size_t begin = 0, end = entries_.size();
  while (begin < end && entries_[begin].of_host) ++begin;
  while (end > begin && entries_[end - 1].of_host) --end;
  const auto stays = [](const Entry& entry) {
    return !entry.of_host && entry.track == Track::compute && entry.after == std::array<bool, kTracks>{};
  };
  return std::all_of(entries_.begin() + begin, entries_.begin() + end, stays) ? std::pair{begin, end}
                                                                              : std::pair<size_t, size_t>{};
}

void Schedule::run(std::byte* arena, const Streams& streams, Trace* trace, int lane) const {
  const auto stream_of = [&](size_t track) -> Stream& {
    if (!streams[track]) fail("INTERNAL", "a schedule has entries for ", name_of(static_cast<Track>(track)));
    return *streams[track];
  };
  for (const Entry& entry : entries_) {
    Stream& on = stream_of(static_cast<size_t>(entry.track));
    for (size_t other = 0; other < kTracks; ++other)
      if (entry.after[other]) on.wait(stream_of(other));
    if (!trace) {
      entry.run(Frame{arena, on});
      continue;
    }
    Trace::Span& span = trace->add(entry, lane);
    on.call([&span] { span.start = Trace::now(); });
    entry.run(Frame{arena, on});
    on.call([&span] { span.end = Trace::now(); });
  }
}

void Schedule::upload(const Slot& slot, const void* host) {
  const size_t bytes = slot.bytes();
  if (bytes == 0) return;
  add_of_host("copy_to_device", static_cast<int64_t>(bytes),
              [=](const Frame& frame) { frame.stream.copy_to_device(frame[slot].data, host, bytes); });
}

void Schedule::download(void* host, const Slot& slot) {
  const size_t bytes = slot.bytes();
  if (bytes == 0) return;
  add_of_host("copy_to_host", static_cast<int64_t>(bytes),
              [=](const Frame& frame) { frame.stream.copy_to_host(host, frame[slot].data, bytes); });
}

int64_t Schedule::flops() const {
  int64_t sum = 0;
  for (const Entry& entry : entries_) sum += entry.flops;
  return sum;
}

int64_t Schedule::bytes() const {
  int64_t sum = 0;
  for (const Entry& entry : entries_) sum += entry.bytes;
  return sum;
}

std::byte* Executor::arena(const Schedule& schedule) {
  if (device_.on_schedule) device_.on_schedule(schedule);
  if (schedule.arena_bytes() > arena_.bytes()) {
    stream_.synchronize();  // queued work may still read the old arena
    arena_ = Buffer();      // give it back first: the two need not fit side by side
    arena_ = Buffer(device_, schedule.arena_bytes(), "activations");
  }
  return static_cast<std::byte*>(arena_.data());
}

void Executor::run(const Schedule& schedule) { schedule.run(arena(schedule), streams_, trace_, lane_); }

void Executor::run(const Schedule& schedule, const Key& key) {
  std::byte* at = arena(schedule);
  const auto [begin, end] = schedule.recordable();
  if (!stream_.records() || trace_ || begin == end) return schedule.run(at, streams_, trace_, lane_);
  schedule.run_part(at, stream_, 0, begin);
  Recorded& recorded = recorded_[key];
  recorded.used = ++uses_;
  if (recorded.work && recorded.work->holds()) {
    recorded.work->replay(stream_);
  } else {
    recorded.work.reset();
    schedule.run_part(at, stream_, begin, end);
    recorded.work = stream_.record([&, begin = begin, end = end] { schedule.run_part(at, stream_, begin, end); });
  }
  schedule.run_part(at, stream_, end, schedule.entries().size());
  if (recorded_.size() <= kMostRecordings) return;
  recorded_.erase(std::min_element(recorded_.begin(), recorded_.end(),
                                   [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
}

void Executor::run(const Schedule& schedule, const std::atomic<bool>& aborted) {
  std::byte* at = arena(schedule);
  const Watch watch(stream_, aborted);
  schedule.run(at, streams_, trace_, lane_);
  stream_.synchronize();
}

}  // namespace tokenring
