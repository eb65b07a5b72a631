// The tensors that JavaScript gives to a call: { data, dtype, shape }, the data a typed array or a device tensor.
#pragma once

#include <napi.h>

#include <initializer_list>
#include <memory>
#include <string>

#include "addon/arguments.h"
#include "addon/held.h"
#include "core/tensor.h"

namespace tokenring::addon {

// "f32", "bf16", "f16", "i32", "u8". Failure INVALID_ARGUMENT that names the field otherwise.
DType dtype_argument(const Arguments& from, const char* field);
// Up to four dimensions, none negative.
Tensor shape_argument(const Arguments& from, const char* field, DType dtype);

// Tensors of one call. What they lie in stays alive as long as `held` holds it.
class Operands {
 public:
  explicit Operands(Arguments from) : from_(std::move(from)), held_(std::make_shared<Held>()) {}

  // Failure INVALID_ARGUMENT for what is no tensor, whose memory is too small, detached, resizable or disposed, or of
  // another dtype or number of dimensions. A dimension of `shape` that is kAny may have any size.
  Tensor tensor(const char* field, DType dtype, std::initializer_list<int64_t> shape);
  Tensor tensor(const char* field);  // of any dtype and shape
  // One that the host reads, wherever the others lie: an array, or a DeviceTensor in the host's memory.
  Tensor host_tensor(const char* field, DType dtype, std::initializer_list<int64_t> shape);
  bool has(const char* field) const;  // whether the field is there
  const Arguments& arguments() const { return from_; }
  const std::shared_ptr<Held>& held() const { return held_; }

 private:
  void check(const char* field, const Tensor& t, DType dtype, std::initializer_list<int64_t> shape) const;

  Arguments from_;
  std::shared_ptr<Held> held_;
};

constexpr int64_t kAny = -1;

// The tensor that a value names; `where` is its name in messages. `for_host`: it has to lie in the host's memory.
Tensor tensor_argument(const Arguments& value, const std::string& where, Held& held, bool for_host = false);
// A typed array's memory, checked, and held from now on. `bytes`: how much is needed.
void* array_memory(Napi::Value array, const std::string& where, size_t bytes, Held& held);

std::string shape_text(const Tensor& t);

}  // namespace tokenring::addon
