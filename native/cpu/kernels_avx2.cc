// AVX2 and FMA.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define TOKENRING_ISA_AVX2
#include "cpu/table.inl.h"
#else
#include "cpu/kernels.h"
#endif

namespace tokenring::cpu {

const Kernels* kernels_avx2() {
#if defined(TOKENRING_ISA_AVX2)
  static constexpr Kernels table = table_of("avx2");
  return &table;
#else
  return nullptr;
#endif
}

}  // namespace tokenring::cpu
