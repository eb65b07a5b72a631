// Tensors that change hands by DLPack: what arrives is what was sent, and memory ends with its last holder.
#include "core/dlpack.h"

#include <memory>
#include <vector>

#include "harness.h"

using namespace tokenring;

namespace {

// Memory that counts its ends.
struct Counted {
  std::vector<float> data = std::vector<float>(24, 1.5f);
  int ended = 0;
  std::shared_ptr<Storage> storage() {
    return std::make_shared<Storage>(data.data(), data.size() * sizeof(float), [this] { ++ended; });
  }
  Tensor tensor() { return tokenring::tensor(data.data(), DType::f32, {2, 3, 4}); }
};

// What another library would hand over.
struct Foreign {
  std::vector<int64_t> shape = {2, 3}, strides = {3, 1};
  std::vector<uint16_t> data = std::vector<uint16_t>(16, 7);
  int deleted = 0;
  DLManagedTensor managed{{data.data(), {1, 0}, 2, {4, 16, 1}, shape.data(), strides.data(), 4},
                          this,
                          [](DLManagedTensor* self) { ++static_cast<Foreign*>(self->manager_ctx)->deleted; }};
};

}  // namespace

TEST(dlpack_hands_a_tensor_over_and_back) {
  Counted memory;
  std::shared_ptr<Storage> own = memory.storage();
  DLManagedTensor* exported = export_dlpack(own, memory.tensor());
  own.reset();
  CHECK(memory.ended == 0);
  const DLTensor& t = exported->dl_tensor;
  CHECK(t.data == memory.data.data() && t.byte_offset == 0 && t.ndim == 3);
  CHECK(t.dtype.code == 2 && t.dtype.bits == 32 && t.dtype.lanes == 1 && t.device.device_type == 1);
  CHECK(t.shape[0] == 2 && t.shape[1] == 3 && t.shape[2] == 4);
  CHECK(t.strides[0] == 12 && t.strides[1] == 4 && t.strides[2] == 1);
  ImportedTensor back = import_dlpack(exported);
  CHECK(back.tensor.data == memory.data.data() && back.tensor.rank == 3 && back.tensor.elements() == 24);
  CHECK(memory.ended == 0);
  back.storage.reset();
  CHECK(memory.ended == 1);
}

TEST(dlpack_says_which_tensors_lie_on_the_gpu) {
  Counted memory;
  DLManagedTensor* exported = export_dlpack(memory.storage(), memory.tensor(), true);
  CHECK(exported->dl_tensor.device.device_type == 2 && exported->dl_tensor.device.device_id == 0);
  CHECK(import_dlpack(exported).on_gpu);
  CHECK(memory.ended == 1);
  Foreign foreign;
  CHECK(!import_dlpack(&foreign.managed).on_gpu);
}

TEST(dlpack_gives_back_what_nobody_took) {
  Counted memory;
  DLManagedTensor* exported = export_dlpack(memory.storage(), memory.tensor());
  exported->deleter(exported);
  CHECK(memory.ended == 1);
}

TEST(dlpack_takes_foreign_tensors_with_an_offset) {
  Foreign foreign;
  {
    const ImportedTensor got = import_dlpack(&foreign.managed);
    CHECK(got.tensor.data == foreign.data.data() + 2 && got.tensor.dtype == DType::bf16);
    CHECK(got.tensor.rank == 2 && got.tensor.shape[0] == 2 && got.tensor.shape[1] == 3);
    CHECK(foreign.deleted == 0);
  }
  CHECK(foreign.deleted == 1);
  // No strides, and a dimension of one whose stride means nothing.
  foreign.managed.dl_tensor.strides = nullptr;
  CHECK(import_dlpack(&foreign.managed).tensor.elements() == 6);
  foreign.shape = {1, 3};
  foreign.strides = {77, 1};
  foreign.managed.dl_tensor.shape = foreign.shape.data();
  foreign.managed.dl_tensor.strides = foreign.strides.data();
  CHECK(import_dlpack(&foreign.managed).tensor.elements() == 3);
}

TEST(dlpack_refuses_and_leaves_the_tensor_with_its_owner) {
  const auto refused = [](auto change) {
    Foreign foreign;
    change(foreign);
    CHECK_FAILS("INVALID_ARGUMENT", import_dlpack(&foreign.managed));
    CHECK(foreign.deleted == 0);
  };
  refused([](Foreign& f) { f.managed.dl_tensor.device = {2, 1}; });
  refused([](Foreign& f) { f.managed.dl_tensor.device = {4, 0}; });
  refused([](Foreign& f) { f.managed.dl_tensor.dtype = {2, 64, 1}; });
  refused([](Foreign& f) { f.managed.dl_tensor.dtype.lanes = 2; });
  refused([](Foreign& f) { f.strides[0] = 4; });
  refused([](Foreign& f) { f.managed.dl_tensor.ndim = 5; });
  refused([](Foreign& f) { f.managed.dl_tensor.data = nullptr; });
  CHECK_FAILS("INVALID_ARGUMENT", import_dlpack(nullptr));
}
