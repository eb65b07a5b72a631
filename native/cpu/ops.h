// The table of ops on the CPU: checks on the caller's thread, then a job on the stream that shares its rows or tiles
// among the pool's threads.
#pragma once

#include "core/ops.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "cpu/stream.h"

namespace tokenring::cpu {

class CpuOps : public Ops {
 public:
  CpuOps(const Kernels& kernels, ThreadPool& pool) : k_(kernels), pool_(pool) {}

  // Caches of a core and its part of the last one: beyond, writes are half as fast and less.
  size_t near_bytes() const override { return size_t{16} << 20; }

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

 protected:
  // Rough nanoseconds of work that a chunk should hold, so that sharing pays.
  static constexpr int64_t kChunkNanoseconds = 8000;

  // body(begin, end) over n items that cost about `nanoseconds` each; alone when the whole is small.
  template <class Body>
  void share(int64_t n, double nanoseconds, const Body& body) const {
    int64_t grain = static_cast<int64_t>(static_cast<double>(kChunkNanoseconds) / nanoseconds) + 1;
    // At most some chunks a thread: what is left to balance at the end is small, and so is the cost of claiming.
    const int64_t fair = n / (8 * pool_.free_threads());
    pool_.run(n, grain > fair ? grain : fair, body);
  }

  // Queues body(begin, end) over rows, in one chain with what comes before and after.
  template <class Body>
  void rows_job(Stream& stream, int64_t rows, double nanoseconds, std::initializer_list<Region> regions,
                const Body& body) const {
    cpu_stream(stream).enqueue_rows(pool_,
                                    {.rows = rows, .nanoseconds = nanoseconds, .regions = regions, .body = body});
  }

  const Kernels& k_;
  ThreadPool& pool_;

 private:
  // Whether a product goes row by row with its neighbours. Few rows are worth cutting by columns instead.
  static constexpr int64_t kLeastRows = 24;
  bool chains(int64_t rows, const Weight& w) const;

  // The four that depend on how weights are kept; they run on the stream's thread, arguments checked.
  virtual void lay_out(const float* master, Weight out) const;
  // y [m, n] = x [m, k] W^T, plus a bias of n or null
  virtual void multiply_forward(const float* x, int64_t m, Weight w, const float* bias, float* y) const;
  // dx [m, k] (+)= dy [m, n] W
  virtual void multiply_backward(const float* dy, int64_t m, Weight w, float* dx, bool accumulate) const;
  // dw [n, k] += dy [m, n]^T x [m, k]
  virtual void multiply_rows(const float* dy, const float* x, int64_t m, int64_t n, int64_t k, float* dw) const;

  // c [m, n] (+)= a [m, k] times the [k, n] matrix in `panels`, plus a bias of n.
  void multiply_by_panels(const float* a, int64_t m, int64_t k, const float* panels, int64_t n, float* c,
                          bool accumulate, const float* bias) const;

  // The jobs of both attention ops; see ops_attention.cc.
  struct Attention;
  struct AttentionGradient;
  void attend(const Attention&, bool merge, float* out, float* lse) const;
  void attend_backward(const Attention&, const AttentionGradient&) const;
};

// The same with the operands of linear layers rounded to bf16; everything else stays float32.
class Bf16Ops final : public CpuOps {
 public:
  Bf16Ops(const Kernels& kernels, const Bf16Kernels& bf16, ThreadPool& pool) : CpuOps(kernels, pool), b_(bf16) {}

  int64_t cut_rows() const override { return 32; }  // gradients of weights sum blocks of so many

  size_t weight_bytes(int64_t n, int64_t k) const override;

 private:
  void lay_out(const float* master, Weight out) const override;
  void multiply_forward(const float* x, int64_t m, Weight w, const float* bias, float* y) const override;
  void multiply_backward(const float* dy, int64_t m, Weight w, float* dx, bool accumulate) const override;
  void multiply_rows(const float* dy, const float* x, int64_t m, int64_t n, int64_t k, float* dw) const override;

  // c [m, n] (+)= a [m, k] times the [k, n] matrix in `tiles`, plus a bias of n.
  void multiply_by_tiles(const float* a, int64_t m, int64_t k, const uint16_t* tiles, int64_t n, float* c,
                         bool accumulate, const float* bias) const;

  const Bf16Kernels& b_;
};

// This thread's scratch, at least `floats` long, 64-byte aligned. Grows, is never given back before the thread ends.
float* scratch(size_t floats);
// The same, apart from scratch(): for what a stream's thread lays out and all threads then read.
float* staging(size_t floats);

}  // namespace tokenring::cpu
