// What the CUDA driver of this machine says, asked without linking against it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace tokenring {

struct CudaDevice {
  std::string name;
  size_t memory_bytes = 0;
};

struct CudaProbe {
  bool compiled = false;            // whether the module with the CUDA kernels is there
  std::vector<CudaDevice> devices;  // those that the driver lists
  std::string reason;               // why device "cuda" cannot be used, and what to do; empty if it can
};

// Loads libcuda.so.1 and asks it for its devices. Makes no context and never throws: a fault becomes the reason.
CudaProbe probe_cuda();

}  // namespace tokenring
