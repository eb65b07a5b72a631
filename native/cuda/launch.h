// Launch functions of the memory-bound kernels of the table of ops (native/core/ops.h).
// State: compiled for sm_90a, run in the emulator (test/native/emulator), not yet run on a GPU.
//
// Rules for all of them:
//  - each queues its kernels on `stream` and returns; it neither allocates nor synchronises. Launch errors stay
//    with the runtime: the caller asks cudaGetLastError();
//  - pointers are device memory, tensors are contiguous and row-major, sizes are elements. Shapes, ids and indices
//    are checked by the caller. A size of 0 launches nothing, unless a function says otherwise;
//  - activations are bf16 (Bf16), statistics, parameters, gradients of parameters and optimiser state float32;
//    arithmetic is float32, and a bf16 result is rounded once, to nearest even;
//  - a row of a result depends on its own row of the inputs alone, through an order of operations that depends on
//    the length of the row, never on the number of rows (batch invariance). No atomics: the same inputs give the
//    same bits;
//  - any alignment of an element's own size is right; rows that start at multiples of 16 bytes are fast.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace tokenring {
struct AdamWStep;
struct MomentCodes;
struct PolicyScalars;
}  // namespace tokenring

namespace tokenring::cuda {

// cudaStream_t, without the CUDA headers.
using CudaStream = CUstream_st*;

// The bits of a bfloat16.
struct Bf16 {
  uint16_t bits;
};

// --- norm.cu: residual + RMSNorm ---------------------------------------------------------------------------------
// s = bf16(x + r), or x where r is null; rstd = 1 / sqrt(mean(s^2) + eps); y = s * rstd * w.
// x, r, sum, y: bf16 [m, h]; w: f32 [h]; rstd: f32 [m]. `sum` receives s; it may be null if r is, and may alias x or r.
// y must not alias x, r or sum.
void rmsnorm_forward(CudaStream stream, int64_t m, int64_t h, const Bf16* x, const Bf16* r, const float* w, float eps,
                     Bf16* sum, Bf16* y, float* rstd);

// Bytes of workspace for rmsnorm_backward.
size_t rmsnorm_backward_workspace(int64_t m, int64_t h);

// With u = dy * w: ds (+)= rstd * u - s * (rstd^3 / h) * sum_j(u_j s_j), and dw += sum over rows of dy * s * rstd.
// dy, s, ds: bf16 [m, h]; w, dw: f32 [h]; rstd: f32 [m]. ds must not alias dy or s; `accumulate` adds to what it holds.
// dw is summed in two passes: over equal parts of the rows into the workspace (16-byte aligned), then over the parts
// in order. How the rows are parted depends on m, so dw is deterministic, but a batch cut in two may round otherwise.
void rmsnorm_backward(CudaStream stream, int64_t m, int64_t h, const Bf16* dy, const Bf16* s, const float* w,
                      const float* rstd, Bf16* ds, bool accumulate, float* dw, void* workspace);

// --- norm.cu: RMSNorm of each query and key head -----------------------------------------------------------------
// In place on q and k of qkv, bf16 [m, (heads + 2 kv_heads) * d]; w is wq for the queries, wk for the keys (f32 [d]).
// For a head x: raw = x, rstd = 1 / sqrt(mean(x^2) + eps), x <- x * rstd * w. raw: bf16 [m, (heads + kv_heads) * d] or
// null; rstd: f32 [m, heads + kv_heads].
void qk_norm_forward(CudaStream stream, int64_t m, int heads, int kv_heads, int64_t d, Bf16* qkv, const float* wq,
                     const float* wk, float eps, Bf16* raw, float* rstd);

// Bytes of workspace for qk_norm_backward.
size_t qk_norm_backward_workspace(int64_t m, int64_t d);

// In place on q and k of dqkv, as rmsnorm_backward without accumulation; dwq, dwk (f32 [d]) += sums over rows and
// heads, in two passes as there.
void qk_norm_backward(CudaStream stream, int64_t m, int heads, int kv_heads, int64_t d, Bf16* dqkv, const Bf16* raw,
                      const float* wq, const float* wk, const float* rstd, float* dwq, float* dwk, void* workspace);

// --- rope.cu: rotary embedding, half-split convention ------------------------------------------------------------
// In place on q and k of qkv, bf16 [m, (heads + 2 kv_heads) * head_dim]. With c, s the rows of cos, sin (f32
// [positions, head_dim / 2]) at positions[row] (i32 [m]), for j < head_dim / 2 of each head:
// (a_j, a_{j + head_dim/2}) <- (a_j c_j - b_j s_j, b_j c_j + a_j s_j), b_j = a_{j + head_dim/2}; backward: s -> -s.
void rope(CudaStream stream, int64_t m, int heads, int kv_heads, int head_dim, Bf16* qkv, const int32_t* positions,
          const float* cos, const float* sin, bool backward);

// --- swiglu.cu: gated MLP ----------------------------------------------------------------------------------------
// y = gate * sigmoid(gate) * up. gate_up: bf16 [m, 2f] = [gate | up]; y: bf16 [m, f].
void swiglu_forward(CudaStream stream, int64_t m, int64_t f, const Bf16* gate_up, Bf16* y);

// With sig = sigmoid(gate): dgate = dy * up * sig * (1 + gate * (1 - sig)), dup = dy * gate * sig.
// dy: bf16 [m, f]; gate_up, dgate_up: bf16 [m, 2f]; dgate_up may alias gate_up.
void swiglu_backward(CudaStream stream, int64_t m, int64_t f, const Bf16* dy, const Bf16* gate_up, Bf16* dgate_up);

// --- rows.cu: rows by index --------------------------------------------------------------------------------------
// y[i] = table[tokens[i]]. tokens: i32 [m]; table: f32 [v, h]; y: bf16 [m, h].
void embedding_forward(CudaStream stream, int64_t m, int64_t h, const int32_t* tokens, const float* table, Bf16* y);

// y[i] = x[index[i]]. x: bf16 [m, h]; index: i32 [r]; y: bf16 [r, h].
void gather_rows(CudaStream stream, int64_t r, int64_t h, const Bf16* x, const int32_t* index, Bf16* y);

// x[index[i]] += y[i]. y: bf16 [r, h]; index: i32 [r], distinct; x: bf16 [m, h].
void scatter_rows_add(CudaStream stream, int64_t r, int64_t h, const Bf16* y, const int32_t* index, Bf16* x);
// The same of float32.
void scatter_rows_add_f32(CudaStream stream, int64_t r, int64_t h, const float* y, const int32_t* index, float* x);

// to[i] = from[i], or to[i] += from[i] where `to` is f32: `width` elements of each row, which begin so many elements
// apart. f32 or bf16.
void copy_rows(CudaStream stream, int64_t rows, int64_t width, const void* from, bool from_is_float,
               int64_t from_stride, void* to, bool to_is_float, int64_t to_stride, bool add);

// Bytes of workspace for embedding_backward.
size_t embedding_backward_workspace(int64_t m);

// dtable[tokens[i]] += dy[i], in the order of the rows. tokens: i32 [m]; dy: bf16 [m, h]; dtable: f32 [v, h]. m is less
// than 2^31; the workspace is 4-byte aligned.
void embedding_backward(CudaStream stream, int64_t m, int64_t h, const int32_t* tokens, const Bf16* dy, float* dtable,
                        void* workspace);

// --- linear.cu: what a linear layer takes beside its products ----------------------------------------------------
// to[i] = bf16(from[i]): f32 [rows, columns] into rows that are `stride` elements apart.
void round_rows(CudaStream stream, int64_t rows, int64_t columns, const float* from, Bf16* to, int64_t stride);

// Bytes of workspace for sum_of_rows.
size_t sum_of_rows_workspace(int64_t m, int64_t n);

// db += sum of the rows of dy, bf16 [m, n]; db: f32 [n]. In two passes, as dw of rmsnorm_backward; the workspace is
// 16-byte aligned.
void sum_of_rows(CudaStream stream, int64_t m, int64_t n, const Bf16* dy, float* db, void* workspace);

// --- loss.cu: the loss head --------------------------------------------------------------------------------------
// With z = logits * inv_temperature, per row: lse = log sum exp z, logprob = z[target] - lse, entropy = lse - E_p[z].
// logits: f32 [r, v], read once; targets: i32 [r]; lse, logprob, entropy: f32 [r]. Logits of -infinity have
// probability 0; a NaN in a row makes its three results NaN.
void logits_statistics(CudaStream stream, int64_t r, int64_t v, const float* logits, const int32_t* targets,
                       float inv_temperature, float* lse, float* logprob, float* entropy);

// For each document d, the mean of logprob - old over the rows [begin[d], begin[d + 1]), written to each of them;
// accumulated in float64. begin: i32 [documents + 1]; logprob, old, sequence: f32.
void sequence_log_ratio(CudaStream stream, int64_t documents, const float* logprob, const float* old,
                        const int32_t* begin, float* sequence);

// The tensors of PolicyLanes (core/ops.h), null where the options need them not.
struct PolicyPointers {
  const float *logprob, *weight, *old, *advantage, *sequence, *reference, *entropy;
  float *g, *entropy_g, *loss;
  int32_t* flags;
};

// Loss per token, its slopes and flags, by the options (PolicyScalars in core/ops.h). Logarithms of ratios are limited
// to +-20, where their slope is 0. All [n].
void policy_scalars(CudaStream stream, int64_t n, const PolicyScalars& policy, const PolicyPointers& lanes);

// logits <- (g (1[j = target] - p_j) - entropy_g p_j (log p_j + entropy)) * inv_temperature, log p_j = z_j - lse; in
// place where `out` is null, else to `out`, bf16 [r, v]. Rows whose g and entropy_g are 0 become 0, whatever they hold.
// logits: f32 [r, v]; targets: i32 [r]; lse, g, entropy, entropy_g: f32 [r], the last two both null or both given.
void logits_gradient(CudaStream stream, int64_t r, int64_t v, float* logits, const int32_t* targets, const float* lse,
                     const float* g, const float* entropy, const float* entropy_g, float inv_temperature, Bf16* out);

// --- sample.cu ---------------------------------------------------------------------------------------------------
// Draws a token a row from softmax(logits * inv_temperature) by the inverse of its distribution, in the order of the
// ids: the first whose cumulated probability exceeds the row's uniform, a number in [0, 1). inv_temperature 0 takes the
// highest logit, of equals the lowest id, and its logprob at temperature 1. logprob has the bits of logits_statistics.
// Of a row with a NaN, token 0 and logprob NaN. logits: f32 [r, v]; inv_temperature, uniforms, logprob: f32 [r];
// tokens: i32 [r].
void sample(CudaStream stream, int64_t r, int64_t v, const float* logits, const float* inv_temperature,
            const float* uniforms, int32_t* tokens, float* logprob);

// --- adamw.cu: parameters ----------------------------------------------------------------------------------------
// torch.optim.AdamW on n elements, w, g, m, v: f32 [n]. With g' = g * gradient_scale:
// w *= 1 - lr * decay; m = b1 m + (1 - b1) g'; v = b2 v + (1 - b2) g'^2;
// w -= lr / (1 - b1^step) * m / (sqrt(v) / sqrt(1 - b2^step) + epsilon). Constants are made in float64.
void adamw(CudaStream stream, int64_t n, const AdamWStep& step, float* w, const float* g, float* m, float* v);

// The same with moments in eight bits: m, v: u8 [n], m_scale, v_scale: f32, one for each kMomentBlock elements. codes:
// on the device. m and v 8-byte aligned, w and g 16-byte, else slower.
void adamw8(CudaStream stream, int64_t n, const AdamWStep& step, const MomentCodes* codes, float* w, const float* g,
            uint8_t* m, uint8_t* v, float* m_scale, float* v_scale);

// Bytes of workspace for sum_of_squares.
size_t sum_of_squares_workspace(int64_t n);

// out[0] = sum of x^2, x: f32 [n], accumulated in float64: blocks of 4096 elements first, then the blocks. For n = 0
// too it writes 0. The workspace is 8-byte aligned.
void sum_of_squares(CudaStream stream, int64_t n, const float* x, double* out, void* workspace);

}  // namespace tokenring::cuda
