// A device owns memory and streams and offers the table of ops. One implementation a backend.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/failure.h"

namespace tokenring {

class Ops;
class Schedule;

// How many sums over tokens one part of a batch has left to add to the gradients, so that the part after it, on
// another stream, adds its own behind them: sums go on in the order of the parts.
struct Turn {
  // The sums of a part are `varying` ones into the same memory, then as many as in every other part.
  Turn(int64_t varying, int64_t common) : left(varying + common), common(common) {}
  void count() {
    --left;
    left.notify_all();
  }
  void finish() {
    left = 0;
    left.notify_all();
  }
  void wait_for(int64_t most) const {
    for (int64_t now; (now = left) > most;) left.wait(now);
  }
  std::atomic<int64_t> left;
  const int64_t common;
};

class Stream;

// Work that a stream recorded, to be queued as one, again and again. It holds the addresses and numbers that the work
// was given: what changes from one time to the next lies in the device's memory.
class Recording {
 public:
  virtual ~Recording() = default;
  // False once memory of the device was taken or given back since: its addresses may be good no more.
  virtual bool holds() const = 0;
  virtual void replay(Stream&) = 0;
};

// An ordered queue of work on a device. CPU streams run on their own thread too, so that a missing
// event shows up as a wrong result without a GPU.
class Stream {
 public:
  virtual ~Stream() = default;
  // Blocks the caller until everything queued so far has run. Rethrows the first Failure of that work.
  virtual void synchronize() = 0;
  // Later work on this stream starts after what `other` has queued so far.
  virtual void wait(Stream& other) = 0;
  // Ordered copies. On the CPU backend all three are memcpy on the stream's thread.
  virtual void copy_to_device(void* device, const void* host, size_t bytes) = 0;
  virtual void copy_to_host(void* host, const void* device, size_t bytes) = 0;
  virtual void copy_on_device(void* to, const void* from, size_t bytes) = 0;
  // Runs `work` on a thread of the host in its place in the order. It may block, and must not call the stream.
  virtual void call(std::function<void()> work) = 0;
  // From now on work that has not begun when *aborted becomes true is left out, and the next synchronize() fails with
  // ABORTED. Null: no more. `aborted` lives until it is replaced.
  virtual void watch(const std::atomic<bool>* aborted) = 0;
  // What is queued from now on counts down `mine` with each sum over tokens that it adds to, and lets the part before
  // go first (null: there is none). Both null: no more turns.
  virtual void take_turns(std::shared_ptr<Turn> mine, std::shared_ptr<Turn> before) = 0;
  // Whether record() can be called.
  virtual bool records() const { return false; }
  // What `queue` queues here is kept and not run. It must have run before as it is, so that memory, lists and plans are
  // there; it neither copies from or to the host nor calls or waits.
  virtual std::unique_ptr<Recording> record(const std::function<void()>&) {
    fail("INTERNAL", "this device keeps no recordings");
  }
};

// Waits for the stream at the end of a scope, so that no queued copy outlives the host memory it uses.
struct Drain {
  Stream& stream;
  ~Drain() {
    try {
      stream.synchronize();
    } catch (...) {
      // Whoever left the scope has the cause already.
    }
  }
};

// Watches for an abort until the end of a scope.
struct Watch {
  Watch(Stream& stream, const std::atomic<bool>& aborted) : stream(stream) { stream.watch(&aborted); }
  ~Watch() { stream.watch(nullptr); }
  Watch(const Watch&) = delete;
  Stream& stream;
};

// What a device's memory is held for.
struct HeldMemory {
  std::string purpose;
  size_t bytes = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  virtual std::unique_ptr<Stream> stream() = 0;
  // Streams that work side by side, each on its own share of the device, and how many of them there is room for.
  virtual std::unique_ptr<Stream> lane() { return stream(); }
  virtual int lanes() const { return 1; }
  virtual const Ops& ops() const = 0;
  // 256-byte aligned. Throws Failure OUT_OF_MEMORY with the size asked for and `purpose`, a name that lives for ever,
  // by which a device may tell what holds its memory. Never called in the steady state.
  virtual void* allocate(size_t bytes, const char* purpose) = 0;
  virtual void free(void* data) noexcept = 0;
  // Memory of the host that this device copies to and from while it computes (pinned), and that its ops reach too, at
  // the speed of the link. 256-byte aligned, as above.
  virtual void* allocate_host(size_t bytes, const char* purpose) { return allocate(bytes, purpose); }
  virtual void free_host(void* data) noexcept { free(data); }
  // By purpose, when all together was most; the same of allocate_host(). Empty where nobody counts.
  virtual std::vector<HeldMemory> most_held() const { return {}; }
  virtual std::vector<HeldMemory> most_held_of_host() const { return {}; }

  // Told of each schedule before an executor queues it. Set before there are executors, or on their thread.
  std::function<void(const Schedule&)> on_schedule;
};

// Memory with an owner: the device's, or the host's that it copies to and from.
class Buffer {
 public:
  enum class Of { device, host };
  Buffer() = default;
  Buffer(Device& device, size_t bytes, const char* purpose = "buffers", Of of = Of::device)
      : device_(&device), bytes_(bytes), of_(of) {
    if (bytes) data_ = of == Of::host ? device.allocate_host(bytes, purpose) : device.allocate(bytes, purpose);
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(bytes_, other.bytes_);
    std::swap(of_, other.of_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() {
    if (!data_) return;
    of_ == Of::host ? device_->free_host(data_) : device_->free(data_);
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  size_t bytes_ = 0;
  Of of_ = Of::device;
  void* data_ = nullptr;
};

}  // namespace tokenring
