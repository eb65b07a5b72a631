#include "core/dlpack.h"

#include <array>
#include <utility>

namespace tokenring {
namespace {

struct Format {
  DType dtype;
  DLDataType dl;
};
constexpr Format kFormats[] = {{DType::f32, {2, 32, 1}},
                               {DType::bf16, {4, 16, 1}},
                               {DType::f16, {2, 16, 1}},
                               {DType::i32, {0, 32, 1}},
                               {DType::u8, {1, 8, 1}}};

// What an exported tensor owns.
struct Export {
  DLManagedTensor managed;
  std::array<int64_t, 4> shape, strides;
  std::shared_ptr<Storage> storage;
};

}  // namespace

DLManagedTensor* export_dlpack(std::shared_ptr<Storage> storage, const Tensor& tensor, bool on_gpu) {
  auto* out = new Export{{}, tensor.shape, {}, std::move(storage)};
  int64_t stride = 1;
  for (int i = tensor.rank - 1; i >= 0; --i) {
    out->strides[i] = stride;
    stride *= tensor.shape[i];
  }
  DLDataType type{};
  for (const Format& format : kFormats)
    if (format.dtype == tensor.dtype) type = format.dl;
  // Strides are given although null would do: DLPack 1.2 asks for them.
  out->managed.dl_tensor = {
      tensor.data, {on_gpu ? kDlCuda : kDlCpu, 0}, tensor.rank, type, out->shape.data(), out->strides.data(), 0};
  out->managed.manager_ctx = out;
  out->managed.deleter = [](DLManagedTensor* self) { delete static_cast<Export*>(self->manager_ctx); };
  return &out->managed;
}

ImportedTensor import_dlpack(DLManagedTensor* managed) {
  require(managed, "fromDLPack: the pointer is null");
  const DLTensor& from = managed->dl_tensor;
  const bool on_gpu = from.device.device_type == kDlCuda;
  require(
      on_gpu ? from.device.device_id == 0 : from.device.device_type == kDlCpu || from.device.device_type == kDlPinned,
      "fromDLPack: the tensor lies on device ", from.device.device_type, ":", from.device.device_id,
      "; host memory (1 or 3) and the first GPU (2:0) are taken");
  require(from.ndim >= 0 && from.ndim <= 4 && (from.ndim == 0 || from.shape), "fromDLPack: the tensor has ", from.ndim,
          " dimensions; at most 4 are taken");
  const Format* format = nullptr;
  for (const Format& f : kFormats)
    if (f.dl.code == from.dtype.code && f.dl.bits == from.dtype.bits && from.dtype.lanes == 1) format = &f;
  require(format, "fromDLPack: elements of code ", int{from.dtype.code}, ", ", int{from.dtype.bits}, " bits and ",
          from.dtype.lanes, " lanes are none of f32, bf16, f16, i32, u8");
  Tensor tensor{static_cast<std::byte*>(from.data) + from.byte_offset, format->dtype, from.ndim, {}};
  for (int i = 0; i < from.ndim; ++i) {
    require(from.shape[i] >= 0, "fromDLPack: dimension ", i, " is ", from.shape[i]);
    tensor.shape[i] = from.shape[i];
  }
  const int64_t elements = tensor.elements();
  require(from.data || elements == 0, "fromDLPack: the tensor has no memory");
  int64_t stride = 1;
  for (int i = from.ndim - 1; i >= 0 && from.strides && elements > 0; --i) {
    // The stride of a dimension of one is never used.
    require(from.shape[i] == 1 || from.strides[i] == stride, "fromDLPack: dimension ", i, " has stride ",
            from.strides[i], " where a row-major tensor without gaps has ", stride, "; make it contiguous first");
    stride *= from.shape[i];
  }
  return {std::make_shared<Storage>(tensor.data, tensor.bytes(),
                                    [managed] {
                                      if (managed->deleter) managed->deleter(managed);
                                    }),
          tensor, on_gpu};
}

}  // namespace tokenring
