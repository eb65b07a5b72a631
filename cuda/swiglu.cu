// Gated MLP: silu(gate) * up.
#include "device.cuh"

namespace tokenring::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// blockIdx.x strides over the packs of a row, blockIdx.y over the rows.
__global__ void __launch_bounds__(kThreads) swiglu_forward_kernel(int64_t m, int64_t f, const Bf16* gate_up, Bf16* y) {
  for (int64_t row = blockIdx.y; row < m; row += gridDim.y) {
    const Bf16* gate = gate_up + row * 2 * f;
    for (int64_t j = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kPack; j < f;
         j += static_cast<int64_t>(gridDim.x) * blockDim.x * kPack) {
      const Pack g = load_pack(gate + j, f - j), u = load_pack(gate + f + j, f - j);
      Pack out;
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) out.v[i] = g.v[i] * sigmoid(g.v[i]) * u.v[i];
      store_pack(y + row * f + j, f - j, out);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(int64_t m, int64_t f, const Bf16* dy, const Bf16* gate_up, Bf16* dgate_up) {
  for (int64_t row = blockIdx.y; row < m; row += gridDim.y) {
    const Bf16* gate = gate_up + row * 2 * f;
    Bf16* dgate = dgate_up + row * 2 * f;
    for (int64_t j = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kPack; j < f;
         j += static_cast<int64_t>(gridDim.x) * blockDim.x * kPack) {
      const Pack d = load_pack(dy + row * f + j, f - j);
      const Pack g = load_pack(gate + j, f - j), u = load_pack(gate + f + j, f - j);
      Pack dg, du;
      TOKENRING_UNROLL
      for (int i = 0; i < kPack; ++i) {
        const float s = sigmoid(g.v[i]);
        dg.v[i] = d.v[i] * u.v[i] * s * (1.0f + g.v[i] * (1.0f - s));
        du.v[i] = d.v[i] * g.v[i] * s;
      }
      store_pack(dgate + j, f - j, dg);
      store_pack(dgate + f + j, f - j, du);
    }
  }
}

// Enough blocks for the columns, and of the rows as many as grid_of allows for both.
dim3 shape_of(int64_t m, int64_t f) {
  const unsigned x = grid_of((f + kThreads * kPack - 1) / (kThreads * kPack));
  const int64_t y = grid_of(m * x) / x;
  return dim3(x, static_cast<unsigned>(y));
}

}  // namespace

void swiglu_forward(CudaStream stream, int64_t m, int64_t f, const Bf16* gate_up, Bf16* y) {
  if (m == 0 || f == 0) return;
  TOKENRING_LAUNCH(swiglu_forward_kernel, shape_of(m, f), kThreads, 0, stream)(m, f, gate_up, y);
}

void swiglu_backward(CudaStream stream, int64_t m, int64_t f, const Bf16* dy, const Bf16* gate_up, Bf16* dgate_up) {
  if (m == 0 || f == 0) return;
  TOKENRING_LAUNCH(swiglu_backward_kernel, shape_of(m, f), kThreads, 0, stream)(m, f, dy, gate_up, dgate_up);
}

}  // namespace tokenring::cuda
