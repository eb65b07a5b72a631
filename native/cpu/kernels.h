// What one thread does: plain functions on raw float32 memory, compiled once for each instruction set and reached
// through a table. All versions give the same bits. Sizes in elements; a leading dimension (ld*) is the distance
// between rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/bf16.h"

namespace tokenring::cpu {

// Columns of one panel of B: element (d, j) of B lies at b[(j / kPanel) * b_panel + d * ldb + j % kPanel].
constexpr int64_t kPanel = 32;
// Positions of one attention tile; equals kPageTokens.
constexpr int kTile = 64;
// Query tokens that one call of attend() takes.
constexpr int kQueryBlock = 64;

// C[r][j] = sum over d of A(r, d) * B(d, j), one fused multiply-add chain over ascending d, which starts from C if
// `accumulate` and from 0 otherwise; then + bias[j]. A(r, d) = a[r * lda + d], or a[d * lda + r] if a_transposed.
struct Gemm {
  int64_t rows, cols, depth;
  const float* a;
  int64_t lda;
  bool a_transposed;
  const float* b;
  int64_t ldb, b_panel;
  float* c;
  int64_t ldc;
  bool accumulate;
  const float* bias;
  float* pack;  // kPackFloats of scratch for copies of operands (with a_transposed: without bias), or null
};
// The largest product that is copied: kPackRows by kPackCols.
constexpr int64_t kPackDepth = 256, kPackRows = 264, kPackCols = 512;
// Of A and B, and a gap of a vector after each group of A's rows (at least 4 rows a group).
constexpr size_t kPackFloats = kPackDepth * (kPackRows + kPackCols) + kPackRows / 4 * 16;

// Softmax state of one query row while it walks the tiles.
struct SoftmaxState {
  float max;
  float sum[16];  // by lane
};

// `tokens` queries of `heads` heads that share one kv head, against one tile of keys. Key j (lo <= j < hi) is visible
// to query token i when j < visible + i, that is when its position is at most the query's.
struct AttendTile {
  int tokens, heads, head_dim;
  const float* q;  // token stride ldq, head stride head_dim
  int64_t ldq;
  const float* keys;  // [head_dim][kTile], lanes outside [lo, hi) never contribute
  const float* v;     // key j at v + (j - lo) * ldv
  int64_t ldv;
  int lo, hi;
  int64_t visible;
  float scale;
  SoftmaxState* state;  // [heads][kQueryBlock]
  float* acc;           // [heads][kQueryBlock][head_dim]
  float* scratch;       // kQueryBlock * kTile
};

// Gradients for the same tile, all accumulated into.
struct AttendTileBackward {
  int tokens, heads, head_dim;
  const float* q;
  int64_t ldq;
  const float* dout;  // token stride ldo, head stride head_dim
  int64_t ldo;
  const float* lse;    // token stride lds, head stride 1
  const float* delta;  // token stride lds, head stride 1
  int64_t lds;
  const float* keys;    // [head_dim][kTile]
  const float* values;  // [head_dim][kTile]
  const float* k;       // key j at k + (j - lo) * ldk
  int64_t ldk;
  int lo, hi;
  int64_t visible;
  float scale;
  float* dq;  // like q; null: not wanted
  float* dk;  // key j at dk + (j - lo) * lddk, dv the same; null: not wanted
  float* dv;
  int64_t lddk;
  float* scratch;  // 2 * kQueryBlock * (kTile + head_dim)
};

struct AdamWConstants {
  float decay;  // 1 - learning_rate * weight_decay
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float step_size;        // learning_rate / (1 - beta1^t)
  float root_correction;  // sqrt(1 - beta2^t)
  float epsilon, gradient_scale;
};

// The scalar stage of the policy loss; lanes as in PolicyLanes (core/ops.h), null where not needed.
struct PolicyStage {
  bool ratio;       // all but nll
  bool detached;    // cispo
  float low, high;  // 1 - clip_low, 1 + clip_high
  float dual_clip, kl_coef, entropy_coef;
  const float *logprob, *weight, *old, *advantage, *sequence, *reference, *entropy;
  float *g, *entropy_g, *loss;
  int32_t* flags;
};

struct Kernels {
  const char* isa;
  void (*gemm)(const Gemm&);
  // to[d * ldto + r] = from[r * ldfrom + d]
  void (*transpose)(int64_t rows, int64_t cols, const float* from, int64_t ldfrom, float* to, int64_t ldto);
  // c[j] += sum over rows, in order, of y[row][j], for `cols` columns
  void (*column_sum)(int64_t rows, int64_t cols, const float* y, int64_t ldy, float* c);
  void (*add)(int64_t n, const float* x, float* to);

