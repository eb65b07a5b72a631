#include "cpu/heads.h"

#include "core/check.h"
#include "cpu/kernels.h"

namespace tokenring::cpu {

Heads check_heads(const char* op, int heads, int kv_heads, int head_dim) {
  require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && heads / kv_heads <= kQueryBlock, op, ": ", heads,
          " heads must be a positive multiple, at most ", kQueryBlock, ", of ", kv_heads, " kv heads");
  require(head_dim > 0 && head_dim % 16 == 0 && head_dim <= 128, op, ": head_dim is ", head_dim,
          "; it must be a multiple of 16 up to 128");
  return {heads, kv_heads, head_dim};
}

Heads check_qkv(const char* op, const Tensor& qkv, int heads, int kv_heads, int head_dim) {
  const Heads h = check_heads(op, heads, kv_heads, head_dim);
  check_matrix(op, "qkv", qkv);
  check(op, "qkv", qkv, DType::f32, {qkv.shape[0], h.ld()});
  return h;
}

}  // namespace tokenring::cpu
