// A stream of the CPU backend: a thread with a queue.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/device.h"
#include "core/tensor.h"
#include "cpu/pool.h"

namespace tokenring::cpu {

// Memory that a job of rows touches: row i of the job's rows at `data` + i * `row` bytes, or all of it at any time.
struct Region {
  const std::byte* data = nullptr;
  size_t bytes = 0, row = 0;  // row 0: all of it
  bool written = false;
};
// A tensor of one row (of the job) each.
Region read_rows(const Tensor&);
Region write_rows(const Tensor&);
Region read_all(const Tensor&);
Region write_all(const Tensor&);

// An op whose rows depend on nothing but the same rows of what came before. body(begin, end) computes some of them,
// without a loop of its own over the pool's threads.
struct RowJob {
  int64_t rows = 0;
  double nanoseconds = 0;  // that one row costs, about
  std::vector<Region> regions;
  std::function<void(int64_t, int64_t)> body;
};

// After a job fails, later jobs are skipped until synchronize() has rethrown the failure. A stream that waits for a
// failed one fails with it, because what it would read was never written.
class CpuStream final : public Stream {
 public:
  // alone: its loops keep to its own thread. never: what is queued is dropped, and so has ended at once.
  enum class Runs { on_all, alone, never };
  explicit CpuStream(Runs runs = Runs::on_all);
  ~CpuStream() override;  // runs what is queued

  void synchronize() override;
  void wait(Stream& other) override;
  void copy_to_device(void* device, const void* host, size_t bytes) override;
  void copy_to_host(void* host, const void* device, size_t bytes) override;
  void copy_on_device(void* to, const void* from, size_t bytes) override;
  void call(std::function<void()> work) override { enqueue(std::move(work)); }
  void watch(const std::atomic<bool>* aborted) override;
  void take_turns(std::shared_ptr<Turn> mine, std::shared_ptr<Turn> before) override;

  void enqueue(std::function<void()> job);
  // Jobs of rows that follow each other run as a chain: each block of rows goes through all of them while it is in the
  // near cache. What would see a difference, by the memory that it touches, waits for the end of the chain.
  void enqueue_rows(ThreadPool& pool, RowJob job);
  // A sum over tokens. It waits for its turn, and for the end of the chain, which goes on past it unless it touches
  // `regions`.
  void enqueue_sum(std::vector<Region> regions, std::function<void()> job);

 private:
  struct Job {
    std::function<void()> run;   // or `rows`
    bool always = false;         // events are signalled even after a failure
    ThreadPool* pool = nullptr;  // of `rows`
    RowJob rows = {};
    bool is_sum = false;  // `rows.regions` says what it touches
    std::shared_ptr<Turn> before = nullptr;
    std::shared_ptr<Turn> mine = nullptr;  // counted down when the job has run or is dropped
  };
  void push(Job job);
  void loop();
  bool belongs(const std::vector<Job>& chain, const Job& next) const;
  void run(std::vector<Job>& chain);
  void keep(std::exception_ptr error);

  std::mutex mutex_;
  std::condition_variable arrived_, drained_;
  std::deque<Job> queue_;
  const bool never_;
  bool running_ = false, closing_ = false;
  const std::atomic<bool>* aborted_ = nullptr;
  std::shared_ptr<Turn> mine_, before_;  // of the caller's thread
  std::exception_ptr error_;
  std::thread thread_;
};

CpuStream& cpu_stream(Stream& stream);

}  // namespace tokenring::cpu
