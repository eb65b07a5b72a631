// Normalisation, rotary embedding, gated MLP, loss head, optimiser: ops whose rows or elements are independent.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "cpu/ops.h"
#include "cpu/stream.h"

namespace tokenring::cpu {
namespace {

constexpr int64_t kSquaresBlock = 4096;

// Elements of a flat buffer that threads share in blocks.
constexpr int64_t kFlatBlock = 4096;

}  // namespace

void CpuOps::rmsnorm_forward(Stream& stream, Tensor x, Tensor r, Tensor w, float eps, Tensor sum, Tensor y,
                             Tensor rstd) const {
  check_matrix("rmsnorm_forward", "x", x);
  const int64_t m = x.shape[0], h = x.shape[1];
  if (r) check("rmsnorm_forward", "r", r, DType::f32, {m, h});
  check("rmsnorm_forward", "w", w, DType::f32, {h});
  require(sum || !r, "rmsnorm_forward: sum must not be null when r is given");
  if (sum) check("rmsnorm_forward", "sum", sum, DType::f32, {m, h});
  check("rmsnorm_forward", "y", y, DType::f32, {m, h});
  check("rmsnorm_forward", "rstd", rstd, DType::f32, {m});
  float* s = sum && (r || sum.data != x.data) ? sum.f32() : nullptr;
  rows_job(stream, m, static_cast<double>(h) * 0.3 + 10.0,
           {read_rows(x), read_rows(r), write_rows(sum), write_rows(y), write_rows(rstd)},
           [=, this](int64_t begin, int64_t end) {
             const int64_t at = begin * h;
             k_.rmsnorm(end - begin, h, x.f32() + at, r ? r.f32() + at : nullptr, w.f32(), eps, s ? s + at : nullptr,
                        y.f32() + at, rstd.f32() + begin);
           });
}

void CpuOps::rmsnorm_backward(Stream& stream, Tensor dy, Tensor s, Tensor w, Tensor rstd, Tensor ds, bool accumulate,
                              Tensor dw) const {
  check_matrix("rmsnorm_backward", "dy", dy);
  const int64_t m = dy.shape[0], h = dy.shape[1];
  check("rmsnorm_backward", "s", s, DType::f32, {m, h});
  check("rmsnorm_backward", "w", w, DType::f32, {h});
  check("rmsnorm_backward", "rstd", rstd, DType::f32, {m});
  check("rmsnorm_backward", "ds", ds, DType::f32, {m, h});
  check("rmsnorm_backward", "dw", dw, DType::f32, {h});
  require(m == 0 || (ds.data != dy.data && ds.data != s.data), "rmsnorm_backward: ds must not alias dy or s");
  rows_job(stream, m, static_cast<double>(h) * 0.4 + 10.0,
           {read_rows(dy), read_rows(s), read_rows(rstd), write_rows(ds)}, [=, this](int64_t begin, int64_t end) {
             const int64_t at = begin * h;
             k_.rmsnorm_dx(end - begin, h, dy.f32() + at, s.f32() + at, w.f32(), rstd.f32() + begin, ds.f32() + at,
                           accumulate);
           });
  cpu_stream(stream).enqueue_sum({read_all(dy), read_all(s), read_all(rstd), write_all(dw)}, [=, this] {
    const int64_t columns = 64;
    share((h + columns - 1) / columns, static_cast<double>(m * columns) * 0.15, [&](int64_t begin, int64_t end) {
      const int64_t c = begin * columns, to = std::min(end * columns, h);
      k_.rmsnorm_dw(m, to - c, h, dy.f32() + c, s.f32() + c, rstd.f32(), dw.f32() + c);
    });
  });
}

// The heads of one token are rows that follow each other, so the kernels of RMSNorm serve.
void CpuOps::qk_norm_forward(Stream& stream, Tensor qkv, Tensor wq, Tensor wk, float eps, int heads, int kv_heads,
                             Tensor raw, Tensor rstd) const {
  check_matrix("qk_norm_forward", "qkv", qkv);
  require(wq.rank == 1, "qk_norm_forward: wq is ", shape_text(wq), ", must be a vector");
  require(heads > 0 && kv_heads > 0, "qk_norm_forward: ", heads, " heads, ", kv_heads, " kv heads");
  const int64_t m = qkv.shape[0], d = wq.shape[0], normed = heads + kv_heads, ld = (normed + kv_heads) * d;
  check("qk_norm_forward", "qkv", qkv, DType::f32, {m, ld});
  check("qk_norm_forward", "wq", wq, DType::f32, {d});
  check("qk_norm_forward", "wk", wk, DType::f32, {d});
  if (raw) check("qk_norm_forward", "raw", raw, DType::f32, {m, normed * d});
  check("qk_norm_forward", "rstd", rstd, DType::f32, {m, normed});
  rows_job(stream, m, static_cast<double>(normed * d) * 0.3, {write_rows(qkv), write_rows(raw), write_rows(rstd)},
           [=, this](int64_t begin, int64_t end) {
             for (int64_t i = begin; i < end; ++i) {
               const auto part = [&](int64_t first, int64_t count, const float* w) {
                 float* x = qkv.f32() + i * ld + first * d;
                 float* kept = raw ? raw.f32() + (i * normed + first) * d : nullptr;
                 k_.rmsnorm(count, d, x, nullptr, w, eps, kept, x, rstd.f32() + i * normed + first);
               };
               part(0, heads, wq.f32());
               part(heads, kv_heads, wk.f32());
             }
           });
}

void CpuOps::qk_norm_backward(Stream& stream, Tensor dqkv, Tensor raw, Tensor wq, Tensor wk, Tensor rstd, int heads,
                              int kv_heads, Tensor dwq, Tensor dwk) const {
  check_matrix("qk_norm_backward", "dqkv", dqkv);
  require(wq.rank == 1, "qk_norm_backward: wq is ", shape_text(wq), ", must be a vector");
  require(heads > 0 && kv_heads > 0, "qk_norm_backward: ", heads, " heads, ", kv_heads, " kv heads");
  const int64_t m = dqkv.shape[0], d = wq.shape[0], normed = heads + kv_heads, ld = (normed + kv_heads) * d;
  check("qk_norm_backward", "dqkv", dqkv, DType::f32, {m, ld});
  check("qk_norm_backward", "raw", raw, DType::f32, {m, normed * d});
  check("qk_norm_backward", "rstd", rstd, DType::f32, {m, normed});
  for (const auto& [name, t] : {std::pair{"wq", wq}, {"wk", wk}, {"dwq", dwq}, {"dwk", dwk}})
    check("qk_norm_backward", name, t, DType::f32, {d});
  cpu_stream(stream).enqueue_sum(
      {write_all(dqkv), read_all(raw), read_all(rstd), write_all(dwq), write_all(dwk)}, [=, this] {
        // First the weights: the gradient of the heads overwrites what they need. Threads share columns, tokens and
        // within them heads are summed in order.
        const int64_t columns = 16, groups = (d + columns - 1) / columns;
        share(2 * groups, static_cast<double>(m * heads * columns) * 0.2, [&](int64_t begin, int64_t end) {
          for (int64_t item = begin; item < end; ++item) {
            const bool keys = item >= groups;
            const int64_t c = item % groups * columns, first = keys ? heads : 0;
            float* dw = (keys ? dwk : dwq).f32() + c;
            for (int64_t i = 0; i < m; ++i)
              k_.rmsnorm_dw(keys ? kv_heads : heads, std::min(columns, d - c), d, dqkv.f32() + i * ld + first * d + c,
                            raw.f32() + (i * normed + first) * d + c, rstd.f32() + i * normed + first, dw);
          }
        });
        share(m, static_cast<double>(normed * d) * 0.4, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const auto part = [&](int64_t first, int64_t count, const float* w) {
              float* dx = dqkv.f32() + i * ld + first * d;
              const int64_t at = i * normed + first;
              k_.rmsnorm_dx(count, d, dx, raw.f32() + at * d, w, rstd.f32() + at, dx, false);
            };
            part(0, heads, wq.f32());
            part(heads, kv_heads, wk.f32());
          }
        });
      });
}

