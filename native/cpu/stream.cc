#include "cpu/stream.h"

#include <algorithm>
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

Region region_of(const Tensor& t, bool by_row, bool written) {
  const size_t rows = by_row && t.rows() > 0 ? static_cast<size_t>(t.rows()) : 0;
  return {static_cast<const std::byte*>(t.data), t.data ? t.bytes() : 0, rows ? t.bytes() / rows : 0, written};
}

// Whether a block of rows of one job may not overtake other rows of the other.
bool conflict(const Region& a, const Region& b) {
  if (!a.written && !b.written) return false;
  if (a.data + a.bytes <= b.data || b.data + b.bytes <= a.data) return false;
  return !(a.data == b.data && a.row == b.row && a.row > 0);
}

// Rows of one block: they stay in a core's second cache through a chain.
constexpr int64_t kBlockRows = 96;
constexpr double kBlockNanoseconds = 8000;  // that are worth another thread

}  // namespace

Region read_rows(const Tensor& t) { return region_of(t, true, false); }
Region write_rows(const Tensor& t) { return region_of(t, true, true); }
Region read_all(const Tensor& t) { return region_of(t, false, false); }
Region write_all(const Tensor& t) { return region_of(t, false, true); }

CpuStream::CpuStream(Runs runs) : never_(runs == Runs::never) {
  if (never_) return;
  thread_ = std::thread([this, alone = runs == Runs::alone] {
    if (alone) ThreadPool::keep_to_this_thread();
    loop();
  });
}

CpuStream::~CpuStream() {
  if (never_) return;
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  arrived_.notify_one();
  thread_.join();
}

void CpuStream::push(Job job) {
  if (never_) {
    if (aborted_ && aborted_->load(std::memory_order_relaxed) && !job.always)
      fail("ABORTED", "the computation was aborted by its caller");
    return;
  }
  bool idle;
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(job));
    idle = !running_;
  }
  if (idle) arrived_.notify_one();
}

void CpuStream::enqueue(std::function<void()> job) { push({.run = std::move(job)}); }

void CpuStream::enqueue_rows(ThreadPool& pool, RowJob job) { push({.pool = &pool, .rows = std::move(job)}); }

void CpuStream::enqueue_sum(std::vector<Region> regions, std::function<void()> job) {
  push({.run = std::move(job),
        .rows = {.regions = std::move(regions)},
        .is_sum = true,
        .before = before_,
        .mine = mine_ ? std::shared_ptr<Turn>(mine_.get(), [owner = mine_](Turn* turn) { turn->count(); }) : nullptr});
}

void CpuStream::take_turns(std::shared_ptr<Turn> mine, std::shared_ptr<Turn> before) {
  mine_ = std::move(mine);
  before_ = std::move(before);
}

void CpuStream::watch(const std::atomic<bool>* aborted) {
  std::lock_guard lock(mutex_);
  aborted_ = aborted;
}

bool CpuStream::belongs(const std::vector<Job>& chain, const Job& next) const {
  if (next.is_sum) return true;
  if (next.pool != chain.front().pool || next.rows.rows != chain.front().rows.rows) return false;
  return std::none_of(chain.begin(), chain.end(), [&](const Job& job) {
    return std::any_of(job.rows.regions.begin(), job.rows.regions.end(), [&](Region a) {
      return std::any_of(next.rows.regions.begin(), next.rows.regions.end(), [&](Region b) { return conflict(a, b); });
    });
  });
}

void CpuStream::run(std::vector<Job>& chain) {
  Job& first = chain.front();
  if (first.pool && first.rows.rows > 0) {
    const int64_t rows = first.rows.rows;
    double nanoseconds = 0;  // of one row
    for (const Job& job : chain) nanoseconds += job.rows.nanoseconds;
    // As many blocks for each thread, so that all end together; but no smaller than pays.
    const int64_t threads = first.pool->threads();
    int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
    blocks = (blocks + threads - 1) / threads * threads;
    const int64_t least = static_cast<int64_t>(kBlockNanoseconds / nanoseconds) + 1;
    first.pool->run(rows, std::max((rows + blocks - 1) / blocks, least), [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; at += kBlockRows)
        for (const Job& job : chain)
          if (job.pool) job.rows.body(at, std::min(at + kBlockRows, end));
    });
  }
  for (Job& job : chain) {
    if (job.pool) continue;
    if (job.before) job.before->wait_for(std::min(job.mine->left - 1, job.mine->common));
    job.run();
    job.mine.reset();
  }
}

void CpuStream::keep(std::exception_ptr error) {
  std::lock_guard lock(mutex_);
  if (!error_) error_ = std::move(error);
}

void CpuStream::loop() {
  std::vector<Job> chain;  // more than one job only of rows, and what can wait for them
  std::unique_lock lock(mutex_);
  for (;;) {
    running_ = false;
    if (queue_.empty()) drained_.notify_all();
    arrived_.wait(lock, [this] { return closing_ || !queue_.empty(); });
    if (queue_.empty()) return;
    running_ = true;
    while (!queue_.empty()) {
      do {
        chain.push_back(std::move(queue_.front()));
        queue_.pop_front();
      } while (chain.front().pool && !queue_.empty() && belongs(chain, queue_.front()));
      const bool skip = error_ && !chain.front().always;
      const bool aborted = aborted_ && aborted_->load(std::memory_order_relaxed);
      lock.unlock();
      if (!skip) {
        try {
          if (aborted && !chain.front().always) fail("ABORTED", "the computation was aborted by its caller");
          run(chain);
        } catch (...) {
          keep(std::current_exception());
        }
      }
      chain.clear();  // what the jobs hold is freed before synchronize() returns
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
  from.push({.run =
                 [&from, event] {
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
             .always = true});
  push({.run =
            [event] {
              std::unique_lock lock(event->mutex);
              event->changed.wait(lock, [&] { return event->signalled; });
              if (event->error) std::rethrow_exception(event->error);
            },
        .always = true});
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
