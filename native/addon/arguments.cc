#include "addon/arguments.h"

#include <cmath>
#include <limits>
#include <sstream>
#include <utility>

#include "core/failure.h"

namespace tokenring::addon {
namespace {

// A value as a message shows it: "got 3.5", "got a Float64Array".
std::string shown(Napi::Value value) {
  if (value.IsUndefined()) return "nothing";
  if (value.IsNull()) return "null";
  if (value.IsString()) return "\"" + value.As<Napi::String>().Utf8Value() + "\"";
  if (value.IsNumber() || value.IsBoolean() || value.IsBigInt()) {
    return value.ToString().Utf8Value() + (value.IsBigInt() ? "n" : "");
  }
  if (value.IsFunction()) return "a function";
  if (value.IsObject()) {
    const Napi::Value constructor = value.As<Napi::Object>().Get("constructor");
    if (constructor.IsFunction()) {
      const Napi::Value name = constructor.As<Napi::Object>().Get("name");
      if (name.IsString()) return "a value of class " + name.As<Napi::String>().Utf8Value();
    }
    return "an object";
  }
  return "a symbol";
}

[[noreturn]] void refuse_value(const std::string& name, const std::string& expected, Napi::Value got) {
  fail("INVALID_ARGUMENT", name, " must be ", expected, ", got ", shown(got));
}

std::string range(double low, double high) {
  std::ostringstream text;
  if (high == std::numeric_limits<double>::infinity()) {
    text << " of at least " << low;
  } else {
    text << " in [" << low << ", " << high << "]";
  }
  return text.str();
}

double read_number(Napi::Value value, const std::string& name, double low, double high) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (!(number >= low && number <= high) || std::isinf(number)) {
    refuse_value(name, "a finite number" + range(low, high), value);
  }
  return number;
}

template <class Array, class Element>
std::vector<Element> read_array(Napi::Value value, const std::string& name, napi_typedarray_type type,
                                const char* expected) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) {
    refuse_value(name, expected, value);
  }
  const Array array = value.As<Array>();
  if (array.ElementLength() == 0) return {};
  return std::vector<Element>(array.Data(), array.Data() + array.ElementLength());
}

}  // namespace

Arguments::Arguments(Napi::Value value, std::string where) : where_(std::move(where)) {
  if (!value.IsObject() || value.IsFunction()) refuse_value(where_, "an object", value);
  object_ = value.As<Napi::Object>();
}

Napi::Value Arguments::get(const char* field) const { return object_.Get(field); }

void Arguments::refuse(const char* field, const std::string& expected, Napi::Value got) const {
  refuse_value(where_ + "." + field, expected, got);
}

Arguments Arguments::object(const char* field) const { return Arguments(get(field), where_ + "." + field); }

double Arguments::number(const char* field, double low, double high) const {
  return read_number(get(field), where_ + "." + field, low, high);
}

int32_t Arguments::integer(const char* field, int32_t low, int32_t high) const {
  const Napi::Value value = get(field);
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (!(number >= low && number <= high) || number != std::floor(number)) {
    refuse(field, "an integer from " + std::to_string(low) + " to " + std::to_string(high), value);
  }
  return static_cast<int32_t>(number);
}

bool Arguments::boolean(const char* field) const {
  const Napi::Value value = get(field);
  if (!value.IsBoolean()) refuse(field, "true or false", value);
  return value.As<Napi::Boolean>().Value();
}

std::string Arguments::text(const char* field) const {
  const Napi::Value value = get(field);
  if (!value.IsString()) refuse(field, "a string", value);
  return value.As<Napi::String>().Utf8Value();
}

uint64_t Arguments::bits(const char* field) const {
  const Napi::Value value = get(field);
  bool lossless = false;
  const uint64_t bits = value.IsBigInt() ? value.As<Napi::BigInt>().Uint64Value(&lossless) : 0;
  if (!lossless) refuse(field, "a bigint in [0, 2^64)", value);
  return bits;
}

std::vector<int32_t> Arguments::integers(const char* field) const {
  return integers_argument(get(field), where_ + "." + field);
}

std::vector<float> Arguments::reals(const char* field) const {
  const Napi::Value value = get(field);
  if (value.IsUndefined()) return {};
  return read_array<Napi::Float32Array, float>(value, where_ + "." + field, napi_float32_array, "a Float32Array");
}

std::vector<double> Arguments::numbers(const char* field) const {
  const Napi::Value value = get(field);
  if (!value.IsArray()) refuse(field, "an array of numbers", value);
  const Napi::Array list = value.As<Napi::Array>();
  std::vector<double> numbers;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::Value element = list.Get(i);
    if (!element.IsNumber()) refuse(field, "an array of numbers", element);
    numbers.push_back(element.As<Napi::Number>().DoubleValue());
  }
  return numbers;
}

int64_t session_id(Napi::Value value) {
  return static_cast<int64_t>(read_number(value, "session", 0, 9007199254740991.0));
}

double number_argument(Napi::Value value, const char* name, double low, double high) {
  return read_number(value, name, low, high);
}

bool boolean_argument(Napi::Value value, const char* name) {
  if (!value.IsBoolean()) refuse_value(name, "true or false", value);
  return value.As<Napi::Boolean>().Value();
}

std::string text_argument(Napi::Value value, const char* name) {
  if (!value.IsString()) refuse_value(name, "a string", value);
  return value.As<Napi::String>().Utf8Value();
}

std::vector<int32_t> integers_argument(Napi::Value value, const std::string& name) {
  return read_array<Napi::Int32Array, int32_t>(value, name, napi_int32_array, "an Int32Array");
}

}  // namespace tokenring::addon