void CpuOps::rope(Stream& stream, Tensor qkv, Tensor positions, RopeTable table, int heads, int kv_heads, int head_dim,
                  bool backward) const {
  check_matrix("rope", "qkv", qkv);
  require(heads > 0 && kv_heads > 0 && head_dim > 0 && head_dim % 2 == 0, "rope: ", heads, " heads, ", kv_heads,
          " kv heads of dimension ", head_dim, ": all must be positive and the dimension even");
  const int64_t m = qkv.shape[0], ld = static_cast<int64_t>(heads + 2 * kv_heads) * head_dim;
  check("rope", "qkv", qkv, DType::f32, {m, ld});
  check("rope", "positions", positions, DType::i32, {m});
  check_matrix("rope", "cos", table.cos);
  const int64_t length = table.cos.shape[0];
  check("rope", "cos", table.cos, DType::f32, {length, head_dim / 2});
  check("rope", "sin", table.sin, DType::f32, {length, head_dim / 2});
  rows_job(stream, m, static_cast<double>((heads + kv_heads) * head_dim) * 0.2, {read_rows(positions), write_rows(qkv)},
           [=, this](int64_t begin, int64_t end) {
             check_range("rope", "positions", positions.i32(), begin, end, length);
             k_.rope(end - begin, ld, heads + kv_heads, head_dim, positions.i32() + begin, table.cos.f32(),
                     table.sin.f32(), backward, qkv.f32() + begin * ld);
           });
}

