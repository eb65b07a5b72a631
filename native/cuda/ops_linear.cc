// Linear layers: products by cuBLASLt, in bf16 with float32 sums.
#include "core/check.h"
#include "cuda/ops.h"
#include "cuda/stream.h"

namespace tokenring::cuda {
namespace {

void check_weight(const char* op, const Weight& w) {
  require(w.n > 0 && w.k > 0 && w.data, op, ": the weight [", w.n, ", ", w.k, "] is empty");
}

}  // namespace

size_t CudaOps::weight_bytes(int64_t n, int64_t k) const {
  require(n > 0 && k > 0, "weight_bytes: a weight of ", n, " x ", k);
  return static_cast<size_t>(n) * static_cast<size_t>(k) * size_of(DType::bf16);
}

void CudaOps::prepare_weight(Stream& stream, Tensor master, Weight out) const {
  check_weight("prepare_weight", out);
  check("prepare_weight", "master", master, DType::f32, {out.n, out.k});
  k_.round_rows(device_stream(stream).raw(), out.n, out.k, master.f32(), static_cast<Bf16*>(out.data), out.k);
  launched("prepare_weight");
}

void CudaOps::linear_forward(Stream& stream, Tensor x, Weight w, Tensor bias, Tensor y) const {
  const char* op = "linear_forward";
  check_weight(op, w);
  check(op, "x", x, DType::bf16, {x.rows(), w.k});
  check(op, "y", y, y.dtype == DType::f32 ? DType::f32 : DType::bf16, {x.rows(), w.n});
  if (bias) check(op, "bias", bias, DType::f32, {w.n});
  DeviceStream& on = device_stream(stream);
  // cuBLASLt adds it to the float32 sums, so that those are rounded once. It takes one of the dtype of y.
  const void* row = bias.data;
  if (bias && y.dtype == DType::bf16) {
    auto* rounded = static_cast<Bf16*>(on.room(DeviceStream::Room::bias, static_cast<size_t>(w.n) * sizeof(Bf16)));
    k_.round_rows(on.raw(), 1, w.n, bias.f32(), rounded, w.n);
    row = rounded;
  }
  gemm_.multiply(on.raw(), {x.rows(), w.n, w.k, false, true, x.data, w.data, y.data, y.dtype, false, row},
                 on.room(DeviceStream::Room::product, Gemm::kWorkspace));
  launched(op);
}

void CudaOps::linear_dgrad(Stream& stream, Tensor dy, Weight w, Tensor dx, bool accumulate) const {
  const char* op = "linear_dgrad";
  check_weight(op, w);
  check(op, "dy", dy, DType::bf16, {dy.rows(), w.n});
  check(op, "dx", dx, DType::bf16, {dy.rows(), w.k});
  DeviceStream& on = device_stream(stream);
  gemm_.multiply(on.raw(), {dy.rows(), w.k, w.n, false, false, dy.data, w.data, dx.data, DType::bf16, accumulate},
                 on.room(DeviceStream::Room::product, Gemm::kWorkspace));
  launched(op);
}

void CudaOps::linear_wgrad(Stream& stream, Tensor dy, Tensor x, Tensor dw, Tensor db) const {
  const char* op = "linear_wgrad";
  const int64_t m = dy.rows(), n = dy.cols(), k = x.cols();
  check(op, "dy", dy, DType::bf16, {m, n});
  check(op, "x", x, DType::bf16, {m, k});
  check(op, "dw", dw, DType::f32, {n, k});
  if (db) check(op, "db", db, DType::f32, {n});
  DeviceStream& on = device_stream(stream);
  gemm_.multiply(on.raw(), {n, k, m, true, false, dy.data, x.data, dw.data, DType::f32, true},
                 on.room(DeviceStream::Room::product, Gemm::kWorkspace));
  // Not by cuBLASLt's epilogue: that overwrites db, in place of adding to it, and says nothing of its order.
  if (db)
    k_.sum_of_rows(on.raw(), m, n, static_cast<const Bf16*>(dy.data), db.f32(),
                   on.room(DeviceStream::Room::sums, k_.sum_of_rows_workspace(m, n)));
  launched(op);
}

}  // namespace tokenring::cuda
