// Calls that run one after the other on a native thread of their own, for one environment: what the functions of
// tokenring/ops and the communicator are made of.
#pragma once

#include <napi.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "addon/call.h"
#include "addon/held.h"
#include "addon/results.h"

namespace tokenring::addon {

// A thread with a queue.
class Worker {
 public:
  Worker() : thread_([this] { loop(); }) {}
  // Waits for the job that runs; the others are destroyed unrun.
  ~Worker();
  void post(std::function<void()> job);

 private:
  void loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::thread thread_;
};

class Jobs : public Closable {
 public:
  // `owner` is who was disposed when a call ends unrun: "the communicator". `interrupt` ends a call that waits.
  Jobs(Napi::Env, std::string owner, std::function<void()> interrupt = nullptr);
  ~Jobs() override { close_now(); }

  // The environment ends: aborts the calls and waits for the one that runs.
  void close_now() override;

  bool open() const { return worker_ != nullptr; }
  void check_open() const;  // Failure DISPOSED
  bool idle() const { return calls_.empty(); }

  // Queues work(aborted) -> Result, and gives { promise, abort() }. What `held` holds, it holds until the call has
  // settled. on_abort runs on the environment's thread, once.
  template <class Result, class Work>
  Napi::Value submit(Napi::Env env, std::shared_ptr<Held> held, Work work, std::function<void()> on_abort = nullptr) {
    check_open();
    const auto call = std::make_shared<Call>(env);
    worker_->post([work = std::move(work), completion = begin<Result>(call, std::move(held))] {
      completion->run([&] { return work(completion->aborted()); });
    });
    return job_handle(env, call, [call, on_abort = std::move(on_abort)] {
      if (!call->over && on_abort) on_abort();
    });
  }

  // Ends the thread: the call that runs is waited for, the others end with Failure DISPOSED. `last` runs on the way,
  // on another thread. The promise resolves when all is done; later calls give the same one, and need no `held`.
  Napi::Value close(Napi::Env, std::shared_ptr<Held> held, std::function<void()> last);

 private:
  template <class Result>
  std::shared_ptr<Completion<Result>> begin(const std::shared_ptr<Call>& call, std::shared_ptr<Held> held) {
    calls_.insert(call);
    channel_->begin();
    held->begin();
    call->inspect = [held](Napi::Env env) { held->inspect(env); };
    call->settled = [this, call = call.get(), held, also = std::move(call->settled)] {
      if (also) also();
      calls_.erase(std::find_if(calls_.begin(), calls_.end(), [&](const auto& c) { return c.get() == call; }));
      held->release();  // last: it may hold what this belongs to
    };
    using ToJavaScript = typename Completion<Result>::ToJavaScript;
    return std::make_shared<Completion<Result>>(channel_, call, static_cast<ToJavaScript>(to_js), owner_);
  }

  std::shared_ptr<Channel> channel_;
  std::string owner_;
  std::function<void()> interrupt_;
  std::unique_ptr<Worker> worker_;  // null after close()
  std::set<std::shared_ptr<Call>> calls_;
  std::thread closer_;
  Napi::Reference<Napi::Promise> closing_;
};

}  // namespace tokenring::addon
