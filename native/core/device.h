// A device owns memory and streams and offers the table of ops. One implementation a backend.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

namespace tokenring {

class Ops;

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

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  virtual std::unique_ptr<Stream> stream() = 0;
  virtual const Ops& ops() const = 0;
  // 256-byte aligned. Throws Failure OUT_OF_MEMORY with the size asked for. Never called in the steady state.
  virtual void* allocate(size_t bytes) = 0;
  virtual void free(void* data) noexcept = 0;
};

// Device memory with an owner.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device& device, size_t bytes)
      : device_(&device), bytes_(bytes), data_(bytes ? device.allocate(bytes) : nullptr) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() {
    if (data_) device_->free(data_);
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  size_t bytes_ = 0;
  void* data_ = nullptr;
};

}  // namespace tokenring