void CpuOps::swiglu_forward(Stream& stream, Tensor gate_up, Tensor y) const {
  check_matrix("swiglu_forward", "y", y);
  const int64_t m = y.shape[0], f = y.shape[1];
  check("swiglu_forward", "gate_up", gate_up, DType::f32, {m, 2 * f});
  rows_job(stream, m, static_cast<double>(f) * 0.6, {read_rows(gate_up), write_rows(y)},
           [=, this](int64_t begin, int64_t end) {
             k_.swiglu(end - begin, f, gate_up.f32() + begin * 2 * f, y.f32() + begin * f);
           });
}

void CpuOps::swiglu_backward(Stream& stream, Tensor dy, Tensor gate_up, Tensor dgate_up) const {
  check_matrix("swiglu_backward", "dy", dy);
  const int64_t m = dy.shape[0], f = dy.shape[1];
  check("swiglu_backward", "gate_up", gate_up, DType::f32, {m, 2 * f});
  check("swiglu_backward", "dgate_up", dgate_up, DType::f32, {m, 2 * f});
  rows_job(stream, m, static_cast<double>(f) * 0.9, {read_rows(dy), read_rows(gate_up), write_rows(dgate_up)},
           [=, this](int64_t begin, int64_t end) {
             k_.swiglu_backward(end - begin, f, dy.f32() + begin * f, gate_up.f32() + begin * 2 * f,
                                dgate_up.f32() + begin * 2 * f);
           });
}

void CpuOps::logits_statistics(Stream& stream, Tensor logits, Tensor targets, float inv_temperature, Tensor lse,
                               Tensor logprob, Tensor entropy) const {
  check_matrix("logits_statistics", "logits", logits);
  const int64_t r = logits.shape[0], v = logits.shape[1];
  check("logits_statistics", "targets", targets, DType::i32, {r});
  check("logits_statistics", "lse", lse, DType::f32, {r});
  check("logits_statistics", "logprob", logprob, DType::f32, {r});
  check("logits_statistics", "entropy", entropy, DType::f32, {r});
  rows_job(stream, r, static_cast<double>(v) * 0.8,
           {read_rows(logits), read_rows(targets), write_rows(lse), write_rows(logprob), write_rows(entropy)},
           [=, this](int64_t begin, int64_t end) {
             check_range("logits_statistics", "targets", targets.i32(), begin, end, v);
             k_.statistics(end - begin, v, logits.f32() + begin * v, targets.i32() + begin, inv_temperature,
                           lse.f32() + begin, logprob.f32() + begin, entropy.f32() + begin);
           });
}

