// A stream of the CPU backend: a thread with a queue.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "core/device.h"

namespace tokenring::cpu {

// After a job fails, later jobs are skipped until synchronize() has rethrown the failure. A stream that waits for a
// failed one fails with it, because what it would read was never written.
class CpuStream final : public Stream {
 public:
  CpuStream();
  ~CpuStream() override;  // runs what is queued

  void synchronize() override;
  void wait(Stream& other) override;
  void copy_to_device(void* device, const void* host, size_t bytes) override;
  void copy_to_host(void* host, const void* device, size_t bytes) override;
  void copy_on_device(void* to, const void* from, size_t bytes) override;
  void call(std::function<void()> work) override { enqueue(std::move(work)); }

  void enqueue(std::function<void()> job) { push({std::move(job), false}); }

 private:
  struct Job {
    std::function<void()> run;
    bool always;  // events are signalled even after a failure
  };
  void push(Job job);
  void loop();
  void keep(std::exception_ptr error);

  std::mutex mutex_;
  std::condition_variable arrived_, drained_;
  std::deque<Job> queue_;
  bool running_ = false, closing_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

CpuStream& cpu_stream(Stream& stream);

}  // namespace tokenring::cpu
