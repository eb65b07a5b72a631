// What a call that runs on another thread needs of JavaScript's memory until it has settled.
#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace tokenring::addon {

// Made and released on the environment's thread. If the environment ends first, its references end with it.
class Held {
 public:
  Held() = default;
  Held(const Held&) = delete;
  ~Held() {
    if (!under_way_) release();  // no call came of it: still the environment's thread
  }
  // A call has begun, and releases it.
  void begin() { under_way_ = true; }
  void keep(Napi::Object value);
  // An array's buffer, which must not be detached while the call runs; `name` is what the array is called in messages.
  void keep_buffer(Napi::Object buffer, std::string name);
  // Native memory that others may let go meanwhile.
  void keep(std::shared_ptr<void> share) { shares_.push_back(std::move(share)); }

  // Where a tensor lies that the call computes with. Failure INVALID_ARGUMENT, with both names, unless all lie on one
  // device.
  void lies(bool on_gpu, const std::string& name);
  bool on_gpu() const { return !on_gpu_.empty(); }

  // Failure INVALID_ARGUMENT for a buffer that was detached (by a transfer to another thread) in the meantime.
  void inspect(Napi::Env) const;
  void release();

 private:
  struct Buffer {
    napi_ref reference;
    std::string name;
  };
  napi_env env_ = nullptr;
  bool under_way_ = false;
  std::string on_host_, on_gpu_;  // the first tensor of each
  std::vector<napi_ref> values_;
  std::vector<Buffer> buffers_;
  std::vector<std::shared_ptr<void>> shares_;
};

}  // namespace tokenring::addon
