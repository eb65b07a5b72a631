// The one table of ops: everything the decoder, the loss and the sampler ask of a device.
//
// Rules that every backend keeps:
//  - each op is queued on the stream it is given and returns at once; none allocates device memory;
//  - shapes are checked on the host before anything is queued (Failure INVALID_ARGUMENT);
//  - a row of an output depends on its own row of the inputs only; on the CPU through an order of operations that
//    is fixed in code, never on how many rows there are or how many threads (batch invariance), which cuBLASLt does
//    not promise;
//  - sums over tokens (wgrad, embedding gradient) run in the order of the rows and continue from what the
//    output holds, so that splitting a batch into micro-batches in order gives the same bits on the CPU;
//  - host-side lists (tiles, sequences, tables) are copied before the op returns.
// Activations are `act` (float32 on the CPU backend, bf16 on CUDA); statistics, lse, logprobs, gradients of
// parameters and optimiser state are float32 everywhere.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/device.h"
#include "core/tensor.h"

namespace tokenring {

// The copy of a linear layer's weight that the backend computes with: bf16 on CUDA, panels and rows on the CPU.
// Made by Ops::prepare_weight from the float32 master [n, k]; serves forward and dgrad.
struct Weight {
  int64_t n = 0, k = 0;
  void* data = nullptr;
};

// Part of one document: `rows` consecutive tokens that start at absolute position `position` and at row `row`
// of the tensor that holds them. Context parallelism is a list of these.
struct Span {
  int32_t row = 0;
  int32_t rows = 0;
  int32_t position = 0;
};

// Queries of `q` attend causally (by absolute position) to keys of `k`; both lie in the same document.
struct AttentionTile {
  Span q, k;
};

// Heads of tokens, `stride` elements from one token to the next: a tensor of their own, or the queries, the keys or the
// values within qkv.
struct HeadRows {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0, stride = 0;

  float* f32() const { return static_cast<float*>(data); }
};

struct AttentionHeads {
  int heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1.0f;  // multiplies q.k
};

// Tokens of one sequence whose keys live in pages of kPageTokens positions: page p of the sequence is
// pages[p], an index into the page pool.
constexpr int kPageTokens = 64;
struct PagedSequence {
  Span q;                      // the new tokens: rows of the packed batch, their first absolute position
  std::vector<int32_t> pages;  // covers positions [0, q.position + q.rows)
};
// The position of rows that only fill a batch up to decode_rows(): they have no pages, store nothing and see nothing.
constexpr int32_t kPadding = -1;

struct RopeTable {
  Tensor cos, sin;  // f32 [positions, head_dim / 2]
};

struct AdamWStep {
  float learning_rate, beta1, beta2, epsilon, weight_decay;
  float gradient_scale;  // 1, or clip_norm / norm
  int64_t step;          // 1-based, for bias correction
};

// Scalar stage of the policy loss, per token, w its weight, A its advantage, r = exp(logprob - old), sg() constant
// under differentiation.
enum class PolicyObjective : int32_t {
  nll,       // -w logprob                                                 (SFT, RFT)
  ppo_clip,  // -w min(r A, clip(r, 1 - low, 1 + high) A)                  (DAPO, arXiv 2503.14476, eq. 8)
  gspo,      // the same of r = sg(s) exp(logprob - sg(logprob)), s = exp(mean of logprob - old over the document's
             // tokens that carry loss)                                    (arXiv 2507.18071, token form)
  cispo,     // -w sg(clip(r, 1 - low, 1 + high)) A logprob                (arXiv 2506.13585)
};

struct PolicyScalars {
  PolicyObjective objective = PolicyObjective::nll;
  float clip_low = 0.2f, clip_high = 0.2f;
  float dual_clip = 0.0f;     // ppo_clip: where A < 0 the loss is at most -w dual_clip A; 0 = off
  float kl_coef = 0.0f;       // + w kl_coef (exp(d) - d - 1), d = reference - logprob   (k3)
  float entropy_coef = 0.0f;  // - w entropy_coef H

