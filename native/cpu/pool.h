// Threads that share one loop at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace tokenring::cpu {

// Workers claim chunks from an atomic counter; the caller takes part, so a loop ends even if no worker gets a core.
// Between loops a worker spins for some microseconds, then sleeps: idle costs nothing. Which thread runs a chunk is
// left to chance, so bodies must write disjoint memory and no result may depend on the chunking.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // including the caller's
  ~ThreadPool();
  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Threads that a loop would have that begins here: none but this one inside of another.
  int free_threads() const;
  // From now on loops of the calling thread run on it alone.
  static void keep_to_this_thread();

  // body(begin, end) over [0, n) in chunks of `grain`. Rethrows the first exception of a body after all have ended.
  // A second stream that arrives while a loop runs, runs its own loop alone; so does a body that begins one.
  template <class Body>
  void run(int64_t n, int64_t grain, const Body& body) {
    run_chunks(
        n, grain,
        [](const void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); },
        &body);
  }

 private:
  using Call = void (*)(const void*, int64_t, int64_t);
  void run_chunks(int64_t n, int64_t grain, Call call, const void* context);
  void claim_chunks();
  void work();
  void sleep_until_changed(uint64_t seen);

  std::vector<std::thread> workers_;
  std::mutex loop_;  // held by the stream whose loop runs

  // The running loop. Written only while `open_` is false and `inside_` is 0.
  Call call_ = nullptr;
  const void* context_ = nullptr;
  int64_t n_ = 0, grain_ = 1;
  std::exception_ptr error_;
  std::mutex error_mutex_;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<bool> open_{false};
  alignas(64) std::atomic<int> inside_{0};  // workers that may touch the fields above

  alignas(64) std::atomic<uint64_t> epoch_{0};  // grows with every loop, and at the end
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  std::mutex sleep_;
  std::condition_variable wake_, done_;
};

}  // namespace tokenring::cpu
