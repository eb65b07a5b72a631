// The attention kernels in other tile shapes than the module's, for a sweep on a GPU: a library of its own
// (`npm run build:cuda -- --sweep` makes build/cuda/tokenring_sweep.so), so that the module stays small.
#pragma once

#include "cuda/attention.h"

namespace tokenring::cuda {

// One tiling of one kernel; of the three functions its own one is set.
struct SweepVariant {
  const char* kernel;  // "forward", "backward", "dq"
  const char* tiling;  // "128 x 176, 2 stages"
  int head_dim;
  bool chosen;       // what the module has, for causal attention of this head dimension
  int rows;          // queries of a tile of the plan (backward: of a pass)
  int shared_bytes;  // of a block
  void (*forward)(CudaStream, EncodeTiled, const AttentionForward&) = nullptr;
  void (*backward)(CudaStream, EncodeTiled, const AttentionBackward&) = nullptr;
  void (*dq)(CudaStream, EncodeTiled, const AttentionDq&) = nullptr;
};

// What the library's one function, tokenring_sweep_module(), returns.
struct SweepModule {
  int abi;  // kModuleAbi of cuda/module.h
  int count;
  const SweepVariant* variants;
};
constexpr const char* kSweepFile = "tokenring_sweep.so";

}  // namespace tokenring::cuda