  void check() const;  // Failure INVALID_ARGUMENT that names the field
};

// The lanes of the scalar stage, one entry a token: f32 [r], flags i32 [r]. Null where the options need them not.
struct PolicyLanes {
  // In. `old` and `advantage`: all objectives but nll; `sequence`, the document's log ratio: gspo; `reference`:
  // kl_coef; `entropy`: entropy_coef.
  Tensor logprob, weight, old, advantage, sequence, reference, entropy;
  // Out: d loss / d logprob, d loss / d entropy (entropy_coef), the loss, and 1 = clipped low, 2 = clipped high,
  // 3 = dual clip.
  Tensor g, entropy_g, loss, flags;
};

class Ops {
 public:
  virtual ~Ops() = default;

  // The dtype of activations, `act` below.
  virtual DType activation() const { return DType::f32; }
  // Bytes of activations that stay near while a pass runs forth and back, if batches are cut small enough for it;
  // 0: there is nothing to gain.
  virtual size_t near_bytes() const { return 0; }
  // Batches can be cut at multiples of so many rows without a change of bits.
  virtual int64_t cut_rows() const { return 1; }
  // Rows of logits, of so many entries each, that the loss has at once where nothing else is asked for: enough to pay
  // for reading the head's weight once more. Here 64 MiB of them.
  virtual int64_t logits_rows(int64_t vocabulary) const {
    return std::clamp<int64_t>((int64_t{64} << 20) / (4 * vocabulary), 256, 1024);
  }
  // Rows that the MLP takes at once where what lies between its products is not kept; 0: all.
  virtual int64_t mlp_rows() const { return 0; }

  // Whether a Weight is the rows of its master as they lie, as `act`: what is made of parts of a master, and sent
  // between ranks, is then a Weight when it has come together. embedding_forward takes such a table too.
  virtual bool plain_weights() const { return false; }

  // --- weights -------------------------------------------------------------------------------------
  virtual size_t weight_bytes(int64_t n, int64_t k) const = 0;
  virtual void prepare_weight(Stream&, Tensor master /* f32 [n,k] */, Weight out) const = 0;

  // --- linear: y = x W^T + b -----------------------------------------------------------------------
  virtual void linear_forward(Stream&, Tensor x /* [m,k] */, Weight w, Tensor bias /* f32 [n] or null */,
                              Tensor y /* [m,n] */) const = 0;
  // dx (+)= dy W
  virtual void linear_dgrad(Stream&, Tensor dy /* [m,n] */, Weight w, Tensor dx /* [m,k] */, bool accumulate) const = 0;
  // dw += dy^T x ; db += sum of dy's rows
  virtual void linear_wgrad(Stream&, Tensor dy /* [m,n] */, Tensor x /* [m,k] */, Tensor dw /* f32 [n,k] */,
                            Tensor db /* f32 [n] or null */) const = 0;

  // --- embedding -----------------------------------------------------------------------------------
  virtual void embedding_forward(Stream&, Tensor tokens /* i32 [m] */, Tensor table /* f32 [v,h] */,
                                 Tensor y /* [m,h] */) const = 0;
  virtual void embedding_backward(Stream&, Tensor tokens /* i32 [m] */, Tensor dy /* [m,h] */,
                                  Tensor dtable /* f32 [v,h] += */) const = 0;

  // --- residual + RMSNorm --------------------------------------------------------------------------
  // s = x + r (r may be null: s = x, and `sum` may alias x); y = s * rstd * w, rstd = 1/sqrt(mean(s^2)+eps)
  virtual void rmsnorm_forward(Stream&, Tensor x, Tensor r, Tensor w /* f32 [h] */, float eps, Tensor sum, Tensor y,
                               Tensor rstd /* f32 [m] */) const = 0;
  // ds (+)= d norm / d s applied to dy ; dw += ...
  virtual void rmsnorm_backward(Stream&, Tensor dy, Tensor s, Tensor w, Tensor rstd, Tensor ds, bool accumulate,
                                Tensor dw) const = 0;