void CpuOps::sequence_log_ratio(Stream& stream, Tensor logprob, Tensor old, Tensor begin, Tensor sequence) const {
  require(logprob.rank == 1, "sequence_log_ratio: logprob is ", shape_text(logprob), ", must be a vector");
  require(begin.rank == 1 && begin.shape[0] > 0, "sequence_log_ratio: begin is ", shape_text(begin),
          ", must be a vector of at least one entry");
  const int64_t r = logprob.shape[0], documents = begin.shape[0] - 1;
  check("sequence_log_ratio", "old", old, DType::f32, {r});
  check("sequence_log_ratio", "begin", begin, DType::i32, {documents + 1});
  check("sequence_log_ratio", "sequence", sequence, DType::f32, {r});
  cpu_stream(stream).enqueue([=] {
    check_range("sequence_log_ratio", "begin", begin.i32(), 0, documents + 1, r + 1);
    for (int64_t d = 0; d < documents; ++d) {
      const int32_t from = begin.i32()[d], to = begin.i32()[d + 1];
      double sum = 0.0;  // in the order of the rows
      for (int32_t i = from; i < to; ++i) sum += static_cast<double>(logprob.f32()[i] - old.f32()[i]);
      const float mean = static_cast<float>(sum / static_cast<double>(to - from));
      for (int32_t i = from; i < to; ++i) sequence.f32()[i] = mean;
    }
  });
}

void CpuOps::policy_scalars(Stream& stream, PolicyScalars p, const PolicyLanes& lanes) const {
  const char* op = "policy_scalars";
  require(lanes.logprob.rank == 1, "policy_scalars: logprob is ", shape_text(lanes.logprob), ", must be a vector");
  const int64_t r = lanes.logprob.shape[0];
  check(op, "logprob", lanes.logprob, DType::f32, {r});
  check(op, "weight", lanes.weight, DType::f32, {r});
  check(op, "g", lanes.g, DType::f32, {r});
  check(op, "loss", lanes.loss, DType::f32, {r});
  check(op, "flags", lanes.flags, DType::i32, {r});
  p.check();
  const bool ratio = p.objective != PolicyObjective::nll, sequence = p.objective == PolicyObjective::gspo;
  if (ratio) check(op, "old", lanes.old, DType::f32, {r});
  if (ratio) check(op, "advantage", lanes.advantage, DType::f32, {r});
  if (sequence) check(op, "sequence", lanes.sequence, DType::f32, {r});
  if (p.kl_coef != 0.0f) check(op, "reference", lanes.reference, DType::f32, {r});
  if (p.entropy_coef != 0.0f) {
    check(op, "entropy", lanes.entropy, DType::f32, {r});
    check(op, "entropy_g", lanes.entropy_g, DType::f32, {r});
  }
  const PolicyStage stage{.ratio = ratio,
                          .detached = p.objective == PolicyObjective::cispo,
                          .low = 1.0f - p.clip_low,
                          .high = 1.0f + p.clip_high,
                          .dual_clip = p.dual_clip,
                          .kl_coef = p.kl_coef,
                          .entropy_coef = p.entropy_coef,
                          .logprob = lanes.logprob.f32(),
                          .weight = lanes.weight.f32(),
                          .old = lanes.old.f32(),
                          .advantage = lanes.advantage.f32(),
                          .sequence = sequence ? lanes.sequence.f32() : nullptr,
                          .reference = lanes.reference.f32(),
                          .entropy = lanes.entropy.f32(),
                          .g = lanes.g.f32(),
                          .entropy_g = lanes.entropy_g.f32(),
                          .loss = lanes.loss.f32(),
                          .flags = lanes.flags.i32()};
  cpu_stream(stream).enqueue([=, this] { k_.policy(r, stage); });
}

