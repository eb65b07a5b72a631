#include "core/check.h"

#include <sstream>

namespace tokenring {

std::string shape_text(const Tensor& t) {
  std::ostringstream text;
  text << name_of(t.dtype) << " [";
  for (int i = 0; i < t.rank; ++i) text << (i ? ", " : "") << t.shape[i];
  text << "]";
  return text.str();
}

void check(const char* op, const char* name, const Tensor& t, DType dtype, std::initializer_list<int64_t> shape) {
  bool same = t.dtype == dtype && t.rank == static_cast<int>(shape.size());
  int i = 0;
  for (int64_t n : shape) {
    if (!same) break;
    same = t.shape[i++] == n;
  }
  if (!same) {
    Tensor wanted{nullptr, dtype, 0, {}};
    for (int64_t n : shape) wanted.shape[wanted.rank++] = n;
    fail("INVALID_ARGUMENT", op, ": ", name, " is ", shape_text(t), ", must be ", shape_text(wanted));
  }
  require(t.data || t.elements() == 0, op, ": ", name, " ", shape_text(t), " has no memory");
}

void check_matrix(const char* op, const char* name, const Tensor& t, DType dtype) {
  require(t.rank == 2 && t.dtype == dtype, op, ": ", name, " is ", shape_text(t), ", must be a matrix of ",
          name_of(dtype));
  require(t.data || t.elements() == 0, op, ": ", name, " ", shape_text(t), " has no memory");
}

void check_bytes(const char* op, const char* name, const Tensor& t, size_t bytes) {
  require(t.bytes() >= bytes && (t.data || bytes == 0), op, ": ", name, " has ", t.data ? t.bytes() : 0,
          " bytes, needs ", bytes);
}

void check_range(const char* op, const char* name, const int32_t* ids, int64_t begin, int64_t end, int64_t bound) {
  for (int64_t i = begin; i < end; ++i)
    require(ids[i] >= 0 && ids[i] < bound, op, ": ", name, "[", i, "] is ", ids[i], ", must be in [0, ", bound, ")");
}

}  // namespace tokenring