  void (*attend_start)(int heads, int tokens, int head_dim, SoftmaxState* state, float* acc);
  // The state after other keys, whose attention is `out` and `lse` (strides as of attend_finish).
  void (*attend_resume)(int heads, int tokens, int head_dim, const float* out, int64_t ldo, const float* lse,
                        int64_t lds, SoftmaxState* state, float* acc);
  void (*attend)(const AttendTile&);
  // out: token stride ldo, head stride head_dim; lse: token stride lds, head stride 1, or null
  void (*attend_finish)(int heads, int tokens, int head_dim, const SoftmaxState* state, const float* acc, float* out,
                        int64_t ldo, float* lse, int64_t lds);
  // delta[r][h] = sum of dout * out over the head
  void (*attend_delta)(int64_t rows, int heads, int head_dim, const float* dout, const float* out, float* delta);
  void (*attend_backward)(const AttendTileBackward&);

  // Two passes over each row, so that y may be x (with sum elsewhere or null), and ds may be dy.
  void (*rmsnorm)(int64_t rows, int64_t h, const float* x, const float* r, const float* w, float eps, float* sum,
                  float* y, float* rstd);
  void (*rmsnorm_dx)(int64_t rows, int64_t h, const float* dy, const float* s, const float* w, const float* rstd,
                     float* ds, bool accumulate);
  void (*rmsnorm_dw)(int64_t rows, int64_t cols, int64_t ld, const float* dy, const float* s, const float* rstd,
                     float* dw);
  void (*rope)(int64_t rows, int64_t ld, int rotated_heads, int head_dim, const int32_t* positions, const float* cos,
               const float* sin, bool backward, float* x);
  void (*swiglu)(int64_t rows, int64_t f, const float* gate_up, float* y);
  void (*swiglu_backward)(int64_t rows, int64_t f, const float* dy, const float* gate_up, float* dgate_up);

  void (*statistics)(int64_t rows, int64_t v, const float* logits, const int32_t* targets, float inv_temperature,
                     float* lse, float* logprob, float* entropy);
  void (*policy)(int64_t n, const PolicyStage&);
  // entropy and entropy_g may be null
  void (*logits_gradient)(int64_t rows, int64_t v, float* logits, const int32_t* targets, const float* lse,
                          const float* g, const float* entropy, const float* entropy_g, float inv_temperature);
  // scratch: v rounded up to 16
  void (*sample)(int64_t rows, int64_t v, const float* logits, const float* inv_temperature, const float* uniforms,
                 int32_t* tokens, float* logprob, float* scratch);

  double (*sum_of_squares)(int64_t n, const float* x);
  void (*adamw)(int64_t n, const AdamWConstants&, float* w, const float* g, float* m, float* v);

  Bf16Kernels bf16;
};

// Null where the compiler or the CPU's family has no such instructions.
const Kernels* kernels_avx512();
const Kernels* kernels_avx2();
const Kernels* kernels_scalar();

// The best one that this CPU runs, or the one that TOKENRING_ISA names. Failure INVALID_ARGUMENT if it cannot.
const Kernels& choose_kernels();

}  // namespace tokenring::cpu
