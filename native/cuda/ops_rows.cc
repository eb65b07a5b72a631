// The memory-bound ops: embedding, norms, rotary embedding, gated MLP, rows by index, loss head, sampling, optimiser.
#include "core/check.h"
#include "core/moment_codes.h"
#include "cuda/ops.h"
#include "cuda/stream.h"

namespace tokenring::cuda {

using Room = DeviceStream::Room;

namespace {

Bf16* bf16(const Tensor& t) { return static_cast<Bf16*>(t.data); }

void check_heads(const char* op, int heads, int kv_heads, int head_dim) {
  require(heads > 0 && kv_heads > 0 && head_dim > 0 && head_dim % 2 == 0, op, ": ", heads, " heads, ", kv_heads,
          " kv heads of dimension ", head_dim);
}

int64_t width(int heads, int kv_heads, int64_t head_dim) { return (heads + 2 * int64_t{kv_heads}) * head_dim; }

}  // namespace

void CudaOps::launched(const char* op) const { check_runtime(runtime_, runtime_.last_error(), op); }

void CudaOps::clear(DeviceStream& stream, void* data, size_t bytes) const {
  if (bytes) check_runtime(runtime_, runtime_.fill(data, 0, bytes, stream.raw()), "clearing memory");
}

// --- embedding -------------------------------------------------------------------------------------------------------

void CudaOps::embedding_forward(Stream& stream, Tensor tokens, Tensor table, Tensor y) const {
  const char* op = "embedding_forward";
  if (table.dtype == activation()) return gather_rows(stream, table, tokens, y);
  check(op, "tokens", tokens, DType::i32, {tokens.rows()});
  check_matrix(op, "table", table);
  check(op, "y", y, DType::bf16, {tokens.rows(), table.cols()});
  k_.embedding_forward(device_stream(stream).raw(), tokens.rows(), table.cols(), tokens.i32(), table.f32(), bf16(y));
  launched(op);
}

void CudaOps::embedding_backward(Stream& stream, Tensor tokens, Tensor dy, Tensor dtable) const {
  const char* op = "embedding_backward";
  check(op, "tokens", tokens, DType::i32, {tokens.rows()});
  check_matrix(op, "dtable", dtable);
  check(op, "dy", dy, DType::bf16, {tokens.rows(), dtable.cols()});
  DeviceStream& on = device_stream(stream);
  k_.embedding_backward(on.raw(), tokens.rows(), dtable.cols(), tokens.i32(), bf16(dy), dtable.f32(),
                        on.room(Room::sums, k_.embedding_backward_workspace(tokens.rows())));
  launched(op);
}

// --- norms -----------------------------------------------------------------------------------------------------------

void CudaOps::rmsnorm_forward(Stream& stream, Tensor x, Tensor r, Tensor w, float eps, Tensor sum, Tensor y,
                              Tensor rstd) const {
  const char* op = "rmsnorm_forward";
  const int64_t m = x.rows(), h = x.cols();
  check(op, "x", x, DType::bf16, {m, h});
  if (r) check(op, "r", r, DType::bf16, {m, h});
  check(op, "w", w, DType::f32, {h});
  check(op, "sum", sum, DType::bf16, {m, h});
  check(op, "y", y, DType::bf16, {m, h});
  check(op, "rstd", rstd, DType::f32, {m});
  // Without a residual the sum is x itself, which need not be written where it lies.
  Bf16* to = !r && sum.data == x.data ? nullptr : bf16(sum);
  k_.rmsnorm_forward(device_stream(stream).raw(), m, h, bf16(x), bf16(r), w.f32(), eps, to, bf16(y), rstd.f32());
  launched(op);
}

void CudaOps::rmsnorm_backward(Stream& stream, Tensor dy, Tensor s, Tensor w, Tensor rstd, Tensor ds, bool accumulate,
                               Tensor dw) const {
  const char* op = "rmsnorm_backward";
  const int64_t m = s.rows(), h = s.cols();
  for (const auto& [name, t] : {std::pair{"dy", dy}, {"s", s}, {"ds", ds}}) check(op, name, t, DType::bf16, {m, h});
  check(op, "w", w, DType::f32, {h});
  check(op, "rstd", rstd, DType::f32, {m});
  check(op, "dw", dw, DType::f32, {h});
  DeviceStream& on = device_stream(stream);
  k_.rmsnorm_backward(on.raw(), m, h, bf16(dy), bf16(s), w.f32(), rstd.f32(), bf16(ds), accumulate, dw.f32(),
                      on.room(Room::sums, k_.rmsnorm_backward_workspace(m, h)));
  launched(op);
}

void CudaOps::qk_norm_forward(Stream& stream, Tensor qkv, Tensor wq, Tensor wk, float eps, int heads, int kv_heads,
                              Tensor raw, Tensor rstd) const {
  const char* op = "qk_norm_forward";
  const int64_t m = qkv.rows(), dim = wq.rows(), normed = int64_t{heads} + kv_heads;
  check_heads(op, heads, kv_heads, static_cast<int>(dim));
  check(op, "wq", wq, DType::f32, {dim});
  check(op, "wk", wk, DType::f32, {dim});
  check(op, "qkv", qkv, DType::bf16, {m, width(heads, kv_heads, dim)});
  if (raw) check(op, "raw", raw, DType::bf16, {m, normed * dim});
  check(op, "rstd", rstd, DType::f32, {m, normed});
  k_.qk_norm_forward(device_stream(stream).raw(), m, heads, kv_heads, dim, bf16(qkv), wq.f32(), wk.f32(), eps,
                     bf16(raw), rstd.f32());
  launched(op);
}

void CudaOps::qk_norm_backward(Stream& stream, Tensor dqkv, Tensor raw, Tensor wq, Tensor wk, Tensor rstd, int heads,
                               int kv_heads, Tensor dwq, Tensor dwk) const {
  const char* op = "qk_norm_backward";
  const int64_t m = dqkv.rows(), d = wq.rows(), normed = int64_t{heads} + kv_heads;
  check_heads(op, heads, kv_heads, static_cast<int>(d));
  for (const auto& [name, t] : {std::pair{"wq", wq}, {"wk", wk}, {"dwq", dwq}, {"dwk", dwk}})
    check(op, name, t, DType::f32, {d});
  check(op, "dqkv", dqkv, DType::bf16, {m, width(heads, kv_heads, d)});
  check(op, "raw", raw, DType::bf16, {m, normed * d});
  check(op, "rstd", rstd, DType::f32, {m, normed});
  DeviceStream& on = device_stream(stream);
  k_.qk_norm_backward(on.raw(), m, heads, kv_heads, d, bf16(dqkv), bf16(raw), wq.f32(), wk.f32(), rstd.f32(), dwq.f32(),
                      dwk.f32(), on.room(Room::sums, k_.qk_norm_backward_workspace(m, d)));
  launched(op);
}

// --- rotary embedding, gated MLP
// --------------------------------------------------------------------------------------

void CudaOps::rope(Stream& stream, Tensor qkv, Tensor positions, RopeTable table, int heads, int kv_heads, int head_dim,
                   bool backward) const {
  const char* op = "rope";
  check_heads(op, heads, kv_heads, head_dim);
  const int64_t m = qkv.rows();
  check(op, "qkv", qkv, DType::bf16, {m, width(heads, kv_heads, head_dim)});
  check(op, "positions", positions, DType::i32, {m});
  check(op, "cos", table.cos, DType::f32, {table.cos.rows(), head_dim / 2});
  check(op, "sin", table.sin, DType::f32, {table.cos.rows(), head_dim / 2});
  k_.rope(device_stream(stream).raw(), m, heads, kv_heads, head_dim, bf16(qkv), positions.i32(), table.cos.f32(),
          table.sin.f32(), backward);
  launched(op);
}

void CudaOps::swiglu_forward(Stream& stream, Tensor gate_up, Tensor y) const {
  const int64_t m = y.rows(), f = y.cols();
  check("swiglu_forward", "y", y, DType::bf16, {m, f});
  check("swiglu_forward", "gate_up", gate_up, DType::bf16, {m, 2 * f});
  k_.swiglu_forward(device_stream(stream).raw(), m, f, bf16(gate_up), bf16(y));
  launched("swiglu_forward");
}

void CudaOps::swiglu_backward(Stream& stream, Tensor dy, Tensor gate_up, Tensor dgate_up) const {
  const int64_t m = dy.rows(), f = dy.cols();
  check("swiglu_backward", "dy", dy, DType::bf16, {m, f});
  check("swiglu_backward", "gate_up", gate_up, DType::bf16, {m, 2 * f});
  check("swiglu_backward", "dgate_up", dgate_up, DType::bf16, {m, 2 * f});
  k_.swiglu_backward(device_stream(stream).raw(), m, f, bf16(dy), bf16(gate_up), bf16(dgate_up));
  launched("swiglu_backward");
}

// --- rows by index
// ------------------------------------------------------------------------------------------------------

void CudaOps::gather_rows(Stream& stream, Tensor x, Tensor index, Tensor y) const {
  const char* op = "gather_rows";
  check_matrix(op, "x", x, DType::bf16);
  check(op, "index", index, DType::i32, {index.rows()});
  check(op, "y", y, DType::bf16, {index.rows(), x.cols()});
  k_.gather_rows(device_stream(stream).raw(), index.rows(), x.cols(), bf16(x), index.i32(), bf16(y));
  launched(op);
}

void CudaOps::copy_rows(Stream& stream, HeadRows from, HeadRows to, int64_t width, bool add) const {
  const char* op = "copy_rows";
  for (const auto& [name, rows] : {std::pair{"from", from}, {"to", to}})
    require((rows.dtype == DType::f32 || rows.dtype == DType::bf16) && rows.rows == from.rows && rows.stride >= width &&
                (rows.data || rows.rows == 0),
            op, ": ", name, " is ", name_of(rows.dtype), " of ", rows.rows, " rows, ", rows.stride,
            " elements apart; must be f32 or bf16 of ", from.rows, " rows, at least ", width, " apart, in memory");
  require(!add || to.dtype == DType::f32, op, ": only f32 is added to");
  k_.copy_rows(device_stream(stream).raw(), from.rows, width, from.data, from.dtype == DType::f32, from.stride, to.data,
               to.dtype == DType::f32, to.stride, add);
  launched(op);
}

void CudaOps::scatter_rows_add(Stream& stream, Tensor y, Tensor index, Tensor x) const {
  const char* op = "scatter_rows_add";
  const DType dtype = x.dtype == DType::f32 ? DType::f32 : DType::bf16;
  check_matrix(op, "x", x, dtype);
  check(op, "index", index, DType::i32, {index.rows()});
  check(op, "y", y, dtype, {index.rows(), x.cols()});
  const CudaStream on = device_stream(stream).raw();
  if (dtype == DType::f32)
    k_.scatter_rows_add_f32(on, index.rows(), x.cols(), y.f32(), index.i32(), x.f32());
  else
    k_.scatter_rows_add(on, index.rows(), x.cols(), bf16(y), index.i32(), bf16(x));
  launched(op);
}

// --- loss head, sampling
// ------------------------------------------------------------------------------------------------

void CudaOps::logits_statistics(Stream& stream, Tensor logits, Tensor targets, float inv_temperature, Tensor lse,
                                Tensor logprob, Tensor entropy) const {
  const char* op = "logits_statistics";
  const int64_t r = logits.rows();
  check_matrix(op, "logits", logits);
  check(op, "targets", targets, DType::i32, {r});
  for (const auto& [name, t] : {std::pair{"lse", lse}, {"logprob", logprob}, {"entropy", entropy}})
    check(op, name, t, DType::f32, {r});
  k_.logits_statistics(device_stream(stream).raw(), r, logits.cols(), logits.f32(), targets.i32(), inv_temperature,
                       lse.f32(), logprob.f32(), entropy.f32());
  launched(op);
}

void CudaOps::sequence_log_ratio(Stream& stream, Tensor logprob, Tensor old, Tensor begin, Tensor sequence) const {
  const char* op = "sequence_log_ratio";
  const int64_t r = logprob.rows();
  require(begin.rows() >= 1, op, ": begin has no entry");
  check(op, "begin", begin, DType::i32, {begin.rows()});
  for (const auto& [name, t] : {std::pair{"logprob", logprob}, {"old", old}, {"sequence", sequence}})
    check(op, name, t, DType::f32, {r});
  k_.sequence_log_ratio(device_stream(stream).raw(), begin.rows() - 1, logprob.f32(), old.f32(), begin.i32(),
                        sequence.f32());
  launched(op);
}

void CudaOps::policy_scalars(Stream& stream, PolicyScalars how, const PolicyLanes& lanes) const {
  const char* op = "policy_scalars";
  how.check();
  const int64_t r = lanes.logprob.rows();
  const bool nll = how.objective == PolicyObjective::nll, gspo = how.objective == PolicyObjective::gspo;
  const auto lane = [&](const char* name, const Tensor& t, bool needed) {
    if (needed) check(op, name, t, DType::f32, {r});
  };
  lane("logprob", lanes.logprob, true);
  lane("weight", lanes.weight, true);
  lane("old", lanes.old, !nll && !gspo);
  lane("advantage", lanes.advantage, !nll);
  lane("sequence", lanes.sequence, gspo);
  lane("reference", lanes.reference, how.kl_coef != 0);
  lane("entropy", lanes.entropy, how.entropy_coef != 0);
  lane("g", lanes.g, true);
  lane("entropy_g", lanes.entropy_g, how.entropy_coef != 0);
  lane("loss", lanes.loss, true);
  check(op, "flags", lanes.flags, DType::i32, {r});
  k_.policy_scalars(device_stream(stream).raw(), r, how,
                    {lanes.logprob.f32(), lanes.weight.f32(), lanes.old.f32(), lanes.advantage.f32(),
                     lanes.sequence.f32(), lanes.reference.f32(), lanes.entropy.f32(), lanes.g.f32(),
                     lanes.entropy_g.f32(), lanes.loss.f32(), lanes.flags.i32()});
  launched(op);
}

void CudaOps::logits_gradient(Stream& stream, Tensor logits, Tensor targets, Tensor lse, Tensor g, Tensor entropy,
                              Tensor entropy_g, float inv_temperature, Tensor out) const {
  const char* op = "logits_gradient";
  const int64_t r = logits.rows();
  check_matrix(op, "logits", logits);
  check(op, "targets", targets, DType::i32, {r});
  check(op, "lse", lse, DType::f32, {r});
  check(op, "g", g, DType::f32, {r});
  if (entropy_g) {
    check(op, "entropy", entropy, DType::f32, {r});
    check(op, "entropy_g", entropy_g, DType::f32, {r});
  }
  if (out) check(op, "out", out, DType::bf16, {r, logits.cols()});
  k_.logits_gradient(device_stream(stream).raw(), r, logits.cols(), logits.f32(), targets.i32(), lse.f32(), g.f32(),
                     entropy_g ? entropy.f32() : nullptr, entropy_g.f32(), inv_temperature, bf16(out));
  launched(op);
}

void CudaOps::sample(Stream& stream, Tensor logits, Tensor inv_temperature, Tensor uniforms, Tensor tokens,
                     Tensor logprob) const {
  const char* op = "sample";
  const int64_t r = logits.rows();
  check_matrix(op, "logits", logits);
  for (const auto& [name, t] :
       {std::pair{"inv_temperature", inv_temperature}, {"uniforms", uniforms}, {"logprob", logprob}})
    check(op, name, t, DType::f32, {r});
  check(op, "tokens", tokens, DType::i32, {r});
  k_.sample(device_stream(stream).raw(), r, logits.cols(), logits.f32(), inv_temperature.f32(), uniforms.f32(),
            tokens.i32(), logprob.f32());
  launched(op);
}

// --- parameters
// -----------------------------------------------------------------------------------------------------------

void CudaOps::zero(Stream& stream, Tensor x) const {
  require(x.data || x.elements() == 0, "zero: x has no memory");
  clear(device_stream(stream), x.data, x.bytes());
}

size_t CudaOps::sum_of_squares_workspace(int64_t elements) const { return k_.sum_of_squares_workspace(elements); }

void CudaOps::sum_of_squares(Stream& stream, Tensor x, double* out, Tensor workspace) const {
  const char* op = "sum_of_squares";
  check(op, "x", x, DType::f32, {x.elements()});
  require(out, op, ": out is null");
  check_bytes(op, "workspace", workspace, sum_of_squares_workspace(x.elements()));
  k_.sum_of_squares(device_stream(stream).raw(), x.elements(), x.f32(), out, workspace.data);
  launched(op);
}

void CudaOps::adamw(Stream& stream, AdamWStep step, Tensor w, Tensor g, Tensor m, Tensor v) const {
  const int64_t n = w.elements();
  for (const auto& [name, t] : {std::pair{"w", w}, {"g", g}, {"m", m}, {"v", v}})
    check("adamw", name, t, DType::f32, {n});
  require(step.step >= 1, "adamw: step is ", step.step, ", must be at least 1");
  k_.adamw(device_stream(stream).raw(), n, step, w.f32(), g.f32(), m.f32(), v.f32());
  launched("adamw");
}

void CudaOps::adamw8(Stream& stream, AdamWStep step, Tensor w, Tensor g, Tensor m, Tensor v, Tensor m_scale,
                     Tensor v_scale) const {
  const char* op = "adamw8";
  const int64_t n = w.elements(), blocks = moment_blocks(n);
  for (const auto& [name, t] : {std::pair{"w", w}, {"g", g}}) check(op, name, t, DType::f32, {n});
  for (const auto& [name, t] : {std::pair{"m", m}, {"v", v}}) check(op, name, t, DType::u8, {n});
  for (const auto& [name, t] : {std::pair{"m_scale", m_scale}, {"v_scale", v_scale}})
    check(op, name, t, DType::f32, {blocks});
  require(step.step >= 1, "adamw8: step is ", step.step, ", must be at least 1");
  DeviceStream& on = device_stream(stream);
  static const std::vector<MomentCodes> codes{moment_codes()};
  k_.adamw8(on.raw(), n, step, on.table(DeviceStream::Table::moment_codes, codes), w.f32(), g.f32(),
            static_cast<uint8_t*>(m.data), static_cast<uint8_t*>(v.data), m_scale.f32(), v_scale.f32());
  launched(op);
}

}  // namespace tokenring::cuda
