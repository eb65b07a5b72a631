// The CPU backend: float32, deterministic, batch-invariant; the same bits with AVX-512, AVX2 and without.
#pragma once

#include <memory>

#include "core/device.h"

namespace tokenring {

// `threads` 0 = all cores that this process may use. The environment variable TOKENRING_ISA (avx512, avx2, scalar)
// overrides the choice of instructions. Failure INVALID_ARGUMENT if threads < 0 or the CPU lacks what is asked for.
std::unique_ptr<Device> make_cpu_device(int threads);

}  // namespace tokenring
