// Guards that every op shares.
#pragma once

#include <initializer_list>
#include <string>

#include "core/tensor.h"

namespace tokenring {

// Failure INVALID_ARGUMENT unless `t` has data (or no elements), this dtype and this shape.
void check(const char* op, const char* name, const Tensor& t, DType dtype, std::initializer_list<int64_t> shape);
// The same for a matrix of any size.
void check_matrix(const char* op, const char* name, const Tensor& t, DType dtype = DType::f32);
// At least `bytes` of memory.
void check_bytes(const char* op, const char* name, const Tensor& t, size_t bytes);
// Run on the stream: ids [begin, end) in [0, bound).
void check_range(const char* op, const char* name, const int32_t* ids, int64_t begin, int64_t end, int64_t bound);

std::string shape_text(const Tensor& t);

}  // namespace tokenring
