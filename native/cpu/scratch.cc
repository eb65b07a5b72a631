#include <cstdlib>
#include <memory>
#include <new>

#include "core/failure.h"
#include "cpu/ops.h"

namespace tokenring::cpu {

float* scratch(size_t floats) {
  struct Free {
    void operator()(float* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<float, Free> data;
  thread_local size_t size = 0;
  if (floats > size) {
    data.reset();
    size = 0;
    data.reset(static_cast<float*>(::operator new (floats * sizeof(float), std::align_val_t{64}, std::nothrow)));
    if (!data)
      fail("OUT_OF_MEMORY", "the CPU backend could not allocate ", floats * sizeof(float), " bytes of scratch");
    size = floats;
  }
  return data.get();
}

}  // namespace tokenring::cpu
