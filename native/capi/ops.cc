// The table of ops (core/ops.h), a function each, in its order; shapes, dtypes and aliasing as there.
#include "capi/functions.h"

namespace tokenring::capi {
namespace {

Weight weight_of(int64_t n, int64_t k, void* data) { return {n, k, data}; }

HeadRows heads_of(const Tensor& t) { return {t.data, t.dtype, t.rows(), t.cols()}; }

// spans: three numbers a sequence (row, rows, position); its pages are pages[begin[i] .. begin[i + 1]).
std::vector<PagedSequence> sequences_of(const int32_t* spans, const int32_t* begin, const int32_t* pages,
                                        int32_t count) {
  std::vector<PagedSequence> list;
  for (int32_t i = 0; i < count; ++i)
    list.push_back({{spans[3 * i], spans[3 * i + 1], spans[3 * i + 2]}, {pages + begin[i], pages + begin[i + 1]}});
  return list;
}

}  // namespace

TOKENRING_FUNCTION(weight_bytes, (Engine * e, int64_t n, int64_t k, int64_t* bytes),
                   { *bytes = static_cast<int64_t>(e->ops().weight_bytes(n, k)); });
TOKENRING_FUNCTION(prepare_weight, (Engine * e, Tensor master, void* weight),
                   { e->ops().prepare_weight(*e->stream, master, weight_of(master.rows(), master.cols(), weight)); });
TOKENRING_FUNCTION(linear_forward, (Engine * e, Tensor x, int64_t n, int64_t k, void* weight, Tensor bias, Tensor y),
                   { e->ops().linear_forward(*e->stream, x, weight_of(n, k, weight), bias, y); });
TOKENRING_FUNCTION(linear_dgrad,
                   (Engine * e, Tensor dy, int64_t n, int64_t k, void* weight, Tensor dx, int32_t accumulate),
                   { e->ops().linear_dgrad(*e->stream, dy, weight_of(n, k, weight), dx, accumulate != 0); });
TOKENRING_FUNCTION(linear_wgrad, (Engine * e, Tensor dy, Tensor x, Tensor dw, Tensor db),
                   { e->ops().linear_wgrad(*e->stream, dy, x, dw, db); });

TOKENRING_FUNCTION(embedding_forward, (Engine * e, Tensor tokens, Tensor table, Tensor y),
                   { e->ops().embedding_forward(*e->stream, tokens, table, y); });
TOKENRING_FUNCTION(embedding_backward, (Engine * e, Tensor tokens, Tensor dy, Tensor dtable),
                   { e->ops().embedding_backward(*e->stream, tokens, dy, dtable); });

TOKENRING_FUNCTION(rmsnorm_forward,
                   (Engine * e, Tensor x, Tensor r, Tensor w, float eps, Tensor sum, Tensor y, Tensor rstd),
                   { e->ops().rmsnorm_forward(*e->stream, x, r, w, eps, sum, y, rstd); });
TOKENRING_FUNCTION(rmsnorm_backward,
                   (Engine * e, Tensor dy, Tensor s, Tensor w, Tensor rstd, Tensor ds, int32_t accumulate, Tensor dw),
                   { e->ops().rmsnorm_backward(*e->stream, dy, s, w, rstd, ds, accumulate != 0, dw); });
TOKENRING_FUNCTION(qk_norm_forward,
                   (Engine * e, Tensor qkv, Tensor wq, Tensor wk, float eps, int32_t heads, int32_t kv_heads,
                    Tensor raw, Tensor rstd),
                   { e->ops().qk_norm_forward(*e->stream, qkv, wq, wk, eps, heads, kv_heads, raw, rstd); });
TOKENRING_FUNCTION(qk_norm_backward,
                   (Engine * e, Tensor dqkv, Tensor raw, Tensor wq, Tensor wk, Tensor rstd, int32_t heads,
                    int32_t kv_heads, Tensor dwq, Tensor dwk),
                   { e->ops().qk_norm_backward(*e->stream, dqkv, raw, wq, wk, rstd, heads, kv_heads, dwq, dwk); });
TOKENRING_FUNCTION(rope,
                   (Engine * e, Tensor qkv, Tensor positions, Tensor cos, Tensor sin, int32_t heads, int32_t kv_heads,
                    int32_t head_dim, int32_t backward),
                   {
                     e->ops().rope(*e->stream, qkv, positions, {cos, sin}, heads, kv_heads, head_dim, backward != 0);
                   });

TOKENRING_FUNCTION(attention_workspace,
                   (Engine * e, const int32_t* tiles, int32_t count, int64_t rows, int32_t heads, int32_t kv_heads,
                    int32_t head_dim, int64_t* bytes),
                   {
                     *bytes = static_cast<int64_t>(
                         e->ops().attention_workspace(tiles_of(tiles, count), rows, heads, kv_heads, head_dim));
                   });
TOKENRING_FUNCTION(attention_forward,
                   (Engine * e, Tensor qkv, const int32_t* tiles, int32_t count, int32_t heads, int32_t kv_heads,
                    int32_t head_dim, float scale, Tensor out, Tensor lse, Tensor workspace),
                   {
                     e->ops().attention_forward(*e->stream, qkv, tiles_of(tiles, count), heads, kv_heads, head_dim,
                                                scale, out, lse, workspace);
                   });
TOKENRING_FUNCTION(attention_backward,
                   (Engine * e, Tensor dout, Tensor qkv, Tensor out, Tensor lse, const int32_t* tiles, int32_t count,
                    int32_t heads, int32_t kv_heads, int32_t head_dim, float scale, Tensor dqkv, Tensor workspace),
                   {
                     e->ops().attention_backward(*e->stream, dout, qkv, out, lse, tiles_of(tiles, count), heads,
                                                 kv_heads, head_dim, scale, dqkv, workspace);
                   });
// q, k, v and their gradients: [rows, heads * head_dim].
TOKENRING_FUNCTION(attention_block_forward,
                   (Engine * e, int32_t heads, int32_t kv_heads, int32_t head_dim, float scale, Tensor q, Tensor k,
                    Tensor v, const int32_t* tiles, int32_t count, int32_t merge, Tensor out, Tensor lse),
                   {
                     e->ops().attention_block_forward(*e->stream, {heads, kv_heads, head_dim, scale}, heads_of(q),
                                                      heads_of(k), heads_of(v), tiles_of(tiles, count), merge != 0, out,
                                                      lse);
                   });
TOKENRING_FUNCTION(attention_delta, (Engine * e, Tensor dout, Tensor out, int32_t heads, Tensor delta),
                   { e->ops().attention_delta(*e->stream, dout, out, heads, delta); });
TOKENRING_FUNCTION(attention_block_backward,
                   (Engine * e, int32_t heads, int32_t kv_heads, int32_t head_dim, float scale, Tensor dout, Tensor q,
                    Tensor k, Tensor v, Tensor lse, Tensor delta, const int32_t* tiles, int32_t count, Tensor dq,
                    Tensor dk, Tensor dv),
                   {
                     e->ops().attention_block_backward(
                         *e->stream, {heads, kv_heads, head_dim, scale}, dout, heads_of(q), heads_of(k), heads_of(v),
                         lse, delta, tiles_of(tiles, count), heads_of(dq), heads_of(dk), heads_of(dv));
                   });

// `width` elements of each row of matrices that may have more.
TOKENRING_FUNCTION(copy_rows, (Engine * e, Tensor from, Tensor to, int64_t width, int32_t add),
                   { e->ops().copy_rows(*e->stream, heads_of(from), heads_of(to), width, add != 0); });

TOKENRING_FUNCTION(page_bytes, (Engine * e, int32_t kv_heads, int32_t head_dim, int64_t* bytes),
                   { *bytes = static_cast<int64_t>(e->ops().page_bytes(kv_heads, head_dim)); });
TOKENRING_FUNCTION(kv_append,
                   (Engine * e, Tensor qkv, const int32_t* spans, const int32_t* begin, const int32_t* pages,
                    int32_t count, int32_t heads, int32_t kv_heads, int32_t head_dim, void* pool),
                   {
                     e->ops().kv_append(*e->stream, qkv, sequences_of(spans, begin, pages, count), heads, kv_heads,
                                        head_dim, pool);
                   });
TOKENRING_FUNCTION(attention_paged,
                   (Engine * e, Tensor qkv, const int32_t* spans, const int32_t* begin, const int32_t* pages,
                    int32_t count, int32_t heads, int32_t kv_heads, int32_t head_dim, float scale, const void* pool,
                    Tensor out),
                   {
                     e->ops().attention_paged(*e->stream, qkv, sequences_of(spans, begin, pages, count), heads,
                                              kv_heads, head_dim, scale, pool, out);
                   });
TOKENRING_FUNCTION(copy_page, (Engine * e, void* pool, int64_t page_bytes, int32_t from, int32_t to),
                   { e->ops().copy_page(*e->stream, pool, static_cast<size_t>(page_bytes), from, to); });

TOKENRING_FUNCTION(swiglu_forward, (Engine * e, Tensor gate_up, Tensor y),
                   { e->ops().swiglu_forward(*e->stream, gate_up, y); });
TOKENRING_FUNCTION(swiglu_backward, (Engine * e, Tensor dy, Tensor gate_up, Tensor dgate_up),
                   { e->ops().swiglu_backward(*e->stream, dy, gate_up, dgate_up); });

TOKENRING_FUNCTION(gather_rows, (Engine * e, Tensor x, Tensor index, Tensor y),
                   { e->ops().gather_rows(*e->stream, x, index, y); });
TOKENRING_FUNCTION(scatter_rows_add, (Engine * e, Tensor y, Tensor index, Tensor x),
                   { e->ops().scatter_rows_add(*e->stream, y, index, x); });
TOKENRING_FUNCTION(logits_statistics,
                   (Engine * e, Tensor logits, Tensor targets, float inv_temperature, Tensor lse, Tensor logprob,
                    Tensor entropy),
                   {
                     e->ops().logits_statistics(*e->stream, logits, targets, inv_temperature, lse, logprob, entropy);
                   });
TOKENRING_FUNCTION(sequence_log_ratio, (Engine * e, Tensor logprob, Tensor old, Tensor begin, Tensor sequence),
                   { e->ops().sequence_log_ratio(*e->stream, logprob, old, begin, sequence); });
// objective: the number of a PolicyObjective.
TOKENRING_FUNCTION(
    policy_scalars,
    (Engine * e, int32_t objective, float clip_low, float clip_high, float dual_clip, float kl_coef, float entropy_coef,
     Tensor logprob, Tensor weight, Tensor old, Tensor advantage, Tensor sequence, Tensor reference, Tensor entropy,
     Tensor g, Tensor entropy_g, Tensor loss, Tensor flags),
    {
      const PolicyScalars how{
          static_cast<PolicyObjective>(objective), clip_low, clip_high, dual_clip, kl_coef, entropy_coef};
      e->ops().policy_scalars(
          *e->stream, how, {logprob, weight, old, advantage, sequence, reference, entropy, g, entropy_g, loss, flags});
    });
TOKENRING_FUNCTION(logits_gradient,
                   (Engine * e, Tensor logits, Tensor targets, Tensor lse, Tensor g, Tensor entropy, Tensor entropy_g,
                    float inv_temperature, Tensor out),
                   {
                     e->ops().logits_gradient(*e->stream, logits, targets, lse, g, entropy, entropy_g, inv_temperature,
                                              out);
                   });
TOKENRING_FUNCTION(sample,
                   (Engine * e, Tensor logits, Tensor inv_temperature, Tensor uniforms, Tensor tokens, Tensor logprob),
                   { e->ops().sample(*e->stream, logits, inv_temperature, uniforms, tokens, logprob); });

TOKENRING_FUNCTION(zero, (Engine * e, Tensor x), { e->ops().zero(*e->stream, x); });
TOKENRING_FUNCTION(sum_of_squares_workspace, (Engine * e, int64_t elements, int64_t* bytes),
                   { *bytes = static_cast<int64_t>(e->ops().sum_of_squares_workspace(elements)); });
// out: a float64 in device memory.
TOKENRING_FUNCTION(sum_of_squares, (Engine * e, Tensor x, Tensor out, Tensor workspace),
                   { e->ops().sum_of_squares(*e->stream, x, static_cast<double*>(out.data), workspace); });
TOKENRING_FUNCTION(adamw,
                   (Engine * e, float learning_rate, float beta1, float beta2, float epsilon, float weight_decay,
                    float gradient_scale, int64_t step, Tensor w, Tensor g, Tensor m, Tensor v),
                   {
                     const AdamWStep how{learning_rate, beta1, beta2, epsilon, weight_decay, gradient_scale, step};
                     e->ops().adamw(*e->stream, how, w, g, m, v);
                   });
TOKENRING_FUNCTION(adamw8,
                   (Engine * e, float learning_rate, float beta1, float beta2, float epsilon, float weight_decay,
                    float gradient_scale, int64_t step, Tensor w, Tensor g, Tensor m, Tensor v, Tensor m_scale,
                    Tensor v_scale),
                   {
                     const AdamWStep how{learning_rate, beta1, beta2, epsilon, weight_decay, gradient_scale, step};
                     e->ops().adamw8(*e->stream, how, w, g, m, v, m_scale, v_scale);
                   });

}  // namespace tokenring::capi
