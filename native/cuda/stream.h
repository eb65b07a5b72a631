// A stream of the CUDA backend, with the memory that its ops work in: each room grows to the largest need there was, so
// in the steady state nothing is allocated. Ops of one stream run in order and may share a room.
#pragma once

#include <array>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/device.h"
#include "core/memory_count.h"
#include "cuda/module.h"

namespace tokenring::cuda {

// What the next synchronize() of a stream throws: the first failure of work that the host did for it.
class StreamError {
 public:
  void set(std::exception_ptr error) {
    std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
  }
  bool is_set() const {
    std::lock_guard lock(mutex_);
    return error_ != nullptr;
  }
  std::exception_ptr take() {
    std::lock_guard lock(mutex_);
    return std::exchange(error_, nullptr);
  }

 private:
  mutable std::mutex mutex_;
  std::exception_ptr error_;
};

// Of a device, as its streams know it.
struct DeviceMemory {
  MemoryCount held;
  // Grows whenever the device takes or gives back memory that queued work may use.
  std::atomic<uint64_t> changes = 0;
};

class DeviceStream final : public Stream {
 public:
  // `memory` outlives the stream and its recordings.
  DeviceStream(Device& device, const Runtime& runtime, DeviceMemory& memory);
  ~DeviceStream() override;  // runs what is queued

  void synchronize() override;
  void wait(Stream& other) override;
  void copy_to_device(void* device, const void* host, size_t bytes) override;
  void copy_to_host(void* host, const void* device, size_t bytes) override;
  void copy_on_device(void* to, const void* from, size_t bytes) override;
  void call(std::function<void()> work) override;
  // What is queued is on the GPU and runs; what comes after the abort throws ABORTED where it would be queued.
  void watch(const std::atomic<bool>* aborted) override { aborted_ = aborted; }
  // There is one lane: the parts of a batch run in their order.
  void take_turns(std::shared_ptr<Turn>, std::shared_ptr<Turn>) override {}
  // As a CUDA graph. False where TOKENRING_CUDA_GRAPHS is 0.
  bool records() const override { return records_; }
  std::unique_ptr<Recording> record(const std::function<void()>& queue) override;
  void check_abort() const;

  CudaStream raw() const { return raw_; }
  const Runtime& runtime() const { return runtime_; }
  // For those who watch over queued work from other threads.
  const std::shared_ptr<StreamError>& error() const { return error_; }

  // What a room is for: nothing that is alive at once shares one.
  enum class Room { product, sums, counters, keys, bias };
  // At least so many bytes; what was there before may be lost. A new room is zero.
  void* room(Room which, size_t bytes);

  enum class Table {
    query_tiles,
    keys,
    dq_tiles,
    dq_keys,
    key_tiles,
    ranges,
    queries,
    paged_rows,
    pages,
    moment_codes
  };
  // A list of the host on the device. It is copied only if it differs from the one before.
  template <class T>
  const T* table(Table which, const std::vector<T>& list) {
    return static_cast<const T*>(table(which, list.data(), list.size() * sizeof(T)));
  }

 private:
  struct Held {
    Buffer memory;
    std::vector<std::byte> host;
  };
  const void* table(Table which, const void* host, size_t bytes);
  void* grow(Buffer& buffer, size_t bytes, const char* purpose);
  void copy(void* to, const void* from, size_t bytes);
  struct Call;
  static void run(void* call);
  class Graph;
  size_t left() const;
  // Failure INTERNAL in a recording: of something that it cannot hold.
  void not_recorded(const char* what) const;

  Device& device_;
  const Runtime& runtime_;
  DeviceMemory& memory_;
  CudaStream raw_ = nullptr;
  CudaEvent event_ = nullptr;  // recorded anew for each stream that waits
  bool records_, recording_ = false;
  std::array<Buffer, 5> rooms_;
  std::array<Held, 10> tables_;
  const std::atomic<bool>* aborted_ = nullptr;
  std::shared_ptr<StreamError> error_ = std::make_shared<StreamError>();
};

// The Failure of an error of the runtime, with what to do.
[[noreturn]] void fail_runtime(const Runtime& runtime, int code, const char* what);
inline void check_runtime(const Runtime& runtime, int code, const char* what) {
  if (code) fail_runtime(runtime, code, what);
}

DeviceStream& device_stream(Stream& stream);

}  // namespace tokenring::cuda
