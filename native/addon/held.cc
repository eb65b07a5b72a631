#include "addon/held.h"

#include "core/failure.h"

namespace tokenring::addon {
namespace {

napi_ref reference_to(Napi::Object value) {
  napi_ref reference = nullptr;
  if (napi_create_reference(value.Env(), value, 1, &reference) != napi_ok) throw Napi::Error::New(value.Env());
  return reference;
}

}  // namespace

void Held::keep(Napi::Object value) {
  env_ = value.Env();
  values_.push_back(reference_to(value));
}

void Held::keep_buffer(Napi::Object buffer, std::string name) {
  env_ = buffer.Env();
  buffers_.push_back({reference_to(buffer), std::move(name)});
}

void Held::lies(bool on_gpu, const std::string& name) {
  std::string& first = on_gpu ? on_gpu_ : on_host_;
  if (first.empty()) first = name;
  require(on_host_.empty() || on_gpu_.empty(), on_gpu_, " lies in a GPU's memory, ", on_host_,
          " in the host's; a call computes on one device: copy one of them (DeviceTensor.from, copyTo)");
}

void Held::inspect(Napi::Env env) const {
  for (const Buffer& buffer : buffers_) {
    napi_value value = nullptr;
    bool detached = false;
    napi_get_reference_value(env, buffer.reference, &value);
    require(
        value && napi_is_detached_arraybuffer(env, value, &detached) == napi_ok && !detached, buffer.name,
        " was detached (transferred or resized) while the call ran, so its results are lost; wait for the call first");
  }
}

void Held::release() {
  for (const napi_ref reference : values_) napi_delete_reference(env_, reference);
  for (const Buffer& buffer : buffers_) napi_delete_reference(env_, buffer.reference);
  values_.clear();
  buffers_.clear();
  shares_.clear();
}

}  // namespace tokenring::addon
