// The class DeviceTensor of JavaScript: memory with a dtype and a shape that native code computes with.
// See lib/ops/binding.ts for what each method does.
#pragma once

#include <napi.h>

#include <memory>

#include "core/storage.h"
#include "core/tensor.h"

namespace tokenring::addon {

class DeviceTensorObject : public Napi::ObjectWrap<DeviceTensorObject> {
 public:
  static Napi::Function define(Napi::Env);
  explicit DeviceTensorObject(const Napi::CallbackInfo&);

  // The native object of a value, null for anything else.
  static const DeviceTensorObject* from(Napi::Value);

  // A share in its memory. Failure DISPOSED after dispose(); `where` is its name in the message.
  std::shared_ptr<Storage> live(const char* where) const;
  const Tensor& tensor() const { return tensor_; }
  bool on_gpu() const { return on_gpu_; }

 private:
  template <Napi::Value (DeviceTensorObject::*method)(const Napi::CallbackInfo&)>
  Napi::Value guard(const Napi::CallbackInfo&);

  Napi::Value disposed(const Napi::CallbackInfo&);
  Napi::Value device(const Napi::CallbackInfo&);
  Napi::Value dtype(const Napi::CallbackInfo&);
  Napi::Value shape(const Napi::CallbackInfo&);
  Napi::Value pointer(const Napi::CallbackInfo&);
  Napi::Value write(const Napi::CallbackInfo&);
  Napi::Value read(const Napi::CallbackInfo&);
  Napi::Value to_dlpack(const Napi::CallbackInfo&);
  Napi::Value to_dlpack_pointer(const Napi::CallbackInfo&);
  Napi::Value dispose(const Napi::CallbackInfo&);

  std::shared_ptr<Storage> storage_;  // null after dispose()
  Tensor tensor_;
  bool on_gpu_ = false;
};

}  // namespace tokenring::addon
