#include "comm/nccl_link.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>
#include <thread>

#include "core/failure.h"

namespace tokenring::comm {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kSettle{1};      // between two looks at a call of NCCL that is in progress
constexpr milliseconds kHubTime{3000};  // that the hub has to decide: more than its referee's grace

}  // namespace

NcclLink::NcclLink(const nccl::Library& library, const CommunicatorOptions& options, bool check)
    : library_(library),
      options_(options),
      check_(check),
      has_hub_(read_hub_id(options.id, &hub_)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (wake_ < 0) fail("INTERNAL", "the communicator could not open an eventfd");
}

NcclLink::~NcclLink() { close(wake_); }

std::string NcclLink::in_seconds() const {
  std::ostringstream text;
  text << static_cast<double>(options_.timeout.count()) / 1000 << " s";
  return text.str();
}

// --- joining -------------------------------------------------------------------------------------------

void NcclLink::join() {
  const auto deadline = Clock::now() + options_.timeout;
  try {
    if (has_hub_) connect(deadline);
    {
      std::lock_guard lock(mutex_);
      joining_ = watched_ = true;
    }
    std::thread([self = shared_from_this()] { self->watch(); }).detach();
    connect_nccl(deadline);
  } catch (const Failure& failure) {
    break_with(failure);
    throw;
  }
}

void NcclLink::connect(Clock::time_point deadline) {
  Hello hello{hub_.nonce,  kHubVersion, options_.rank, options_.size, static_cast<int32_t>(getpid()),
              this_host(), {},          options_.names};
  if (options_.rank == 0)
    if (const int error = library_.GetUniqueId(&hello.nccl))
      fail("COMMUNICATOR", "NCCL gave no unique id: ", library_.GetErrorString(error), ": ",
           library_.GetLastError(nullptr));
  bool refused = false;
  const int fd = connect_to(
      hub_.place, deadline,
      [this] {
        std::lock_guard lock(mutex_);
        return broken_.has_value();
      },
      &refused);
  if (fd < 0) check_whole();
  if (fd < 0 && refused)
    fail("COMMUNICATOR", "nobody answers for this unique id: process ", hub_.place.process,
         ", which made it, must live as long as the ranks, or the communicator is over; make a new one");
  if (fd < 0)
    fail("TIMEOUT", here(), " waited in join for ", in_seconds(), ": process ", hub_.place.process,
         ", which made the unique id, could not be reached at port ", hub_.place.port,
         "; look at that process and at the network between the hosts");
  {
    std::lock_guard lock(line_mutex_);
    line_ = std::make_unique<Connection>(fd);
    line_->send(static_cast<uint32_t>(Say::hello), hello);
  }
  std::string why;
  {
    std::lock_guard lock(mutex_);
    why = abort_;
  }
  if (!why.empty()) say(Say::abort, why);  // there was no line before
  check_whole();
}

void NcclLink::connect_nccl(Clock::time_point deadline) {
  UniqueId id = options_.id;
  if (has_hub_) {
    std::unique_lock lock(mutex_);
    const auto there = [this] { return nccl_id_ || broken_; };
    if (!changed_.wait_until(lock, deadline, there)) {
      lock.unlock();
      appeal_late("join");
      wait_for_end();
    }
    if (broken_) {
      lock.unlock();
      throw_broken();
    }
    id = *nccl_id_;
  }
  nccl::Config config;
  int result;
  {
    std::lock_guard calling(library_mutex_);
    result = library_.CommInitRankConfig(&comm_, options_.size, id, options_.rank, &config);
  }
  const auto started = Clock::now();
  while (result == nccl::kInProgress) {
    std::this_thread::sleep_for(kSettle);
    check_whole();
    if (Clock::now() >= std::max(deadline, started)) appeal_late("join"), wait_for_end();
    std::lock_guard calling(library_mutex_);
    if (!comm_) continue;  // aborted: check_whole() says why
    if (const int error = library_.CommGetAsyncError(comm_, &result)) result = error;
  }
  if (result != nccl::kSuccess) appeal_error(result, "join"), wait_for_end();
  {
    std::lock_guard lock(mutex_);
    joining_ = false;
    joined_ = true;
  }
  say(Say::finished, uint64_t{0});
}

