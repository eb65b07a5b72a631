// A GPU that is not there: the backend allocates and launches on it as on a real one, memory is counted instead of had,
// and nothing is computed. What a step takes can so be known on any machine, from the code that would run it.
//
// Small blocks are real, so that what the host writes and reads back is there; of large ones only the addresses are,
// and what is read from them is zero.
#pragma once

#include <cstddef>
#include <map>

#include "cuda/device.h"

namespace tokenring::cuda {

class DryGpu {
 public:
  DryGpu();
  ~DryGpu();  // after its device and streams
  DryGpu(const DryGpu&) = delete;

  // Whether this thread works on one: tables that its kernels would read need no values.
  static bool here();

  // For make_device(). One DryGpu at a time works on a thread, and on that thread alone.
  Libraries libraries() const;

  // As cudaMemcpy between any two addresses.
  void copy(void* to, const void* from, size_t bytes) const;

  // The runtime's calls.
  int allocate(void** data, size_t bytes);
  int free(void* data);

 private:
  struct Block {
    size_t bytes;
    bool real;
  };
  bool is_real(const void* at) const;
  std::map<const std::byte*, Block> blocks_;
};

}  // namespace tokenring::cuda