void CpuOps::logits_gradient(Stream& stream, Tensor logits, Tensor targets, Tensor lse, Tensor g, Tensor entropy,
                             Tensor entropy_g, float inv_temperature, Tensor out) const {
  check_matrix("logits_gradient", "logits", logits);
  require(!out || out.data == logits.data, "logits_gradient: activations are f32 here, as logits: it works in place");
  const int64_t r = logits.shape[0], v = logits.shape[1];
  check("logits_gradient", "targets", targets, DType::i32, {r});
  check("logits_gradient", "lse", lse, DType::f32, {r});
  check("logits_gradient", "g", g, DType::f32, {r});
  if (entropy_g) {
    check("logits_gradient", "entropy", entropy, DType::f32, {r});
    check("logits_gradient", "entropy_g", entropy_g, DType::f32, {r});
  }
  rows_job(
      stream, r, static_cast<double>(v) * 0.4,
      {write_rows(logits), read_rows(targets), read_rows(lse), read_rows(g), read_rows(entropy), read_rows(entropy_g)},
      [=, this](int64_t begin, int64_t end) {
        check_range("logits_gradient", "targets", targets.i32(), begin, end, v);
        k_.logits_gradient(end - begin, v, logits.f32() + begin * v, targets.i32() + begin, lse.f32() + begin,
                           g.f32() + begin, entropy_g ? entropy.f32() + begin : nullptr,
                           entropy_g ? entropy_g.f32() + begin : nullptr, inv_temperature);
      });
}

void CpuOps::sample(Stream& stream, Tensor logits, Tensor inv_temperature, Tensor uniforms, Tensor tokens,
                    Tensor logprob) const {
  check_matrix("sample", "logits", logits);
  const int64_t r = logits.shape[0], v = logits.shape[1];
  require(v > 0, "sample: logits ", shape_text(logits), " have no columns");
  check("sample", "inv_temperature", inv_temperature, DType::f32, {r});
  check("sample", "uniforms", uniforms, DType::f32, {r});
  check("sample", "tokens", tokens, DType::i32, {r});
  check("sample", "logprob", logprob, DType::f32, {r});
  cpu_stream(stream).enqueue([=, this] {
    share(r, static_cast<double>(v) * 2.0, [&](int64_t begin, int64_t end) {
      k_.sample(end - begin, v, logits.f32() + begin * v, inv_temperature.f32() + begin, uniforms.f32() + begin,
                tokens.i32() + begin, logprob.f32() + begin, scratch(static_cast<size_t>(v) + 16));
    });
  });
}

void CpuOps::zero(Stream& stream, Tensor x) const {
  require(x.data || x.elements() == 0, "zero: the tensor ", shape_text(x), " has no memory");
  cpu_stream(stream).enqueue([=, this] {
    const size_t block = kFlatBlock * sizeof(float), bytes = x.bytes();
    share(static_cast<int64_t>((bytes + block - 1) / block), kFlatBlock * 0.1, [&](int64_t begin, int64_t end) {
      const size_t from = static_cast<size_t>(begin) * block, to = std::min(static_cast<size_t>(end) * block, bytes);
      std::memset(static_cast<char*>(x.data) + from, 0, to - from);
    });
  });
}

size_t CpuOps::sum_of_squares_workspace(int64_t elements) const {
  return static_cast<size_t>((elements + kSquaresBlock - 1) / kSquaresBlock) * sizeof(double);
}

void CpuOps::sum_of_squares(Stream& stream, Tensor x, double* out, Tensor workspace) const {
  require(x.dtype == DType::f32 && (x.data || x.elements() == 0), "sum_of_squares: x is ", shape_text(x),
          ", must be f32 with memory");
  require(out, "sum_of_squares: out is null");
  check_bytes("sum_of_squares", "workspace", workspace, sum_of_squares_workspace(x.elements()));
  cpu_stream(stream).enqueue([=, this] {
    const int64_t n = x.elements(), blocks = (n + kSquaresBlock - 1) / kSquaresBlock;
    double* partial = static_cast<double*>(workspace.data);
    share(blocks, kSquaresBlock * 0.2, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        partial[b] = k_.sum_of_squares(std::min(kSquaresBlock, n - b * kSquaresBlock), x.f32() + b * kSquaresBlock);
    });
    double total = 0.0;
    for (int64_t b = 0; b < blocks; ++b) total += partial[b];
    *out = total;
  });
}

}  // namespace tokenring::cpu
