// The CPU backend: deterministic, batch-invariant; the same bits with AVX-512, AVX2 and without.
#pragma once

#include <memory>

#include "core/device.h"

namespace tokenring {

// What the operands of linear layers are rounded to. Everything else is float32 in both: what is between the layers,
// accumulation, attention, statistics, master weights and gradients.
enum class Precision { float32, bf16 };

// `threads` 0 = all cores that this process may use. The environment variable TOKENRING_ISA (amx, avx512, avx2, scalar)
// overrides the choice of instructions. Failure INVALID_ARGUMENT if threads < 0 or the CPU lacks what is asked for.
std::unique_ptr<Device> make_cpu_device(int threads, Precision precision = Precision::float32);

// The same, but that its memory is counted and not there, and nothing is computed or copied: what a step takes is
// known from the code that would run it. Host memory that is copied to stays as it was.
std::unique_ptr<Device> make_dry_cpu_device(int threads, Precision precision = Precision::float32);

}  // namespace tokenring
