// How engine threads hand results to JavaScript: one queue and one thread-safe function an environment
// (a main thread or a worker).
//
// Threading law: engine threads call post() and nothing else. Everything that touches JavaScript runs on the
// environment's own thread. The cleanup hook closes the channel before the environment goes: an unreleased
// thread-safe function would keep its environment from ending.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

namespace tokenring::addon {

// Whoever owns engine threads that must end before the environment does.
class Closable {
 public:
  virtual ~Closable() = default;
  virtual void close_now() = 0;  // on the environment's thread; returns when the threads have ended
};

class Channel : public std::enable_shared_from_this<Channel> {
 public:
  using Settle = std::function<void(Napi::Env)>;

  static std::shared_ptr<Channel> open(Napi::Env);

  // Any thread. Runs `settle` on the environment's thread soon; drops it when the environment has gone.
  void post(Settle settle);

  // The environment's thread: a promise is pending, the process stays alive for it.
  void begin();
  void end();

  void add(Closable* owner) { owners_.insert(owner); }
  void remove(Closable* owner) { owners_.erase(owner); }

 private:
  void drain(Napi::Env);
  void close();

  Napi::Env env_ = nullptr;
  napi_threadsafe_function wake_ = nullptr;
  int pending_ = 0;
  std::set<Closable*> owners_;
  std::mutex mutex_;  // guards what follows
  std::vector<Settle> queue_;
  bool closed_ = false;
};

}  // namespace tokenring::addon
