#include "cpu/stream.h"

#include <cstring>
#include <utility>

#include "core/failure.h"

namespace tokenring::cpu {
namespace {

// Signalled once, by the thread of the stream that is waited for.
struct Event {
  std::mutex mutex;
  std::condition_variable changed;
  bool signalled = false;
  std::exception_ptr error;
};

}  // namespace

CpuStream::CpuStream() : thread_([this] { loop(); }) {}

CpuStream::~CpuStream() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  arrived_.notify_one();
  thread_.join();
}

void CpuStream::push(Job job) {
  bool idle;
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(job));
    idle = !running_;
  }
  if (idle) arrived_.notify_one();
}

void CpuStream::keep(std::exception_ptr error) {
  std::lock_guard lock(mutex_);
  if (!error_) error_ = std::move(error);
}

void CpuStream::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    running_ = false;
    if (queue_.empty()) drained_.notify_all();
    arrived_.wait(lock, [this] { return closing_ || !queue_.empty(); });
    if (queue_.empty()) return;
    running_ = true;
    while (!queue_.empty()) {
      Job job = std::move(queue_.front());
      queue_.pop_front();
      const bool skip = error_ && !job.always;
      lock.unlock();
      if (!skip) {
        try {
          job.run();
        } catch (...) {
          keep(std::current_exception());
        }
      }
      job.run = nullptr;  // what the job holds is freed before synchronize() returns
      lock.lock();
    }
  }
}

void CpuStream::synchronize() {
  std::unique_lock lock(mutex_);
  drained_.wait(lock, [this] { return queue_.empty() && !running_; });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void CpuStream::wait(Stream& other) {
  CpuStream& from = cpu_stream(other);
  if (&from == this) return;
  auto event = std::make_shared<Event>();
  from.push({[&from, event] {
               std::exception_ptr error;
               {
                 std::lock_guard lock(from.mutex_);
                 error = from.error_;
               }
               {
                 std::lock_guard lock(event->mutex);
                 event->signalled = true;
                 event->error = error;
               }
               event->changed.notify_all();
             },
             true});
  push({[event] {
          std::unique_lock lock(event->mutex);
          event->changed.wait(lock, [&] { return event->signalled; });
          if (event->error) std::rethrow_exception(event->error);
        },
        true});
}

void CpuStream::copy_to_device(void* device, const void* host, size_t bytes) { copy_on_device(device, host, bytes); }

void CpuStream::copy_to_host(void* host, const void* device, size_t bytes) { copy_on_device(host, device, bytes); }

void CpuStream::copy_on_device(void* to, const void* from, size_t bytes) {
  require(bytes == 0 || (to && from), "copy of ", bytes, " bytes from or to a null pointer");
  enqueue([=] {
    if (bytes) std::memmove(to, from, bytes);
  });
}

CpuStream& cpu_stream(Stream& stream) {
  auto* cpu = dynamic_cast<CpuStream*>(&stream);
  require(cpu, "an op of the CPU backend was given a stream of another device");
  return *cpu;
}

}  // namespace tokenring::cpu