  // --- RMSNorm of each query and key head, in place on the q and k parts of qkv [m, (heads + 2 kv_heads) * d] --
  // Of a head x: x <- x * rstd * w, w = wq for the queries and wk for the keys (f32 [d]). raw receives x, rstd its
  // statistics, queries first; raw may be null.
  virtual void qk_norm_forward(Stream&, Tensor qkv, Tensor wq, Tensor wk, float eps, int heads, int kv_heads,
                               Tensor raw /* [m, (heads + kv_heads) * d] */,
                               Tensor rstd /* f32 [m, heads + kv_heads] */) const = 0;
  // In place on the q and k parts of dqkv; dwq, dwk += ...
  virtual void qk_norm_backward(Stream&, Tensor dqkv, Tensor raw, Tensor wq, Tensor wk, Tensor rstd, int heads,
                                int kv_heads, Tensor dwq, Tensor dwk) const = 0;

  // --- rotary embedding, in place on the q and k parts of qkv [m, (heads + 2 kv_heads) * head_dim] --
  // Half-split convention (Qwen2, Llama in Hugging Face form). backward = true applies the transpose.
  virtual void rope(Stream&, Tensor qkv, Tensor positions /* i32 [m] */, RopeTable table, int heads, int kv_heads,
                    int head_dim, bool backward) const = 0;

  // --- attention on packed documents ---------------------------------------------------------------
  // qkv as above after rope; out [m, heads*head_dim]; lse f32 [m, heads]. scale multiplies q.k.
  // Bytes of workspace for both passes over these tiles. Failure INVALID_ARGUMENT for heads that the backend cannot do.
  virtual size_t attention_workspace(const std::vector<AttentionTile>& tiles, int64_t rows, int heads, int kv_heads,
                                     int head_dim) const = 0;
  virtual void attention_forward(Stream&, Tensor qkv, const std::vector<AttentionTile>& tiles, int heads, int kv_heads,
                                 int head_dim, float scale, Tensor out, Tensor lse,
                                 Tensor workspace /* u8 */) const = 0;
  virtual void attention_backward(Stream&, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                                  const std::vector<AttentionTile>& tiles, int heads, int kv_heads, int head_dim,
                                  float scale, Tensor dqkv /* overwritten */, Tensor workspace) const = 0;

  // --- attention of some queries on some keys: what context parallelism is made of -------------------
  // q [mq, heads] and k, v [mk, kv_heads], f32 or all act, number their rows apart: AttentionTile::q.row is one of q,
  // out and lse, k.row one of k and v. out [mq, heads * head_dim] is f32 (or act, but to merge), lse f32 [mq, heads].
  // With `merge` they hold the attention on other keys and receive that on all, as one softmax; else the rows start
  // anew.
  virtual void attention_block_forward(Stream&, AttentionHeads, HeadRows q, HeadRows k, HeadRows v,
                                       const std::vector<AttentionTile>& tiles, bool merge, Tensor out,
                                       Tensor lse) const = 0;
  // delta f32 [m, heads] = sum of dout * out over each head, both [m, heads * head_dim], f32 or act.
  virtual void attention_delta(Stream&, Tensor dout, Tensor out, int heads, Tensor delta) const = 0;
  // Adds to dq, dk, dv (f32, shaped like q, k, v) what these tiles give. dout as q; lse and delta of all the keys.
  virtual void attention_block_backward(Stream&, AttentionHeads, Tensor dout, HeadRows q, HeadRows k, HeadRows v,
                                        Tensor lse, Tensor delta, const std::vector<AttentionTile>& tiles, HeadRows dq,
                                        HeadRows dk, HeadRows dv) const = 0;

  // to = from, or to += from (both f32): `width` elements of each row. f32 or `act`; what becomes narrower is rounded
  // to nearest, ties to even.
  virtual void copy_rows(Stream&, HeadRows from, HeadRows to, int64_t width, bool add) const = 0;

  // --- attention of the sampler, keys in pages -----------------------------------------------------
  // Bytes of one page of one layer.
  virtual size_t page_bytes(int kv_heads, int head_dim) const = 0;
  virtual void kv_append(Stream&, Tensor qkv, const std::vector<PagedSequence>& sequences, int heads, int kv_heads,
                         int head_dim, void* pool) const = 0;
  // On the CPU the same bits per row as attention_forward over the same document.
  virtual void attention_paged(Stream&, Tensor qkv, const std::vector<PagedSequence>& sequences, int heads,
                               int kv_heads, int head_dim, float scale, const void* pool, Tensor out) const = 0;
  // Passes that decode one token each of several sequences are padded to so many rows, and a recording of one
  // (Stream::record) serves all of as many rows whose longest sequence has the same decode_keys().
  virtual int64_t decode_rows(int64_t sequences) const { return sequences; }
  virtual int64_t decode_keys(int64_t longest) const { return longest; }
  // Puts where the sequences lie into the device's memory, where a recording of the two ops above looks for it. `rows`:
  // of the batch.
  virtual void place_sequences(Stream&, const std::vector<PagedSequence>&, int64_t /*rows*/) const {}
  virtual void copy_page(Stream&, void* pool, size_t page_bytes, int32_t from, int32_t to) const = 0;

