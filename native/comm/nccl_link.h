// A rank's end of a communicator over NCCL: NCCL's own, the line to the hub, and a thread that watches over both.
//
// What is queued is told to the hub first. Two events around each operation say when the GPU comes to it and when it is
// through; the watch reads them, tells the hub, and knows from them how long the operation has been waiting. When the
// hub decides that it cannot end well, when NCCL reports an error or a deadline passes, the streams of what is under
// way get the Failure and then NCCL is aborted, which ends its kernels: so synchronize() comes back and throws.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/call.h"
#include "comm/connection.h"
#include "comm/hub.h"
#include "comm/nccl_library.h"
#include "comm/referee.h"
#include "cuda/stream.h"

namespace tokenring::comm {

class NcclLink : public std::enable_shared_from_this<NcclLink> {
 public:
  // `check`: an operation ends only when all its ranks are known to have queued the same.
  NcclLink(const nccl::Library& library, const CommunicatorOptions& options, bool check);
  ~NcclLink();

  void join();
  // Queues `issue`, which makes NCCL's calls and returns what they returned. `call` has no sequence yet.
  void run(Stream& stream, Call call, std::vector<Message> messages,
           const std::function<int(nccl::Comm, cuda::CudaStream)>& issue);
  void abort(const std::string& why) noexcept;
  // Ends the watch; comes back when it has given everything back, or after a while without.
  void leave() noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  // That NCCL has to end what is under way when a rank leaves.
  static constexpr std::chrono::milliseconds kFlush{10'000};

  struct Operation {
    uint64_t number;
    std::string name;
    cuda::CudaEvent begin, end;
    std::shared_ptr<cuda::StreamError> error;
    std::optional<Clock::time_point> begun;
  };

  std::string here() const { return name_of_rank(options_.rank, options_.size, options_.names); }
  std::string in_seconds() const;

  // --- from the outside
  void connect(Clock::time_point deadline);
  void connect_nccl(Clock::time_point deadline);
  void settle(int result, const std::string& what);  // of a call that may still be in progress
  void confirm(uint64_t number, const std::string& name);
  void queue(cuda::DeviceStream&, Call, std::vector<Message>&,
             const std::function<int(nccl::Comm, cuda::CudaStream)>& issue);
  cuda::CudaEvent take_event();
  [[noreturn]] void throw_broken();
  void check_whole();

  // --- the end
  // The first that is said stays.
  void break_with(const Failure& failure) noexcept;
  void broken_by(const char* code, const std::string& reason) noexcept;
  // Tells the hub, whose verdict knows more, and takes this one if none comes in time.
  void appeal(Say what, const std::string& payload, const char* code, const std::string& reason);
  void appeal_late(const std::string& what);
  void appeal_error(int result, const std::string& what);
  void wait_for_end();  // until it is broken

  // --- the watch
  void watch();
  void wait_for_news();
  void wake() noexcept;
  void listen();
  void hear(Say what, const std::string& bytes);
  void look_at_operations();
  void look_at_nccl();
  bool over();
  void end_nccl(bool broken);
  void say(Say what, const std::string& text = "");
  void say(Say what, uint64_t number);

  const nccl::Library& library_;
  const CommunicatorOptions options_;
  const bool check_;
  HubId hub_{};
  const bool has_hub_;
  int wake_ = -1;  // an eventfd

  std::mutex line_mutex_;  // of line_
  std::unique_ptr<Connection> line_;
  Clock::time_point beat_{};

  std::timed_mutex library_mutex_;  // around calls of NCCL
  nccl::Comm comm_ = nullptr;

  std::mutex queueing_;  // one operation at a time
  uint64_t operations_ = 0, collectives_ = 0, exchanges_ = 0;

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::optional<Failure> broken_;
  std::optional<std::pair<Clock::time_point, Failure>> fallback_;
  std::optional<UniqueId> nccl_id_;
  uint64_t passed_ = 0;
  bool joining_ = false, joined_ = false, hub_gone_ = false, late_ = false;
  bool watched_ = false, leaving_ = false, ended_ = false;
  std::string abort_;  // why, if this rank did
  std::deque<Operation> under_way_;
  std::vector<cuda::CudaEvent> events_;  // to use again
  const cuda::Runtime* runtime_ = nullptr;
};

}  // namespace tokenring::comm
