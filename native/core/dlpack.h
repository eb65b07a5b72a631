// DLPack, the exchange format of tensor libraries: a tensor together with the function that gives it back.
//
// The structs are its C ABI in the form DLManagedTensor (DLPack 0.8; the unversioned form that every version takes).
// Who holds the pointer owns the tensor, and calls deleter(self) once when done with it.
#pragma once

#include <cstdint>
#include <memory>

#include "core/storage.h"
#include "core/tensor.h"

namespace tokenring {

constexpr int32_t kDlCpu = 1, kDlCuda = 2, kDlPinned = 3;  // host memory, a GPU's, host memory pinned for GPUs

struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};

struct DLDataType {
  uint8_t code;  // 0 = int, 1 = uint, 2 = float, 4 = bfloat
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null = row-major without gaps
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor* self);
};

// The tensor for somebody else, in host memory or in that of the first GPU; holds a share of `storage` until its
// deleter is called.
DLManagedTensor* export_dlpack(std::shared_ptr<Storage> storage, const Tensor& tensor, bool on_gpu = false);

struct ImportedTensor {
  std::shared_ptr<Storage> storage;  // calls the deleter when it ends
  Tensor tensor;
  bool on_gpu;
};

// Takes the tensor over. Failure INVALID_ARGUMENT, and the tensor stays the caller's, if it is neither in host memory
// nor in that of the first GPU, of another dtype than f32, bf16, f16, i32 and u8, has gaps, or more than four
// dimensions.
ImportedTensor import_dlpack(DLManagedTensor* managed);

}  // namespace tokenring
