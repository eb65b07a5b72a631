// Descriptors of tensors in device memory for the copy engine (TMA), encoded on the host by the driver's
// cuTensorMapEncodeTiled, which is declared here and looked up at run time: nothing links against the driver.
#pragma once

#include <dlfcn.h>

#include <cstdint>

#include "core/failure.h"

namespace tokenring::cuda {

// CUtensorMap. It holds the tensor's address; a kernel takes it as `const __grid_constant__ TensorMap`.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

// cuTensorMapEncodeTiled, with the driver's enumerations as the ints that they are. Returns 0, or a CUresult.
using EncodeTiled = int (*)(TensorMap* map, int element, uint32_t rank, void* address, const uint64_t* sizes,
                            const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                            int interleave, int swizzle, int l2_promotion, int out_of_bounds_fill);

namespace driver {
constexpr int kBf16Element = 9;     // CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
constexpr int kNoInterleave = 0;    // CU_TENSOR_MAP_INTERLEAVE_NONE
constexpr int kSwizzle128 = 3;      // CU_TENSOR_MAP_SWIZZLE_128B
constexpr int kL2Promotion256 = 3;  // CU_TENSOR_MAP_L2_PROMOTION_L2_256B
constexpr int kFillWithZeros = 0;   // CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE
}  // namespace driver

// bf16 columns of a panel: the 128 bytes over which the swizzle works.
constexpr int kPanel = 64;

// Heads side by side in the rows of a bf16 matrix: head h is the columns [h * head_dim, (h + 1) * head_dim) from
// `address` on.
struct HeadTensor {
  const void* address;  // device memory, a multiple of 16
  int64_t rows;         // fewer than 2^31
  int64_t row_stride;   // elements, a multiple of 8
  int heads;
  int head_dim;  // a multiple of kPanel
};

// A copy from the map at coordinates (0, row, 0, head) brings `box_rows` rows of a head to shared memory, as
// head_dim / kPanel panels [box_rows][kPanel], each in the 128-byte swizzle. Rows outside the tensor arrive as zeros.
// Failure INVALID_ARGUMENT for a tensor that the copy engine does not take, INTERNAL if the driver refuses.
inline TensorMap map_of_heads(EncodeTiled encode, const HeadTensor& t, int box_rows) {
  const auto unaligned = [](uint64_t bytes) { return bytes % 16 != 0; };
  require(t.head_dim > 0 && t.head_dim % kPanel == 0, "a tensor map takes a head dimension that is a multiple of ",
          kPanel, ", not ", t.head_dim);
  require(t.rows > 0 && t.rows <= INT32_MAX && t.heads > 0 && box_rows > 0 && box_rows <= 256,
          "a tensor map takes 1 to 2^31 - 1 rows and boxes of 1 to 256 of them, not ", t.rows, " rows of ", t.heads,
          " heads in boxes of ", box_rows);
  require(!unaligned(reinterpret_cast<uintptr_t>(t.address)) && !unaligned(static_cast<uint64_t>(t.row_stride) * 2),
          "a tensor map takes addresses and rows at multiples of 16 bytes; rows of ", t.row_stride * 2, " bytes at ",
          t.address, " are not");
  const uint64_t sizes[] = {kPanel, static_cast<uint64_t>(t.rows), static_cast<uint64_t>(t.head_dim / kPanel),
                            static_cast<uint64_t>(t.heads)};
  // In bytes, of all dimensions but the first.
  const uint64_t strides[] = {static_cast<uint64_t>(t.row_stride) * 2, kPanel * 2,
                              static_cast<uint64_t>(t.head_dim) * 2};
  const uint32_t box[] = {kPanel, static_cast<uint32_t>(box_rows), static_cast<uint32_t>(t.head_dim / kPanel), 1};
  const uint32_t element_strides[] = {1, 1, 1, 1};
  TensorMap map{};
  const int error =
      encode(&map, driver::kBf16Element, 4, const_cast<void*>(t.address), sizes, strides, box, element_strides,
             driver::kNoInterleave, driver::kSwizzle128, driver::kL2Promotion256, driver::kFillWithZeros);
  if (error) fail("INTERNAL", "the driver made no tensor map (cuTensorMapEncodeTiled returned ", error, ")");
  return map;
}

// The driver's function, found once. Failure INTERNAL, with what to do, if there is none.
inline EncodeTiled driver_encode_tiled() {
  static const EncodeTiled found = [] {
    // The library stays loaded: the driver does not survive dlclose.
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return library ? reinterpret_cast<EncodeTiled>(dlsym(library, "cuTensorMapEncodeTiled")) : nullptr;
  }();
  if (!found)
    fail("INTERNAL", "libcuda.so.1 with cuTensorMapEncodeTiled was not found; install the NVIDIA driver 525 or newer");
  return found;
}

}  // namespace tokenring::cuda
