#include "addon/operands.h"

#include <sstream>

#include "addon/device_tensor.h"
#include "core/failure.h"

namespace tokenring::addon {
namespace {

// The class of typed array that holds a dtype; JavaScript has no arithmetic on the two halves, and holds their bits.
napi_typedarray_type array_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return napi_float32_array;
    case DType::i32:
      return napi_int32_array;
    case DType::u8:
      return napi_uint8_array;
    case DType::bf16:
    case DType::f16:
      return napi_uint16_array;
  }
  return napi_uint8_array;
}

const char* array_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "a Float32Array";
    case DType::i32:
      return "an Int32Array";
    case DType::u8:
      return "a Uint8Array";
    default:
      return "a Uint16Array";
  }
}

}  // namespace

DType dtype_argument(const Arguments& from, const char* field) {
  const std::string text = from.text(field);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::i32, DType::u8})
    if (text == name_of(dtype)) return dtype;
  fail("INVALID_ARGUMENT", from.name(field), " must be \"f32\", \"bf16\", \"f16\", \"i32\" or \"u8\", got \"", text,
       "\"");
}

Tensor shape_argument(const Arguments& from, const char* field, DType dtype) {
  const std::vector<double> sizes = from.numbers(field);
  require(sizes.size() <= 4, from.name(field), " has ", sizes.size(), " dimensions; at most 4 are possible");
  Tensor t{nullptr, dtype, 0, {}};
  double elements = 1;
  for (const double size : sizes) {
    require(size >= 0 && size <= 9007199254740991.0 && size == static_cast<double>(static_cast<int64_t>(size)),
            from.name(field), " must hold sizes of at least 0, got ", size);
    t.shape[t.rank++] = static_cast<int64_t>(size);
    elements *= size;
  }
  require(elements <= 0x1p46, from.name(field), " has more elements than memory can hold");
  return t;
}

std::string shape_text(const Tensor& t) {
  std::ostringstream text;
  text << name_of(t.dtype) << " [";
  for (int i = 0; i < t.rank; ++i) text << (i ? ", " : "") << t.shape[i];
  text << "]";
  return text.str();
}

void* array_memory(Napi::Value array, const std::string& where, size_t bytes, Held& held) {
  const Napi::Env env = array.Env();
  napi_typedarray_type type;
  size_t length = 0, offset = 0;
  void* data = nullptr;
  napi_value buffer_value = nullptr;
  if (napi_get_typedarray_info(env, array, &type, &length, &data, &buffer_value, &offset) != napi_ok)
    throw Napi::Error::New(env);
  const Napi::Object buffer(env, buffer_value);
  bool detached = false;
  napi_is_detached_arraybuffer(env, buffer, &detached);
  require(!detached, where, " is a typed array whose buffer was detached; give one that has its memory");
  for (const char* property : {"resizable", "growable"})
    require(!buffer.Get(property).ToBoolean().Value(), where,
            " is a typed array over a resizable buffer; native code needs memory that stays where it is");
  size_t each = 1;
  if (type == napi_float32_array || type == napi_int32_array) each = 4;
  if (type == napi_uint16_array) each = 2;
  require(length * each == bytes, where, " has ", length, " elements, its shape needs ", bytes / each);
  held.keep(array.As<Napi::Object>());
  held.keep_buffer(buffer, where);
  return data;
}

Tensor tensor_argument(const Arguments& value, const std::string& where, Held& held, bool for_host) {
  const DType dtype = dtype_argument(value, "dtype");
  Tensor t = shape_argument(value, "shape", dtype);
  const Napi::Value data = value.get("data");
  if (data.IsTypedArray()) {
    require(data.As<Napi::TypedArray>().TypedArrayType() == array_type(dtype), where, " of dtype ", name_of(dtype),
            " must be held by ", array_name(dtype));
    t.data = array_memory(data, where, t.bytes(), held);
    if (!for_host) held.lies(false, where);
    return t;
  }
  const DeviceTensorObject* device = DeviceTensorObject::from(data);
  require(device, where, " must hold a typed array or a DeviceTensor");
  held.keep(device->live(where.c_str()));
  t.data = device->tensor().data;
  require(device->tensor().bytes() == t.bytes(), where, " is ", shape_text(t), ", its memory ",
          shape_text(device->tensor()));
  require(!for_host || !device->on_gpu(), where, " lies in a GPU's memory, but the host reads it: give an array");
  if (!for_host) held.lies(device->on_gpu(), where);
  return t;
}

Tensor Operands::tensor(const char* field) { return tensor_argument(from_.object(field), from_.name(field), *held_); }

Tensor Operands::tensor(const char* field, DType dtype, std::initializer_list<int64_t> shape) {
  const Tensor t = tensor(field);
  check(field, t, dtype, shape);
  return t;
}

Tensor Operands::host_tensor(const char* field, DType dtype, std::initializer_list<int64_t> shape) {
  const Tensor t = tensor_argument(from_.object(field), from_.name(field), *held_, true);
  check(field, t, dtype, shape);
  return t;
}

void Operands::check(const char* field, const Tensor& t, DType dtype, std::initializer_list<int64_t> shape) const {
  bool same = t.dtype == dtype && t.rank == static_cast<int>(shape.size());
  int i = 0;
  for (const int64_t size : shape) {
    if (!same) break;
    same = size == kAny || t.shape[i] == size;
    ++i;
  }
  if (same) return;
  std::ostringstream wanted;
  wanted << name_of(dtype) << " [";
  i = 0;
  for (const int64_t size : shape) {
    wanted << (i++ ? ", " : "");
    if (size == kAny)
      wanted << "any";
    else
      wanted << size;
  }
  fail("INVALID_ARGUMENT", from_.name(field), " is ", shape_text(t), ", must be ", wanted.str(), "]");
}

bool Operands::has(const char* field) const { return !from_.get(field).IsUndefined(); }

}  // namespace tokenring::addon
