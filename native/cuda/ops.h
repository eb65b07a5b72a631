// The table of ops on CUDA: checks on the caller's thread, then launches on the stream.
#pragma once

#include "core/ops.h"
#include "cuda/gemm.h"
#include "cuda/module.h"

namespace tokenring::cuda {

class DeviceStream;

class CudaOps final : public Ops {
 public:
  CudaOps(const Runtime& runtime, const Kernels& kernels, Gemm& gemm, EncodeTiled encode, int multiprocessors,
          bool deterministic)
      : runtime_(runtime),
        k_(kernels),
        gemm_(gemm),
        encode_(encode),
        multiprocessors_(multiprocessors),
        deterministic_(deterministic) {}

  DType activation() const override { return DType::bf16; }
  bool plain_weights() const override { return true; }
  // Products of many rows, within 2 GB: six bytes an entry.
  int64_t logits_rows(int64_t vocabulary) const override {
    return std::clamp<int64_t>(int64_t{1900} * 1000 * 1000 / (6 * vocabulary) / 128 * 128, 256, 8192);
  }
  int64_t mlp_rows() const override { return 16384; }

  size_t weight_bytes(int64_t n, int64_t k) const override;
  void prepare_weight(Stream&, Tensor master, Weight out) const override;
  void linear_forward(Stream&, Tensor x, Weight w, Tensor bias, Tensor y) const override;
  void linear_dgrad(Stream&, Tensor dy, Weight w, Tensor dx, bool accumulate) const override;
  void linear_wgrad(Stream&, Tensor dy, Tensor x, Tensor dw, Tensor db) const override;

  void embedding_forward(Stream&, Tensor tokens, Tensor table, Tensor y) const override;
  void embedding_backward(Stream&, Tensor tokens, Tensor dy, Tensor dtable) const override;
  void rmsnorm_forward(Stream&, Tensor x, Tensor r, Tensor w, float eps, Tensor sum, Tensor y,
                       Tensor rstd) const override;
  void rmsnorm_backward(Stream&, Tensor dy, Tensor s, Tensor w, Tensor rstd, Tensor ds, bool accumulate,
                        Tensor dw) const override;
  void qk_norm_forward(Stream&, Tensor qkv, Tensor wq, Tensor wk, float eps, int heads, int kv_heads, Tensor raw,
                       Tensor rstd) const override;
  void qk_norm_backward(Stream&, Tensor dqkv, Tensor raw, Tensor wq, Tensor wk, Tensor rstd, int heads, int kv_heads,
                        Tensor dwq, Tensor dwk) const override;
  void rope(Stream&, Tensor qkv, Tensor positions, RopeTable table, int heads, int kv_heads, int head_dim,
            bool backward) const override;

  size_t attention_workspace(const std::vector<AttentionTile>& tiles, int64_t rows, int heads, int kv_heads,
                             int head_dim) const override;
  void attention_forward(Stream&, Tensor qkv, const std::vector<AttentionTile>& tiles, int heads, int kv_heads,
                         int head_dim, float scale, Tensor out, Tensor lse, Tensor workspace) const override;
  void attention_backward(Stream&, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                          const std::vector<AttentionTile>& tiles, int heads, int kv_heads, int head_dim, float scale,
                          Tensor dqkv, Tensor workspace) const override;
  void attention_block_forward(Stream&, AttentionHeads, HeadRows q, HeadRows k, HeadRows v,
                               const std::vector<AttentionTile>& tiles, bool merge, Tensor out,
                               Tensor lse) const override;
  void attention_delta(Stream&, Tensor dout, Tensor out, int heads, Tensor delta) const override;
  void attention_block_backward(Stream&, AttentionHeads, Tensor dout, HeadRows q, HeadRows k, HeadRows v, Tensor lse,
                                Tensor delta, const std::vector<AttentionTile>& tiles, HeadRows dq, HeadRows dk,
                                HeadRows dv) const override;
  void copy_rows(Stream&, HeadRows from, HeadRows to, int64_t width, bool add) const override;
  size_t page_bytes(int kv_heads, int head_dim) const override;
  void kv_append(Stream&, Tensor qkv, const std::vector<PagedSequence>& sequences, int heads, int kv_heads,
                 int head_dim, void* pool) const override;
  void attention_paged(Stream&, Tensor qkv, const std::vector<PagedSequence>& sequences, int heads, int kv_heads,
                       int head_dim, float scale, const void* pool, Tensor out) const override;
  int64_t decode_rows(int64_t sequences) const override;
  int64_t decode_keys(int64_t longest) const override;
  void place_sequences(Stream&, const std::vector<PagedSequence>& sequences, int64_t rows) const override;
  void copy_page(Stream&, void* pool, size_t page_bytes, int32_t from, int32_t to) const override;

  void swiglu_forward(Stream&, Tensor gate_up, Tensor y) const override;
  void swiglu_backward(Stream&, Tensor dy, Tensor gate_up, Tensor dgate_up) const override;

  void gather_rows(Stream&, Tensor x, Tensor index, Tensor y) const override;
  void scatter_rows_add(Stream&, Tensor y, Tensor index, Tensor x) const override;
  void logits_statistics(Stream&, Tensor logits, Tensor targets, float inv_temperature, Tensor lse, Tensor logprob,
                         Tensor entropy) const override;
  void sequence_log_ratio(Stream&, Tensor logprob, Tensor old, Tensor begin, Tensor sequence) const override;
  void policy_scalars(Stream&, PolicyScalars, const PolicyLanes&) const override;
  void logits_gradient(Stream&, Tensor logits, Tensor targets, Tensor lse, Tensor g, Tensor entropy, Tensor entropy_g,
                       float inv_temperature, Tensor out) const override;
  void sample(Stream&, Tensor logits, Tensor inv_temperature, Tensor uniforms, Tensor tokens,
              Tensor logprob) const override;

  void zero(Stream&, Tensor x) const override;
  void sum_of_squares(Stream&, Tensor x, double* out, Tensor workspace) const override;
  size_t sum_of_squares_workspace(int64_t elements) const override;
  void adamw(Stream&, AdamWStep, Tensor w, Tensor g, Tensor m, Tensor v) const override;
  void adamw8(Stream&, AdamWStep, Tensor w, Tensor g, Tensor m, Tensor v, Tensor m_scale,
              Tensor v_scale) const override;

 private:
  // Failure INTERNAL if the launches of the op were refused.
  void launched(const char* op) const;
  void clear(DeviceStream& stream, void* data, size_t bytes) const;
  struct Lists;
  void attend_gathered(DeviceStream& stream, const std::vector<PagedSequence>& one, Bf16* q, int64_t m, int heads,
                       int kv_heads, int head_dim, float scale, const Bf16* pool, Bf16* out) const;
  Lists forward_lists(DeviceStream& stream, const std::vector<AttentionTile>& tiles, int rows_of_tile, int64_t rows,
                      int64_t key_rows, bool for_dq) const;

  const Runtime& runtime_;
  const Kernels& k_;
  Gemm& gemm_;
  EncodeTiled encode_;
  int multiprocessors_;
  bool deterministic_;
};

}  // namespace tokenring::cuda
