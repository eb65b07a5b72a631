// Rotary embedding.
#include "device.cuh"

namespace tokenring::cuda {
namespace {

// One block a row; a thread turns eight pairs of one head.
__global__ void __launch_bounds__(kMaxThreads)
    rope_kernel(int64_t m, int rotated_heads, int head_dim, int64_t width, Bf16* qkv, const int32_t* positions,
                const float* cos, const float* sin, bool backward) {
  const int half = head_dim / 2, packs = (half + kPack - 1) / kPack, items = rotated_heads * packs;
  for (int64_t row = blockIdx.x; row < m; row += gridDim.x) {
    const int64_t turn = static_cast<int64_t>(load(positions + row)) * half;
    for (int item = static_cast<int>(threadIdx.x); item < items; item += static_cast<int>(blockDim.x)) {
      const int head = item / packs, j = item % packs * kPack, left = half - j;
      Bf16* low = qkv + row * width + static_cast<int64_t>(head) * head_dim + j;
      Bf16* high = low + half;
      const Pack a = load_pack(low, left), b = load_pack(high, left), c = load_pack(cos + turn + j, left);
      const Pack s = load_pack(sin + turn + j, left);
      Pack x, y;
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) {
        const float si = backward ? -s.v[i] : s.v[i];
        x.v[i] = a.v[i] * c.v[i] - b.v[i] * si;
        y.v[i] = b.v[i] * c.v[i] + a.v[i] * si;
      }
      store_pack(low, left, x);
      store_pack(high, left, y);
    }
  }
}

}  // namespace

void rope(CudaStream stream, int64_t m, int heads, int kv_heads, int head_dim, Bf16* qkv, const int32_t* positions,
          const float* cos, const float* sin, bool backward) {
  if (m == 0) return;
  const int64_t rotated = heads + kv_heads, width = (rotated + kv_heads) * head_dim;
  // A thread per eight pairs: half of what the row's elements would ask for.
  TOKENRING_LAUNCH(rope_kernel, grid_of(m), threads_of(rotated * head_dim / 2), 0, stream)
  (m, static_cast<int>(rotated), head_dim, width, qkv, positions, cos, sin, backward);
}

}  // namespace tokenring::cuda
