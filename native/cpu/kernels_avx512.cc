// AVX-512 (F, DQ, BW, VL) and FMA.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#define TOKENRING_ISA_AVX512
#include "cpu/table.inl.h"
#else
#include "cpu/kernels.h"
#endif

namespace tokenring::cpu {

const Kernels* kernels_avx512() {
#if defined(TOKENRING_ISA_AVX512)
  static constexpr Kernels table = table_of("avx512");
  return &table;
#else
  return nullptr;
#endif
}

}  // namespace tokenring::cpu
