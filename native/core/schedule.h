// A step as data: a list of entries, each an op with its stream, its bytes and its FLOPs, and the arena that
// the entries' slots need. The executor runs it; the arena is sized from it; a trace names its entries; a plan
// prices them. Nothing else knows what a step does.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/device.h"
#include "core/tensor.h"
#include "core/trace.h"

namespace tokenring {

// A tensor inside the arena: known by its offset until the schedule runs. Or one in memory of its own, which the
// schedule neither takes nor releases.
struct Slot {
  size_t offset = 0;
  std::byte* memory = nullptr;  // null: the arena
  DType dtype = DType::f32;
  int rank = 0;
  std::array<int64_t, 4> shape{};
  size_t bytes() const;
  // `count` rows from row `begin` on, in the same memory.
  Slot rows(int64_t begin, int64_t count) const;
  explicit operator bool() const { return rank != 0; }
};
Slot outside(const Tensor&);

// What an entry runs on: the compute stream, or one of those on which, while it goes on, ranks exchange keys and
// values, or gradients and parameters, or slots are copied to the host's memory and back.
enum class Track : uint8_t { compute, context, gradients, host };
constexpr size_t kTracks = 4;
const char* name_of(Track);

// Streams by track; null where there is none.
using Streams = std::array<Stream*, kTracks>;

// Where slots become tensors. `stream` is that of the entry.
struct Frame {
  std::byte* arena;
  Stream& stream;
  Tensor operator[](const Slot& slot) const;
};

struct Entry {
  const char* op;  // name in the table of ops, or of the communicator's call
  int layer;       // -1 outside the layers
  int64_t bytes;   // read and written; of a communicator's call, the whole of what it sums, scatters or gathers
  int64_t flops;
  std::function<void(const Frame&)> run;
  Track track = Track::compute;
  std::array<bool, kTracks> after{};  // starts after what these tracks have queued before it
  bool of_host = false;               // takes what lies on the host, anew each time: never part of a recording
};

class Schedule {
 public:
  // Takes room in the arena from here on in program order; first fit, 256-byte aligned.
  Slot slot(DType dtype, std::initializer_list<int64_t> shape);
  // The memory may be taken again by what follows. An empty slot, or one of zero bytes, is let pass.
  void release(const Slot& slot);
  void add(const char* op, int layer, int64_t bytes, int64_t flops, std::function<void(const Frame&)> run);
  // On another track, or on compute after others. A slot that an entry of another track uses is released only behind a
  // compute entry that comes after it.
  void add(Track track, std::initializer_list<Track> after, const char* op, int layer, int64_t bytes, int64_t flops,
           std::function<void(const Frame&)> run);

  // On compute, with what the host holds when it is run.
  void add_of_host(const char* op, int64_t bytes, std::function<void(const Frame&)> run);

  size_t arena_bytes() const { return high_water_; }
  const std::vector<Entry>& entries() const { return entries_; }
  // Queues the entries. Every track that has any needs its stream. With a trace, each is timed where it runs; `lane` is
  // the number of the compute stream. (Timed, the CPU's ops do not run interleaved by rows; their bits are the same.)
  void run(std::byte* arena, const Streams& streams, Trace* trace = nullptr, int lane = 0) const;
  // The same of the entries [begin, end) alone, which are all on compute.
  void run_part(std::byte* arena, Stream& stream, size_t begin, size_t end) const;
  // The entries that a recording can hold: all that lie between the host's first ones and its last. {0, 0} if others of
  // the host lie between them, or if they are not all on compute.
  std::pair<size_t, size_t> recordable() const;

  // Entries that copy between the host and a slot. `host` holds slot.bytes() and must live until the stream is
  // synchronised.
  void upload(const Slot& slot, const void* host);
  void download(void* host, const Slot& slot);

  // Sums over the entries: what a plan prices.
  int64_t flops() const;
  int64_t bytes() const;

 private:
  struct Block {
    size_t offset, bytes;
  };
  std::vector<Block> held_;  // by offset; what lies between is free
  size_t high_water_ = 0;
  std::vector<Entry> entries_;
};

// Runs schedules in one arena, which grows only when a schedule needs more than any before it: on one compute stream,
// and on the streams of the other tracks, which executors may share.
class Executor {
 public:
  Executor(Device& device, Stream& stream) : Executor(device, Streams{&stream}) {}
  // streams[Track::compute] is there.
  Executor(Device& device, const Streams& streams)
      : device_(device), stream_(*streams[static_cast<size_t>(Track::compute)]), streams_(streams) {}

  // Queues the entries and returns; the arena keeps what they wrote until the next run.
  void run(const Schedule& schedule);
  // The same, but waits for the end, and fails with ABORTED once `aborted` is set: what runs by then is finished, what
  // has not begun is left out.
  void run(const Schedule& schedule, const std::atomic<bool>& aborted);
  // As the first, by a recording where the stream keeps them. Schedules of one key have the same entries, but for what
  // they take from the host: the first is run and recorded, others are replayed as long as the recording holds.
  using Key = std::array<int64_t, 2>;
  void run(const Schedule& schedule, const Key& key);

  // From now on what runs is added to the trace; null: no more.
  void trace(Trace* to, int lane) {
    trace_ = to;
    lane_ = lane;
  }

  Stream& stream() { return stream_; }
  size_t arena_bytes() const { return arena_.bytes(); }

 private:
  std::byte* arena(const Schedule& schedule);

  struct Recorded {
    std::unique_ptr<Recording> work;
    uint64_t used = 0;
  };

  Device& device_;
  Stream& stream_;
  Streams streams_;
  Buffer arena_;
  std::map<Key, Recorded> recorded_;
  uint64_t uses_ = 0;
  Trace* trace_ = nullptr;
  int lane_ = 0;
};

}  // namespace tokenring
