// What a kernel sees: a pointer, a dtype and a shape. A Tensor owns nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/failure.h"

namespace tokenring {

enum class DType : uint8_t { f32, bf16, f16, i32, u8 };

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

const char* name_of(DType dtype);

// A contiguous row-major view of device memory, at most four dimensions. 64-bit sizes throughout.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<int64_t, 4> shape{};

  int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype); }
  int64_t rows() const { return rank ? shape[0] : 0; }
  int64_t cols() const { return rank ? elements() / (shape[0] ? shape[0] : 1) : 0; }
  explicit operator bool() const { return data != nullptr; }

  float* f32() const { return static_cast<float*>(data); }
  int32_t* i32() const { return static_cast<int32_t*>(data); }
};

inline Tensor tensor(void* data, DType dtype, std::initializer_list<int64_t> shape) {
  Tensor t{data, dtype, 0, {}};
  for (int64_t n : shape) t.shape[t.rank++] = n;
  return t;
}

}  // namespace tokenring