// --- operations ----------------------------------------------------------------------------------------

void NcclLink::run(Stream& stream, Call call, std::vector<Message> messages,
                   const std::function<int(nccl::Comm, cuda::CudaStream)>& issue) {
  cuda::DeviceStream& on = cuda::device_stream(stream);
  std::lock_guard one(queueing_);
  try {
    queue(on, call, messages, issue);
  } catch (const Failure&) {
    on.error()->set(std::current_exception());  // for synchronize(), as what fails later
  }
}

void NcclLink::queue(cuda::DeviceStream& stream, Call call, std::vector<Message>& messages,
                     const std::function<int(nccl::Comm, cuda::CudaStream)>& issue) {
  {
    std::lock_guard lock(mutex_);
    require(joined_ || broken_, here(), " has not joined the communicator");
    if (!runtime_) runtime_ = &stream.runtime();
  }
  check_whole();
  const uint64_t number = ++operations_;
  const std::string name =
      comm::name_of(static_cast<Kind>(call.kind),
                    call.sequence = static_cast<Kind>(call.kind) == Kind::exchange ? ++exchanges_ : ++collectives_);
  std::string announcement(sizeof(Call) + messages.size() * sizeof(Message), 0);
  std::memcpy(announcement.data(), &call, sizeof(Call));
  if (!messages.empty())
    std::memcpy(announcement.data() + sizeof(Call), messages.data(), messages.size() * sizeof(Message));
  say(Say::queued, announcement);

  Operation operation{number, name, take_event(), take_event(), stream.error(), {}};
  cuda::check_runtime(stream.runtime(), stream.runtime().event_record(operation.begin, stream.raw()),
                      "recording an event");
  int result = nccl::kSuccess;
  {
    std::lock_guard calling(library_mutex_);
    if (comm_) result = issue(comm_, stream.raw());
  }
  settle(result, name);
  cuda::check_runtime(stream.runtime(), stream.runtime().event_record(operation.end, stream.raw()),
                      "recording an event");
  {
    std::lock_guard lock(mutex_);
    under_way_.push_back(operation);
    if (broken_) stream.error()->set(std::make_exception_ptr(*broken_));
  }
  wake();
  if (check_ && has_hub_) stream.call([self = shared_from_this(), number, name] { self->confirm(number, name); });
}

// The first operations between two ranks make their connections, for which NCCL may wait for the others.
void NcclLink::settle(int result, const std::string& what) {
  const auto deadline = Clock::now() + options_.timeout;
  if (result != nccl::kSuccess && result != nccl::kInProgress) appeal_error(result, what), wait_for_end();
  while (result == nccl::kInProgress) {
    {
      std::lock_guard calling(library_mutex_);
      if (comm_)
        if (const int error = library_.CommGetAsyncError(comm_, &result)) result = error;
    }
    check_whole();
    if (result == nccl::kInProgress && Clock::now() >= deadline) appeal_late(what), wait_for_end();
    if (result == nccl::kInProgress) std::this_thread::sleep_for(kSettle);
  }
  if (result == nccl::kSuccess) return;
  // What comes by itself is rather of what was called before.
  std::string before = what;
  {
    std::lock_guard lock(mutex_);
    if (!under_way_.empty()) before = under_way_.front().name;
  }
  appeal_error(result, before);
  wait_for_end();
}

// On a thread of the CUDA runtime. What it waits for are calls that other ranks have made before, or will without
// waiting for this one: of an operation that its GPU has done, they have nearly always come already.
void NcclLink::confirm(uint64_t number, const std::string& name) {
  std::unique_lock lock(mutex_);
  const auto there = [&] { return passed_ >= number || broken_; };
  if (!changed_.wait_for(lock, options_.timeout, there)) {
    lock.unlock();
    appeal_late(name);
    wait_for_end();
  }
  if (broken_) throw *broken_;
}

