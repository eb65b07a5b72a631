// How a row of qkv is divided: all query heads, all key heads, all value heads.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace tokenring::cpu {

struct Heads {
  int heads, kv_heads, head_dim;
  int per_kv() const { return heads / kv_heads; }
  int64_t ld() const { return static_cast<int64_t>(heads + 2 * kv_heads) * head_dim; }
  int64_t width() const { return static_cast<int64_t>(heads) * head_dim; }
  int64_t kv_width() const { return static_cast<int64_t>(kv_heads) * head_dim; }
  // Where the queries of a kv head, its keys and its values start.
  int64_t q(int64_t kv) const { return kv * per_kv() * head_dim; }
  int64_t k(int64_t kv) const { return (heads + kv) * head_dim; }
  int64_t v(int64_t kv) const { return (heads + kv_heads + kv) * head_dim; }
};

// Failure INVALID_ARGUMENT unless attention on the CPU can do these.
Heads check_heads(const char* op, int heads, int kv_heads, int head_dim);
// And unless qkv is f32 [any rows, ld].
Heads check_qkv(const char* op, const Tensor& qkv, int heads, int kv_heads, int head_dim);

}  // namespace tokenring::cpu
