// Reads one options object field by field. What is missing or of the wrong kind is a Failure INVALID_ARGUMENT that
// names the field by its path ("loss.clipLow") and says what it got.
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>
#include <vector>

namespace tokenring::addon {

class Arguments {
 public:
  // `where` is the argument's name in messages.
  Arguments(Napi::Value value, std::string where);

  bool has(const char* field) const { return !get(field).IsUndefined(); }
  Arguments object(const char* field) const;
  double number(const char* field, double low, double high) const;
  float real(const char* field, double low, double high) const { return static_cast<float>(number(field, low, high)); }
  int32_t integer(const char* field, int32_t low, int32_t high) const;
  bool boolean(const char* field) const;
  std::string text(const char* field) const;
  uint64_t bits(const char* field) const;  // a bigint in [0, 2^64)
  // Copies of typed arrays; the optional ones are empty when the field is undefined.
  std::vector<int32_t> integers(const char* field) const;
  std::vector<float> reals(const char* field) const;
  std::vector<double> numbers(const char* field) const;  // an array of numbers
  // The bare value, and what the field is called in messages.
  Napi::Value get(const char* field) const;
  std::string name(const char* field) const { return where_ + "." + field; }

 private:
  [[noreturn]] void refuse(const char* field, const std::string& expected, Napi::Value got) const;

  Napi::Object object_;
  std::string where_;
};

// One bare argument, for methods that take no options object.
int64_t session_id(Napi::Value value);
double number_argument(Napi::Value value, const char* name, double low, double high);
bool boolean_argument(Napi::Value value, const char* name);
std::string text_argument(Napi::Value value, const char* name);
std::vector<int32_t> integers_argument(Napi::Value value, const std::string& name);

}  // namespace tokenring::addon
