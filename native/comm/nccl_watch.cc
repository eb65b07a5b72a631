// The watch of a communicator over NCCL: see comm/nccl_link.h.
#include <poll.h>
#include <unistd.h>

#include <thread>

#include "comm/nccl_link.h"

namespace tokenring::comm {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLook{2};         // while something is under way
constexpr milliseconds kLibrary{1'000};  // that a call of NCCL, none of which blocks, may take before an abort

}  // namespace

void NcclLink::say(Say what, const std::string& text) {
  std::lock_guard lock(line_mutex_);
  if (line_) line_->send(static_cast<uint32_t>(what), text);
}

void NcclLink::say(Say what, uint64_t number) {
  std::lock_guard lock(line_mutex_);
  if (line_) line_->send(static_cast<uint32_t>(what), number);
}

void NcclLink::watch() {
  while (!over()) {
    wait_for_news();
    listen();
    look_at_operations();
    look_at_nccl();
  }
  bool broken;
  {
    std::lock_guard lock(mutex_);
    broken = broken_.has_value();
  }
  end_nccl(broken);
  if (!broken) say(Say::leave);
  {
    std::lock_guard lock(line_mutex_);
    line_.reset();
  }
  std::lock_guard lock(mutex_);
  for (const Operation& one : under_way_) events_.insert(events_.end(), {one.begin, one.end});
  under_way_.clear();
  for (const cuda::CudaEvent event : std::exchange(events_, {})) runtime_->event_destroy(event);
  ended_ = true;
  changed_.notify_all();
}

bool NcclLink::over() {
  bool abort_now;
  {
    std::lock_guard lock(mutex_);
    if (leaving_ && (broken_ || under_way_.empty())) return true;
    abort_now = broken_.has_value();
  }
  if (abort_now) end_nccl(true);
  return false;
}

void NcclLink::wake() noexcept {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(wake_, &one, sizeof(one));
}

void NcclLink::wait_for_news() {
  pollfd fds[2] = {{wake_, POLLIN, 0}, {-1, POLLIN, 0}};
  {
    std::lock_guard lock(line_mutex_);
    if (line_) {
      fds[1].fd = line_->fd();
      if (line_->full()) fds[1].events |= POLLOUT;
    }
  }
  bool busy;
  {
    std::lock_guard lock(mutex_);
    busy = !broken_ && (joining_ || !under_way_.empty() || fallback_);
  }
  poll(fds, 2, static_cast<int>((busy ? kLook : kHeartbeat).count()));
  uint64_t count;
  if (fds[0].revents & POLLIN) [[maybe_unused]]
    const ssize_t n = read(wake_, &count, sizeof(count));
}

void NcclLink::listen() {
  std::vector<std::pair<Say, std::string>> heard;
  bool open = true, there = false;
  {
    std::lock_guard lock(line_mutex_);
    if (line_) {
      there = true;
      if (const auto now = Clock::now(); now - beat_ >= kHeartbeat) {
        beat_ = now;
        line_->send(static_cast<uint32_t>(Say::alive), std::string());
      }
      open = line_->serve([&](uint32_t type, const std::string& bytes) {
        heard.push_back({static_cast<Say>(type), bytes});
      });
      if (!open) line_.reset();
    }
  }
  try {
    for (const auto& [what, bytes] : heard) hear(what, bytes);
  } catch (const Failure& failure) {
    break_with(failure);
  }
  if (there && !open) {
    bool waiting;
    {
      std::lock_guard lock(mutex_);
      hub_gone_ = true;
      waiting = joining_ || !under_way_.empty();
    }
    if (waiting)
      broken_by("COMMUNICATOR", "the process that made the unique id has ended; it must live as long as the ranks");
  }
  std::optional<Failure> own;
  {
    std::lock_guard lock(mutex_);
    if (fallback_ && !broken_ && Clock::now() >= fallback_->first) own = fallback_->second;
  }
  if (own) break_with(*own);
}

void NcclLink::hear(Say what, const std::string& bytes) {
  if (what == Say::start || what == Say::passed) {
    {
      std::lock_guard lock(mutex_);
      if (what == Say::start)
        nccl_id_ = read_frame<UniqueId>(bytes);
      else
        passed_ = read_frame<uint64_t>(bytes);
    }
    changed_.notify_all();
  } else if (what == Say::refuse || what == Say::verdict) {
    const size_t end = bytes.find('\0');
    if (end == std::string::npos) fail("COMMUNICATOR", "a verdict without a code");
    const std::string code = bytes.substr(0, end), reason = bytes.substr(end + 1);
    if (what == Say::refuse)
      break_with(Failure(code, reason));
    else
      broken_by(code.c_str(), reason);
  }
}

void NcclLink::look_at_operations() {
  // Only this thread takes them away.
  for (;;) {
    Operation* first = nullptr;
    const cuda::Runtime* runtime = nullptr;
    {
      std::lock_guard lock(mutex_);
      if (under_way_.empty()) return;
      first = &under_way_.front();
      runtime = runtime_;
    }
    const auto reached = [&](cuda::CudaEvent event) {
      const int code = runtime->event_query(event);
      if (code != 0 && code != cuda::kCudaNotReady)
        broken_by("INTERNAL", std::string("CUDA failed: ") + runtime->error_text(code));
      return code == 0;
    };
    if (!first->begun && reached(first->begin)) {
      first->begun = Clock::now();
      say(Say::began, first->number);
    }
    if (first->begun && reached(first->end)) {
      say(Say::finished, first->number);
      std::lock_guard lock(mutex_);
      events_.push_back(first->begin);
      events_.push_back(first->end);
      under_way_.pop_front();
      changed_.notify_all();
      continue;
    }
    if (!first->begun || Clock::now() - *first->begun < options_.timeout) return;
    {
      std::lock_guard lock(mutex_);
      if (broken_ || std::exchange(late_, true)) return;
    }
    return appeal_late(first->name);
  }
}

void NcclLink::look_at_nccl() {
  int result = nccl::kSuccess;
  std::string name;
  {
    std::lock_guard lock(mutex_);
    if (broken_ || fallback_ || under_way_.empty()) return;
    name = under_way_.front().name;
  }
  {
    std::unique_lock calling(library_mutex_, std::try_to_lock);
    if (!calling || !comm_) return;
    if (const int error = library_.CommGetAsyncError(comm_, &result)) result = error;
  }
  if (result != nccl::kSuccess && result != nccl::kInProgress) appeal_error(result, name);
}

void NcclLink::end_nccl(bool broken) {
  nccl::Comm comm;
  {
    std::unique_lock calling(library_mutex_, std::defer_lock);
    // A caller that is stuck in NCCL is what an abort is for.
    const bool alone = calling.try_lock_for(kLibrary);
    comm = comm_;
    if (alone || broken) comm_ = nullptr;
  }
  if (!comm) return;
  if (!broken) {
    // What other ranks still get from this one is sent before it goes.
    const auto deadline = Clock::now() + kFlush;
    int result = library_.CommFinalize(comm);
    while (result == nccl::kInProgress && Clock::now() < deadline) {
      std::this_thread::sleep_for(kLook);
      if (const int error = library_.CommGetAsyncError(comm, &result)) result = error;
      listen();
    }
    if (result == nccl::kSuccess) {
      library_.CommDestroy(comm);
      return;
    }
  }
  library_.CommAbort(comm);
}

}  // namespace tokenring::comm
