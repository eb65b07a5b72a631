#include "addon/device_tensor.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/engine.h"
#include "addon/operands.h"
#include "addon/state.h"
#include "core/convert.h"
#include "core/dlpack.h"

namespace tokenring::addon {
namespace {

// Random, so that no other addon's objects carry it.
constexpr napi_type_tag kTensorTag = {0x1d7a3c95b2e84f60, 0x8b41f2c6d90e357a};
// Of DLPack capsules; documented in docs/ops.md for the addons that exchange them.
constexpr napi_type_tag kCapsuleTag = {0x444c5061636b0001, 0x746f6b656e72696e};

// What a capsule's data points to. Whoever takes the tensor leaves null behind.
struct Capsule {
  DLManagedTensor* tensor;
};

DLManagedTensor*& capsule_argument(Napi::Value value) {
  bool tagged = false;
  void* data = nullptr;
  if (value.IsExternal()) {
    napi_check_object_type_tag(value.Env(), value, &kCapsuleTag, &tagged);
    napi_get_value_external(value.Env(), value, &data);
  }
  require(tagged && data, "fromDLPack: the argument must be a DLPack capsule or the address of a DLManagedTensor");
  return static_cast<Capsule*>(data)->tensor;
}

Napi::Value pointer_value(Napi::Env env, const void* pointer) {
  return Napi::BigInt::New(env, static_cast<uint64_t>(reinterpret_cast<uintptr_t>(pointer)));
}

bool on_gpu_argument(const Arguments& options) {
  const std::string device = options.text("device");
  require(device == "cpu" || device == "cuda", "device must be \"cpu\" or \"cuda\", got \"", device, "\"");
  return device == "cuda";
}

// Numbers of bf16, on the way between a tensor and an array of float32.
std::vector<uint16_t> rounded(const Tensor& from) {
  std::vector<uint16_t> bits(static_cast<size_t>(from.elements()));
  std::transform(from.f32(), from.f32() + bits.size(), bits.begin(), bf16_of_f32);
  return bits;
}

}  // namespace

Napi::Function DeviceTensorObject::define(Napi::Env env) {
  return DefineClass(
      env, "DeviceTensor",
      {
          InstanceAccessor<&DeviceTensorObject::guard<&DeviceTensorObject::disposed>>("disposed"),
          InstanceAccessor<&DeviceTensorObject::guard<&DeviceTensorObject::device>>("device"),
          InstanceAccessor<&DeviceTensorObject::guard<&DeviceTensorObject::dtype>>("dtype"),
          InstanceAccessor<&DeviceTensorObject::guard<&DeviceTensorObject::shape>>("shape"),
          InstanceAccessor<&DeviceTensorObject::guard<&DeviceTensorObject::pointer>>("pointer"),
          InstanceMethod<&DeviceTensorObject::guard<&DeviceTensorObject::write>>("write"),
          InstanceMethod<&DeviceTensorObject::guard<&DeviceTensorObject::read>>("read"),
          InstanceMethod<&DeviceTensorObject::guard<&DeviceTensorObject::to_dlpack>>("toDLPack"),
          InstanceMethod<&DeviceTensorObject::guard<&DeviceTensorObject::to_dlpack_pointer>>("toDLPackPointer"),
          InstanceMethod<&DeviceTensorObject::guard<&DeviceTensorObject::dispose>>("dispose"),
      });
}

template <Napi::Value (DeviceTensorObject::*method)(const Napi::CallbackInfo&)>
Napi::Value DeviceTensorObject::guard(const Napi::CallbackInfo& info) {
  if (!info.This().As<Napi::Object>().CheckTypeTag(&kTensorTag)) {
    throw Napi::TypeError::New(info.Env(), "Illegal invocation: the receiver is not a DeviceTensor");
  }
  return guarded(info.Env(), [&] { return (this->*method)(info); });
}

DeviceTensorObject::DeviceTensorObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DeviceTensorObject>(info) {
  guarded(info.Env(), [&] {
    const Arguments options(info[0], "options");
    on_gpu_ = on_gpu_argument(options);
    const Napi::Value foreign = options.get("dlpack");
    if (!foreign.IsUndefined()) {
      DLManagedTensor* bare = nullptr;
      if (foreign.IsBigInt()) bare = reinterpret_cast<DLManagedTensor*>(options.bits("dlpack"));
      DLManagedTensor*& managed = foreign.IsBigInt() ? bare : capsule_argument(foreign);
      require(managed || foreign.IsBigInt(), "fromDLPack: the tensor of this capsule was taken already");
      if (managed && managed->dl_tensor.device.device_type == kDlCuda) Engine::of(info.Env()).gpu();
      ImportedTensor imported = import_dlpack(managed);
      managed = nullptr;
      on_gpu_ = imported.on_gpu;
      storage_ = std::move(imported.storage);
      tensor_ = imported.tensor;
      return;
    }
    tensor_ = shape_argument(options, "shape", dtype_argument(options, "dtype"));
    const size_t bytes = tensor_.bytes();
    Engine& engine = Engine::of(info.Env());
    const std::shared_ptr<Device> device = on_gpu_ ? engine.gpu() : engine.device();
    if (!options.get("pointer").IsUndefined()) {
      tensor_.data = reinterpret_cast<void*>(options.bits("pointer"));
      require(tensor_.data || bytes == 0, "options.pointer is null; give the address of ", bytes, " bytes");
      require(reinterpret_cast<uintptr_t>(tensor_.data) % size_of(tensor_.dtype) == 0,
              "options.pointer is not aligned to the ", size_of(tensor_.dtype), " bytes of an element of ",
              name_of(tensor_.dtype));
      storage_ = std::make_shared<Storage>(tensor_.data, bytes, nullptr);
      return;
    }
    tensor_.data = device->allocate(bytes > 0 ? bytes : 1, "tensors");
    storage_ = std::make_shared<Storage>(tensor_.data, bytes, [device, data = tensor_.data] { device->free(data); });
    if (!on_gpu_) {
      std::memset(tensor_.data, 0, bytes);
      return;
    }
    const std::unique_ptr<Stream> stream = device->stream();
    device->ops().zero(*stream, tensor_);
    stream->synchronize();
  });
  info.This().As<Napi::Object>().TypeTag(&kTensorTag);
}

const DeviceTensorObject* DeviceTensorObject::from(Napi::Value value) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kTensorTag)) return nullptr;
  return Unwrap(value.As<Napi::Object>());
}

