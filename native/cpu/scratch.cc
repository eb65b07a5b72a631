#include <cstdlib>
#include <memory>
#include <new>

#include "core/failure.h"
#include "cpu/ops.h"

namespace tokenring::cpu {
namespace {

class Room {
 public:
  float* at_least(size_t floats) {
    if (floats > size_) {
      data_.reset();
      size_ = 0;
      data_.reset(static_cast<float*>(::operator new (floats * sizeof(float), std::align_val_t{64}, std::nothrow)));
      if (!data_)
        fail("OUT_OF_MEMORY", "the CPU backend could not allocate ", floats * sizeof(float), " bytes of scratch");
      size_ = floats;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> data_;
  size_t size_ = 0;
};

}  // namespace

float* scratch(size_t floats) {
  thread_local Room room;
  return room.at_least(floats);
}

float* staging(size_t floats) {
  thread_local Room room;
  return room.at_least(floats);
}

}  // namespace tokenring::cpu
