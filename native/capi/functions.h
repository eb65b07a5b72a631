// The table of ops as C functions, for programs that find them by name in tokenring_ops.so (Python's ctypes and its
// like).
//
// Every function returns 0, or 1 after a Failure, whose text tokenring_error() then gives on the same thread. Tensors
// go by value, as core/tensor.h lays them out; the memory is the caller's, on the engine's device. Work is queued on
// the engine's one stream. tokenring_functions() lists the functions with the types of their arguments, a line each:
// "NAME TYPES", one letter an argument: p pointer, s text, i int32, l int64, f float, T tensor. So a caller declares
// none.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/ops.h"

namespace tokenring::capi {

// What a caller in another language lays out by hand.
static_assert(sizeof(Tensor) == 48 && offsetof(Tensor, dtype) == 8 && offsetof(Tensor, rank) == 12 &&
              offsetof(Tensor, shape) == 16);
static_assert(sizeof(AttentionTile) == 6 * sizeof(int32_t));

struct Engine {
  std::unique_ptr<Device> device;
  std::unique_ptr<Stream> stream;
  const Ops& ops() const { return device->ops(); }
};

// Runs the body of a function; a Failure becomes the text of tokenring_error().
int guarded(const std::function<void()>& body);

// `count` spans of queries and of keys, six numbers each: row, rows, position of either.
inline std::vector<AttentionTile> tiles_of(const void* tiles, int32_t count) {
  const auto* from = static_cast<const AttentionTile*>(tiles);
  return {from, from + count};
}

// Lines of tokenring_functions().
std::string& listing();

template <class T>
constexpr char letter_of() {
  if constexpr (std::is_same_v<T, const char*>) return 's';
  if constexpr (std::is_same_v<T, int32_t>) return 'i';
  if constexpr (std::is_same_v<T, int64_t>) return 'l';
  if constexpr (std::is_same_v<T, float>) return 'f';
  if constexpr (std::is_same_v<T, Tensor>) return 'T';
  if constexpr (std::is_pointer_v<T>) return 'p';
}

struct Listed {
  template <class... Parameters>
  Listed(const char* name, int (*)(Parameters...)) {
    listing() += std::string(name) + " " + std::string{letter_of<Parameters>()...} + "\n";
  }
};

// A function of the library: TOKENRING_FUNCTION(name, (parameters), body...).
#define TOKENRING_FUNCTION(name, parameters, ...)                                     \
  extern "C" __attribute__((visibility("default"))) int tokenring_##name parameters { \
    return guarded([&] { __VA_ARGS__; });                                             \
  }                                                                                   \
  static const Listed listed_##name(#name, &tokenring_##name)

}  // namespace tokenring::capi
