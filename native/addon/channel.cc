#include "addon/channel.h"

#include <utility>

namespace tokenring::addon {

std::shared_ptr<Channel> Channel::open(Napi::Env env) {
  auto channel = std::make_shared<Channel>();
  channel->env_ = env;
  const auto drain = [](napi_env env, napi_value, void* context, void*) {
    if (env) static_cast<Channel*>(context)->drain(env);
  };
  // The finaliser owns a share of the channel, so that it outlives the thread-safe function.
  auto* share = new std::shared_ptr<Channel>(channel);
  const auto finalize = [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<Channel>*>(data); };
  const napi_status status =
      napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "tokenring"), 0, 1, share, finalize,
                                      channel.get(), drain, &channel->wake_);
  if (status != napi_ok) {
    delete share;
    throw Napi::Error::New(env, "could not create the thread-safe function of tokenring");
  }
  napi_unref_threadsafe_function(env, channel->wake_);
  // Registered after the function's own hook, so it runs before that.
  napi_add_env_cleanup_hook(
      env, [](void* data) { static_cast<Channel*>(data)->close(); }, channel.get());
  return channel;
}

void Channel::post(Settle settle) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  queue_.push_back(std::move(settle));
  if (queue_.size() == 1) napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

void Channel::begin() {
  if (pending_++ == 0) napi_ref_threadsafe_function(env_, wake_);
}

void Channel::end() {
  if (--pending_ == 0) napi_unref_threadsafe_function(env_, wake_);
}

void Channel::drain(Napi::Env env) {
  std::vector<Settle> ready;
  {
    std::lock_guard lock(mutex_);
    ready.swap(queue_);
  }
  for (Settle& settle : ready) {
    try {
      Napi::HandleScope scope(env);
      settle(env);
    } catch (const Napi::Error&) {
      // Only a thread that is being terminated refuses; nobody is left there to hear of results.
    }
  }
}

void Channel::close() {
  // A copy: owners leave the set while they close.
  const std::set<Closable*> owners = owners_;
  for (Closable* owner : owners) owner->close_now();
  std::vector<Settle> dropped;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    dropped.swap(queue_);
  }
  napi_release_threadsafe_function(wake_, napi_tsfn_abort);
}

}  // namespace tokenring::addon
