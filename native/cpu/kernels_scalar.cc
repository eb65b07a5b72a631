// Plain C++: the reference that every machine can run.
#define TOKENRING_ISA_SCALAR
#include "cpu/table.inl.h"

namespace tokenring::cpu {

const Kernels* kernels_scalar() {
  static constexpr Kernels table = table_of("scalar");
  return &table;
}

}  // namespace tokenring::cpu