std::shared_ptr<Storage> DeviceTensorObject::live(const char* where) const {
  if (!storage_) fail("DISPOSED", where, " was disposed; make another tensor");
  return storage_;
}

Napi::Value DeviceTensorObject::disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !storage_);
}

Napi::Value DeviceTensorObject::device(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), on_gpu_ ? "cuda" : "cpu");
}

Napi::Value DeviceTensorObject::dtype(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), name_of(tensor_.dtype));
}

Napi::Value DeviceTensorObject::shape(const Napi::CallbackInfo& info) {
  Napi::Array sizes = Napi::Array::New(info.Env(), static_cast<size_t>(tensor_.rank));
  for (int i = 0; i < tensor_.rank; ++i) sizes.Set(static_cast<uint32_t>(i), static_cast<double>(tensor_.shape[i]));
  return sizes;
}

Napi::Value DeviceTensorObject::pointer(const Napi::CallbackInfo& info) {
  live("this tensor");
  return pointer_value(info.Env(), tensor_.data);
}

// Copies between the tensor and a typed array of its own kind, or of float32 for bf16.
Napi::Value DeviceTensorObject::write(const Napi::CallbackInfo& info) {
  Operands operands(Arguments(info[0], "from"));
  const Tensor from = operands.tensor("array");
  operands.held()->keep(live("this tensor"));
  const bool convert = from.dtype == DType::f32 && tensor_.dtype == DType::bf16;
  require((convert || from.dtype == tensor_.dtype) && from.elements() == tensor_.elements(), "copyFrom: the array is ",
          shape_text(from), ", the tensor ", shape_text(tensor_));
  const auto copy = [=, to = tensor_](Compute& on) {
    const std::vector<uint16_t> bits = convert ? rounded(from) : std::vector<uint16_t>();
    if (to.bytes() > 0) on.stream->copy_to_device(to.data, convert ? bits.data() : from.data, to.bytes());
    on.stream->synchronize();
    return Nothing{};
  };
  return Engine::of(info.Env()).submit_on<Nothing>(info.Env(), on_gpu_, operands.held(), copy);
}

Napi::Value DeviceTensorObject::read(const Napi::CallbackInfo& info) {
  Operands operands(Arguments(info[0], "to"));
  const Tensor to = operands.tensor("array");
  operands.held()->keep(live("this tensor"));
  const bool convert = to.dtype == DType::f32 && tensor_.dtype == DType::bf16;
  require((convert || to.dtype == tensor_.dtype) && to.elements() == tensor_.elements(), "copyTo: the array is ",
          shape_text(to), ", the tensor ", shape_text(tensor_));
  const auto copy = [=, from = tensor_](Compute& on) {
    std::vector<uint16_t> bits(convert ? static_cast<size_t>(from.elements()) : 0);
    if (from.bytes() > 0) on.stream->copy_to_host(convert ? bits.data() : to.data, from.data, from.bytes());
    on.stream->synchronize();
    std::transform(bits.begin(), bits.end(), to.f32(), f32_of_bf16);
    return Nothing{};
  };
  return Engine::of(info.Env()).submit_on<Nothing>(info.Env(), on_gpu_, operands.held(), copy);
}

Napi::Value DeviceTensorObject::to_dlpack(const Napi::CallbackInfo& info) {
  auto* capsule = new Capsule{export_dlpack(live("this tensor"), tensor_, on_gpu_)};
  const auto external = Napi::External<Capsule>::New(info.Env(), capsule, [](Napi::Env, Capsule* unused) {
    if (unused->tensor) unused->tensor->deleter(unused->tensor);
    delete unused;
  });
  if (napi_type_tag_object(info.Env(), external, &kCapsuleTag) != napi_ok) throw Napi::Error::New(info.Env());
  return external;
}

Napi::Value DeviceTensorObject::to_dlpack_pointer(const Napi::CallbackInfo& info) {
  return pointer_value(info.Env(), export_dlpack(live("this tensor"), tensor_, on_gpu_));
}

Napi::Value DeviceTensorObject::dispose(const Napi::CallbackInfo& info) {
  storage_.reset();
  return info.Env().Undefined();
}

}  // namespace tokenring::addon
