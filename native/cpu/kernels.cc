// Which instruction set runs.
#include "cpu/kernels.h"

#include <cstdlib>
#include <string>

#include "core/failure.h"

namespace tokenring::cpu {
namespace {

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

// The value of TOKENRING_ISA, checked; empty if it is not set.
std::string wanted_isa() {
  const char* wanted = std::getenv("TOKENRING_ISA");
  const std::string isa = wanted ? wanted : "";
  require(isa.empty() || isa == "amx" || isa == "avx512" || isa == "avx2" || isa == "scalar", "TOKENRING_ISA is \"",
          isa, "\"; it must be amx, avx512, avx2, scalar or unset");
  return isa;
}

}  // namespace

const Kernels& choose_kernels() {
  const std::string isa = wanted_isa();
  require(isa != "avx512" || has_avx512(), "TOKENRING_ISA asks for avx512, which this CPU lacks; unset it");
  require(isa != "avx2" || has_avx2(), "TOKENRING_ISA asks for avx2, which this CPU lacks; unset it");
  const bool best = isa.empty() || isa == "amx";
  if (isa == "avx512" || (best && has_avx512())) return *kernels_avx512();
  if (isa == "avx2" || (best && has_avx2())) return *kernels_avx2();
  return *kernels_scalar();
}

const Bf16Kernels& choose_bf16_kernels() {
  const std::string isa = wanted_isa();
  if (!isa.empty() && isa != "amx") return choose_kernels().bf16;
  const char* fault = amx_fault();
  require(isa.empty() || !fault, "TOKENRING_ISA asks for amx, which cannot be used: ", fault, "; unset it");
  return fault ? choose_kernels().bf16 : *kernels_amx();
}

}  // namespace tokenring::cpu
