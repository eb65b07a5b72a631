#include "addon/call.h"

namespace tokenring::addon {

Napi::Value job_handle(Napi::Env env, const std::shared_ptr<Call>& call, std::function<void()> on_abort) {
  Napi::Object handle = Napi::Object::New(env);
  handle.Set("promise", call->deferred.Promise());
  handle.Set("abort", Napi::Function::New(
                          env,
                          [call, on_abort = std::move(on_abort)](const Napi::CallbackInfo& info) {
                            if (!call->aborted.exchange(true) && on_abort) guarded(info.Env(), on_abort);
                          },
                          "abort"));
  return handle;
}

}  // namespace tokenring::addon