  // --- gated MLP: y = silu(gate) * up, gate_up [m, 2f] = [gate | up] -------------------------------
  virtual void swiglu_forward(Stream&, Tensor gate_up, Tensor y /* [m,f] */) const = 0;
  virtual void swiglu_backward(Stream&, Tensor dy, Tensor gate_up, Tensor dgate_up) const = 0;

  // --- loss head -----------------------------------------------------------------------------------
  virtual void gather_rows(Stream&, Tensor x /* [m,h] */, Tensor index /* i32 [r] */, Tensor y /* [r,h] */) const = 0;
  // x[index[i]] += y[i]; indices are distinct
  virtual void scatter_rows_add(Stream&, Tensor y, Tensor index, Tensor x) const = 0;
  // With z = logits * inv_temperature: lse, logprob of target, entropy, per row (all f32 [r]).
  virtual void logits_statistics(Stream&, Tensor logits /* f32 [r,v] */, Tensor targets /* i32 [r] */,
                                 float inv_temperature, Tensor lse, Tensor logprob, Tensor entropy) const = 0;
  // For each document, the mean of logprob - old over its rows, written to each of them. Document i has the rows
  // [begin[i], begin[i + 1]); the last entry of begin is r.
  virtual void sequence_log_ratio(Stream&, Tensor logprob, Tensor old, Tensor begin /* i32 [documents + 1] */,
                                  Tensor sequence) const = 0;
  virtual void policy_scalars(Stream&, PolicyScalars, const PolicyLanes&) const = 0;
  // logits -> (g (1[j=target] - p_j) - entropy_g p_j (log p_j + entropy)) * inv_temperature, in place where `out` is
  // null, else to `out`, act [r,v]. entropy and entropy_g may be null (0). A row of which both are 0 becomes 0 whatever
  // it holds.
  virtual void logits_gradient(Stream&, Tensor logits, Tensor targets, Tensor lse, Tensor g, Tensor entropy,
                               Tensor entropy_g, float inv_temperature, Tensor out = {}) const = 0;
  // Inverse-CDF sampling from softmax(logits * inv_temperature) with one uniform in [0,1) a row;
  // inv_temperature = 0 means the argmax (lowest id wins a tie), its logprob taken at temperature 1.
  // logprob equals logits_statistics' bit for bit.
  virtual void sample(Stream&, Tensor logits, Tensor inv_temperature /* f32 [r] */, Tensor uniforms /* f32 [r] */,
                      Tensor tokens /* i32 [r] */, Tensor logprob /* f32 [r] */) const = 0;

  // --- parameters ----------------------------------------------------------------------------------
  virtual void zero(Stream&, Tensor x) const = 0;
  // out[0] = sum of squares, float64, in a fixed order (blocks of 4096)
  virtual void sum_of_squares(Stream&, Tensor x, double* out /* device memory */, Tensor workspace) const = 0;
  virtual size_t sum_of_squares_workspace(int64_t elements) const = 0;
  virtual void adamw(Stream&, AdamWStep, Tensor w, Tensor g, Tensor m, Tensor v) const = 0;
  // The same with moments in eight bits (core/moment_codes.h): m, v u8 [n], a code each, and the scales of their
  // blocks, f32 [ceil(n / kMomentBlock)]. Zeros are zeros. The weights are updated by the moments before these are
  // rounded.
  virtual void adamw8(Stream&, AdamWStep, Tensor w, Tensor g, Tensor m, Tensor v, Tensor m_scale,
                      Tensor v_scale) const = 0;
};

}  // namespace tokenring
