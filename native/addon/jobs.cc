#include "addon/jobs.h"

namespace tokenring::addon {

Worker::~Worker() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Worker::post(std::function<void()> job) {
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  wake_.notify_one();
}

void Worker::loop() {
  for (;;) {
    std::function<void()> job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

Jobs::Jobs(Napi::Env env, std::string owner, std::function<void()> interrupt)
    : channel_(state_of(env).channel),
      owner_(std::move(owner)),
      interrupt_(std::move(interrupt)),
      worker_(std::make_unique<Worker>()) {
  channel_->add(this);
}

void Jobs::close_now() {
  for (const auto& call : calls_) call->aborted = true;
  if (!calls_.empty() && interrupt_) interrupt_();
  worker_.reset();
  if (closer_.joinable()) closer_.join();
  channel_->remove(this);
}

void Jobs::check_open() const {
  if (!worker_) fail("DISPOSED", owner_, " was disposed; make another one");
}

Napi::Value Jobs::close(Napi::Env env, std::shared_ptr<Held> held, std::function<void()> last) {
  if (!closing_.IsEmpty()) return closing_.Value();
  const auto call = std::make_shared<Call>(env);
  call->settled = [this] { closer_.join(); };
  closing_ = Napi::Persistent(call->deferred.Promise());
  closer_ = std::thread([completion = begin<Nothing>(call, std::move(held)), worker = std::move(worker_),
                         last = std::move(last)]() mutable {
    worker.reset();
    if (last) last();
    completion->succeed({});
  });
  return closing_.Value();
}

}  // namespace tokenring::addon
