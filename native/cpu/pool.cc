#include "cpu/pool.h"

#include <algorithm>
#include <chrono>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tokenring::cpu {
namespace {

thread_local bool inside_a_loop = false;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Spins until `ready` or for about 40 microseconds: longer than the gap between two ops of one stream, shorter than
// a sleep and a wake-up.
template <class Ready>
bool spin(const Ready& ready) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(40);
  do {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  {
    std::lock_guard lock(sleep_);
    ++epoch_;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::keep_to_this_thread() { inside_a_loop = true; }

int ThreadPool::free_threads() const { return inside_a_loop ? 1 : threads(); }

void ThreadPool::run_chunks(int64_t n, int64_t grain, Call call, const void* context) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  std::unique_lock loop(loop_, std::defer_lock);
  if (workers_.empty() || n <= grain || inside_a_loop || !loop.try_lock()) {
    call(context, 0, n);
    return;
  }
  call_ = call;
  context_ = context;
  n_ = n;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  open_ = true;
  ++epoch_;
  if (sleepers_ > 0) {
    std::lock_guard lock(sleep_);
    wake_.notify_all();
  }
  claim_chunks();
  // A worker that enters from here on sees the loop closed and leaves; one that was inside is waited for.
  open_ = false;
  if (!spin([this] { return inside_ == 0; })) {
    std::unique_lock lock(sleep_);
    done_.wait(lock, [this] { return inside_ == 0; });
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::claim_chunks() {
  struct Inside {
    Inside() { inside_a_loop = true; }
    ~Inside() { inside_a_loop = false; }
  } const inside;
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= n_) return;
    try {
      call_(context_, begin, std::min(begin + grain_, n_));
    } catch (...) {
      std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
}

void ThreadPool::work() {
  uint64_t seen = 0;
  while (!stopping_) {
    if (!spin([&] { return epoch_ != seen; })) sleep_until_changed(seen);
    seen = epoch_;
    ++inside_;
    if (open_) claim_chunks();
    if (--inside_ == 0 && !open_) {
      // The caller may have gone to sleep waiting for this.
      std::lock_guard lock(sleep_);
      done_.notify_all();
    }
  }
}

void ThreadPool::sleep_until_changed(uint64_t seen) {
  std::unique_lock lock(sleep_);
  ++sleepers_;
  wake_.wait(lock, [&] { return epoch_ != seen; });
  --sleepers_;
}

}  // namespace tokenring::cpu
