// Matrix products by cuBLASLt: bf16 operands, float32 sums.
#pragma once

#include <array>
#include <map>
#include <mutex>

#include "core/tensor.h"
#include "cuda/cublaslt.h"

namespace tokenring::cuda {

// C [m, n] (+)= op(A) op(B) (+ bias [n] in each row) of row-major matrices, op(A) [m, k], op(B) [k, n]; a transposed A
// is stored as [k, m].
struct Product {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  const void *a, *b;  // bf16
  void* c;
  DType type;  // of C: bf16 or f32
  bool accumulate;
  const void* bias = nullptr;  // of `type`
};

class Gemm {
 public:
  // Of the workspace that multiply() is given: what NVIDIA advises for Hopper.
  static constexpr size_t kWorkspace = size_t{32} << 20;

  // Failure INTERNAL if cuBLASLt does not start.
  explicit Gemm(const lt::Library& library);
  ~Gemm();
  Gemm(const Gemm&) = delete;

  // Queues the product. The algorithm depends on the shape, so a row's last bits may depend on how many rows there are;
  // the same product has the same bits each time. Failure INTERNAL with the shape if cuBLASLt refuses it.
  void multiply(CudaStream stream, const Product& product, void* workspace);

 private:
  // Shape, transposition, type, accumulation, bias, and to how many bytes the pointers are aligned.
  using Key = std::array<int64_t, 11>;
  struct Plan {
    lt::Operation operation = nullptr;
    lt::Layout a = nullptr, b = nullptr, c = nullptr;
    lt::Algorithm algorithm{};
  };
  Plan make(const Product& product, const Key& key);
  void drop(Plan& plan);
  void set(const Plan& plan, int attribute, const void* value, size_t bytes, const Product& product) const;
  void check(int status, const char* call, const Product& product) const;

  const lt::Library& lt_;
  lt::Handle handle_ = nullptr;
  std::mutex mutex_;
  std::map<Key, Plan> plans_;
};

}  // namespace tokenring::cuda