cuda::CudaEvent NcclLink::take_event() {
  {
    std::lock_guard lock(mutex_);
    if (!events_.empty()) {
      const cuda::CudaEvent event = events_.back();
      events_.pop_back();
      return event;
    }
  }
  cuda::CudaEvent event = nullptr;
  cuda::check_runtime(*runtime_, runtime_->event_create(&event), "making an event");
  return event;
}

// --- the end -------------------------------------------------------------------------------------------

void NcclLink::check_whole() {
  {
    std::lock_guard lock(mutex_);
    if (!broken_ && !(has_hub_ && hub_gone_)) return;
  }
  broken_by("COMMUNICATOR", "the process that made the unique id has ended; it must live as long as the ranks");
  throw_broken();
}

void NcclLink::throw_broken() {
  std::lock_guard lock(mutex_);
  throw *broken_;
}

void NcclLink::break_with(const Failure& failure) noexcept {
  {
    std::lock_guard lock(mutex_);
    if (broken_) return;
    broken_ = failure;
    // Before NCCL's kernels end, so that nobody takes their end for success.
    for (const Operation& one : under_way_) one.error->set(std::make_exception_ptr(failure));
  }
  changed_.notify_all();
  wake();
}

void NcclLink::broken_by(const char* code, const std::string& reason) noexcept {
  break_with(Failure(code, "the communicator is broken: " + reason));
}

void NcclLink::appeal(Say what, const std::string& payload, const char* code, const std::string& reason) {
  bool hub;
  {
    std::lock_guard lock(mutex_);
    hub = has_hub_ && !hub_gone_;
    if (hub && !fallback_)
      fallback_ = {
          Clock::now() + kHubTime,
          Failure(code, reason + "; its hub, in process " + std::to_string(hub_.place.process) + ", does not answer")};
  }
  if (!hub) return broken_by(code, reason);
  say(what, payload);
  wake();
}

void NcclLink::appeal_late(const std::string& what) {
  const double seconds = static_cast<double>(options_.timeout.count()) / 1000;
  std::string payload(sizeof(seconds), 0);
  std::memcpy(payload.data(), &seconds, sizeof(seconds));
  appeal(Say::late, payload, "TIMEOUT",
         here() + " waited in " + what + " for " + in_seconds() + "; NCCL does not say who is missing");
}

void NcclLink::appeal_error(int result, const std::string& what) {
  std::string text = library_.GetErrorString(result);
  {
    std::lock_guard calling(library_mutex_);
    const char* more = library_.GetLastError(comm_);
    if (more && *more) text += std::string(" (") + more + ")";
  }
  text = what + ": " + text;
  appeal(Say::failed, text, "COMMUNICATOR", "NCCL failed on " + here() + " in " + text);
}

void NcclLink::wait_for_end() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, 2 * kHubTime, [this] { return broken_.has_value(); });
  }
  broken_by("TIMEOUT", here() + " got no answer from its own watch");  // if that is stuck in NCCL
  throw_broken();
}

void NcclLink::abort(const std::string& why) noexcept {
  {
    std::lock_guard lock(mutex_);
    if (broken_ || ended_) return;
    abort_ = why;
  }
  // In this order: the hub's answer is for the others.
  break_with(Failure("ABORTED", here() + " aborted the communicator; make a new one"));
  say(Say::abort, why);
}

void NcclLink::leave() noexcept {
  std::unique_lock lock(mutex_);
  leaving_ = true;
  if (!watched_) return;
  lock.unlock();
  wake();
  lock.lock();
  changed_.wait_for(lock, options_.timeout + kFlush + kHubTime, [this] { return ended_; });
}

}  // namespace tokenring::comm
