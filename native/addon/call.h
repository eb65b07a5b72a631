// One asynchronous call: its promise, its abort switch, and the completion that an engine thread holds.
#pragma once

#include <napi.h>

#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <utility>

#include "addon/channel.h"
#include "addon/state.h"

namespace tokenring::addon {

// What JavaScript's side keeps of a call; only `aborted` and `failed` are for engine threads as well.
struct Call {
  explicit Call(Napi::Env env) : deferred(Napi::Promise::Deferred::New(env)) {}

  Napi::Promise::Deferred deferred;
  std::atomic<bool> aborted = false;
  std::atomic<bool> failed = false;
  bool is_pass = false;  // adds to the gradients
  // Both run on the environment's thread, before JavaScript goes on.
  std::function<void(Napi::Env)> inspect;  // after success; what it throws becomes the outcome
  std::function<void()> settled;
  bool over = false;  // settled; whoever made the call may be gone from then on
};

// What an engine thread holds of a call. Settles once; one that is destroyed unsettled (its job was dropped
// unrun) ends the call with Failure DISPOSED.
template <class Result>
class Completion {
 public:
  using ToJavaScript = Napi::Value (*)(Napi::Env, const Result&);

  // `owner` is who was disposed if the call ends unrun.
  Completion(std::shared_ptr<Channel> channel, std::shared_ptr<Call> call, ToJavaScript to_js,
             std::string owner = "the policy")
      : channel_(std::move(channel)), call_(std::move(call)), to_js_(to_js), owner_(std::move(owner)) {}
  Completion(const Completion&) = delete;
  ~Completion() {
    if (call_) fail(std::make_exception_ptr(Failure("DISPOSED", owner_ + " was disposed before the call ran")));
  }

  const std::atomic<bool>& aborted() const { return call_->aborted; }

  void succeed(Result result) {
    settle([result = std::make_shared<Result>(std::move(result)), to_js = to_js_](Napi::Env env, Call& call) {
      if (call.inspect) guarded(env, [&] { call.inspect(env); });
      call.deferred.Resolve(to_js(env, *result));
    });
  }

  void fail(std::exception_ptr error) {
    call_->failed = true;
    settle([error](Napi::Env env, Call& call) { call.deferred.Reject(to_javascript(env, error)); });
  }

  // Runs `work` unless the call was aborted, and settles with what it returns or throws.
  template <class Work>
  void run(Work&& work) {
    try {
      if (aborted()) throw Failure("ABORTED", "the call was aborted by its caller before it ran");
      succeed(work());
    } catch (...) {
      fail(std::current_exception());
    }
  }

 private:
  template <class How>
  void settle(How how) {
    channel_->post([how = std::move(how), call = std::move(call_), channel = channel_](Napi::Env env) {
      channel->end();
      call->over = true;
      const auto outcome = [&] {
        try {
          how(env, *call);
        } catch (const Napi::Error& error) {
          call->deferred.Reject(error.Value());
        }
      };
      outcome();
      if (call->settled) call->settled();
    });
    call_ = nullptr;
  }

  std::shared_ptr<Channel> channel_;
  std::shared_ptr<Call> call_;  // null once settled
  ToJavaScript to_js_;
  std::string owner_;
};

// { promise, abort() } of a call; `on_abort` runs after its flag was set, once.
Napi::Value job_handle(Napi::Env, const std::shared_ptr<Call>&, std::function<void()> on_abort = nullptr);

}  // namespace tokenring::addon
