// The CUDA backend: bf16 activations and weights, float32 statistics, gradients of parameters and optimiser state.
//
// What it promises less than the CPU: cuBLASLt chooses how it adds by the shape of a product, so a row's last bits may
// depend on the rows beside it, and the sampler's logprobs equal the trainer's within bf16's rounding, not bit for bit.
// The same call on the same inputs has the same bits each time, unless a device is made otherwise.
#pragma once

#include <memory>

#include "core/device.h"
#include "cuda/cublaslt.h"
#include "cuda/module.h"

namespace tokenring {
namespace cuda {

// What the backend computes with; the tables outlive the device.
struct Libraries {
  const Runtime* runtime;
  const Kernels* kernels;
  const lt::Library* lt;
  EncodeTiled encode;
};

// Not `deterministic`: the gradients of queries (head dimension 64 and 128) are added in any order, so that their last
// bits change from run to run; five products in place of seven, for a float32 copy of them as workspace.
// Failure INVALID_ARGUMENT if the GPU is not of compute capability 9.0.
std::unique_ptr<Device> make_device(const Libraries& libraries, bool deterministic = true, int ordinal = 0);

}  // namespace cuda

// The GPU of this number, of those that CUDA shows; of the calling thread from now on. Failure INVALID_ARGUMENT, with
// what to do, if driver, kernels, cuBLASLt or a GPU that can run them is missing.
std::unique_ptr<Device> make_cuda_device(bool deterministic = true, int ordinal = 0);

}  // namespace tokenring
