#include "model/decoder.h"

#include <algorithm>

namespace tokenring {

namespace {

// Adds entries with their price: each helper is one op of the table.
struct Builder {
  Schedule& schedule;
  const Ops& ops;
  const DecoderConfig& config;
  DType act = ops.activation();

  static int64_t bytes(std::initializer_list<Slot> slots) {
    int64_t sum = 0;
    for (const Slot& slot : slots) sum += static_cast<int64_t>(slot.bytes());
    return sum;
  }
  int64_t weight_bytes(const Weight& w) const { return w.n * w.k * static_cast<int64_t>(size_of(act)); }

  Slot rows(int64_t m, int64_t n) { return schedule.slot(act, {m, n}); }
  void release(std::initializer_list<Slot> slots) {
    for (const Slot& slot : slots) schedule.release(slot);
  }

  void linear(int layer, Slot x, Weight w, Tensor bias, Slot y) {
    schedule.add("linear_forward", layer, bytes({x, y}) + weight_bytes(w), 2 * x.shape[0] * w.n * w.k,
                 [&ops = ops, x, w, bias, y](const Frame& f) { ops.linear_forward(f.stream, f[x], w, bias, f[y]); });
  }

  void linear_backward(int layer, Slot dy, Weight w, Slot x, Tensor dw, Tensor db, Slot dx) {
    const int64_t flops = 2 * dy.shape[0] * w.n * w.k;
    schedule.add("linear_wgrad", layer, bytes({dy, x}) + 2 * 4 * w.n * w.k, flops,
                 [&ops = ops, dy, x, dw, db](const Frame& f) { ops.linear_wgrad(f.stream, f[dy], f[x], dw, db); });
    schedule.add("linear_dgrad", layer, bytes({dy, dx}) + weight_bytes(w), flops,
                 [&ops = ops, dy, w, dx](const Frame& f) { ops.linear_dgrad(f.stream, f[dy], w, f[dx], false); });
  }

  void norm(int layer, Slot x, Slot r, Tensor w, Slot sum, Slot y, Slot rstd) {
    schedule.add("rmsnorm_forward", layer, bytes({x, r, sum, y, rstd}), 4 * x.shape[0] * x.shape[1],
                 [&ops = ops, eps = config.rms_norm_eps, x, r, w, sum, y, rstd](const Frame& f) {
                   ops.rmsnorm_forward(f.stream, f[x], f[r], w, eps, f[sum], f[y], f[rstd]);
                 });
  }

  void norm_backward(int layer, Slot dy, Slot s, Tensor w, Slot rstd, Slot ds, bool accumulate, Tensor dw) {
    schedule.add("rmsnorm_backward", layer, bytes({dy, s, rstd, ds}), 8 * s.shape[0] * s.shape[1],
                 [&ops = ops, dy, s, w, rstd, ds, accumulate, dw](const Frame& f) {
                   ops.rmsnorm_backward(f.stream, f[dy], f[s], w, f[rstd], f[ds], accumulate, dw);
                 });
  }

  void qk_norm(int layer, Slot qkv, const LayerWeights& w, Slot raw, Slot rstd) {
    schedule.add("qk_norm_forward", layer, 2 * bytes({qkv}) + bytes({raw, rstd}), 4 * qkv.shape[0] * qkv.shape[1],
                 [&ops = ops, &c = config, qkv, wq = w.q_norm, wk = w.k_norm, raw, rstd](const Frame& f) {
                   ops.qk_norm_forward(f.stream, f[qkv], wq, wk, c.rms_norm_eps, c.num_attention_heads,
                                       c.num_key_value_heads, f[raw], f[rstd]);
                 });
  }

  void qk_norm_backward(int layer, Slot dqkv, const LayerWeights& w, Slot raw, Slot rstd, const LayerGradients& d) {
    schedule.add("qk_norm_backward", layer, 2 * bytes({dqkv, raw, rstd}), 10 * raw.shape[0] * raw.shape[1],
                 [&ops = ops, &c = config, dqkv, wq = w.q_norm, wk = w.k_norm, raw, rstd, dq = d.q_norm,
                  dk = d.k_norm](const Frame& f) {
                   ops.qk_norm_backward(f.stream, f[dqkv], f[raw], wq, wk, f[rstd], c.num_attention_heads,
                                        c.num_key_value_heads, dq, dk);
                 });
  }

  void rope(int layer, Slot qkv, Slot positions, RopeTable table, bool backward) {
    schedule.add("rope", layer, 2 * bytes({qkv}), 3 * qkv.shape[0] * qkv.shape[1],
                 [&ops = ops, qkv, positions, table, heads = config.num_attention_heads,
                  kv_heads = config.num_key_value_heads, head_dim = config.head_dim, backward](const Frame& f) {
                   ops.rope(f.stream, f[qkv], f[positions], table, heads, kv_heads, head_dim, backward);
                 });
  }

  // y1 -> qkv, and with qk_norm rstd_qk and, if backward will want it, qk
  void attention_inputs(int layer, const LayerWeights& w, DecoderPass::Layer& at, Slot positions, RopeTable table,
                        bool for_backward) {
    const int64_t m = at.y1.shape[0], normed = config.num_attention_heads + config.num_key_value_heads;
    at.qkv = rows(m, (normed + config.num_key_value_heads) * config.head_dim);
    linear(layer, at.y1, w.qkv, w.qkv_bias, at.qkv);
    if (config.qk_norm) {
      if (for_backward) at.qk = rows(m, normed * config.head_dim);
      at.rstd_qk = schedule.slot(DType::f32, {m, normed});
      qk_norm(layer, at.qkv, w, at.qk, at.rstd_qk);
    }
    rope(layer, at.qkv, positions, table, false);
  }

  // Some rows of the MLP: those of y2, and what is made of them.
  struct Mlp {
    Slot y2, gate_up, gated;
  };
  Mlp gated_mlp(int layer, const LayerWeights& w, Slot y2) {
    const int64_t m = y2.shape[0], ff = config.intermediate_size;
    const Mlp at{y2, rows(m, 2 * ff), rows(m, ff)};
    linear(layer, y2, w.gate_up, Tensor{}, at.gate_up);
    schedule.add("swiglu_forward", layer, bytes({at.gate_up, at.gated}), 5 * m * ff,
                 [&ops = ops, at](const Frame& f) { ops.swiglu_forward(f.stream, f[at.gate_up], f[at.gated]); });
    return at;
  }

  // From ds, those rows of the gradient of the MLP's result, to dy2. What `at` holds beside y2 is released.
  void gated_mlp_backward(int layer, const LayerWeights& w, const LayerGradients& d, const Mlp& at, Slot ds, Slot dy2) {
    const Slot dgated = rows(at.gated.shape[0], at.gated.shape[1]);
    linear_backward(layer, ds, w.down, at.gated, d.down, Tensor{}, dgated);
    const Slot dgate_up = rows(at.gate_up.shape[0], at.gate_up.shape[1]);
    schedule.add("swiglu_backward", layer, bytes({dgated, at.gate_up, dgate_up}), 8 * dgated.shape[0] * dgated.shape[1],
                 [&ops = ops, dgated, gate_up = at.gate_up, dgate_up](const Frame& f) {
                   ops.swiglu_backward(f.stream, f[dgated], f[gate_up], f[dgate_up]);
                 });
    linear_backward(layer, dgate_up, w.gate_up, at.y2, d.gate_up, Tensor{}, dy2);
    // Only now: a backend that takes a block of rows through all of this needs the rooms apart.
    release({at.gated, dgated, at.gate_up, dgate_up});
  }
};

}  // namespace

Decoder::Decoder(const DecoderConfig& config, const Ops& ops, RopeTable rope, int64_t mlp_rows)
    : config_(config), ops_(ops), rope_(rope), mlp_rows_(mlp_rows) {
  config_.check();
}

// Calls work(begin, count) for each part of m rows.
template <class Work>
void Decoder::in_parts(int64_t m, const Work& work) const {
  const int64_t part = mlp_rows_ > 0 ? mlp_rows_ : m;
  for (int64_t begin = 0; begin < m; begin += part) work(begin, std::min(part, m - begin));
}

DecoderPass Decoder::forward(Schedule& schedule, ParamSource& params, Attend& attend, Slot tokens, Slot positions,
                             Keep keep, Offload* offload) const {
  const DecoderConfig& c = config_;
  const int64_t m = tokens.shape[0], h = c.hidden_size;
  Builder build{schedule, ops_, c};
  const auto drop_below = [&](Keep level, std::initializer_list<Slot> slots) {
    if (keep < level) build.release(slots);
  };

  DecoderPass pass;
  pass.keep = keep;
  pass.tokens = tokens;
  pass.positions = positions;
  const Tensor table = params.acquire_embedding(schedule);
  if (offload) offload->begin(c.num_hidden_layers);

  Slot x = build.rows(m, h);  // residual stream
  Slot r;                     // what is still to be added to it
  schedule.add(
      "embedding_forward", -1, 2 * static_cast<int64_t>(x.bytes()), 0,
      [&ops = ops_, tokens, table, x](const Frame& f) { ops.embedding_forward(f.stream, f[tokens], table, f[x]); });
  params.release_embedding(schedule);

  // s = x + r, y = norm(s). The stream is updated in place unless backward needs it as it was.
  const auto add_norm = [&](int layer, Tensor weight, bool x_is_kept, Slot& s, Slot& rstd, Slot& y) {
    s = x_is_kept && r ? build.rows(m, h) : x;
    rstd = schedule.slot(DType::f32, {m});
    y = build.rows(m, h);
    build.norm(layer, x, r, weight, s, y, rstd);
    schedule.release(r);
    r = Slot{};
    x = s;
  };

  for (int layer = 0; layer < c.num_hidden_layers; ++layer) {
    const LayerWeights w = params.acquire(schedule, layer);
    DecoderPass::Layer at;
    add_norm(layer, w.input_norm, keep == Keep::everything, at.s1, at.rstd1, at.y1);
    build.attention_inputs(layer, w, at, positions, rope_, keep == Keep::everything);
    drop_below(Keep::everything, {at.rstd1, at.y1, at.rstd_qk});
    at.out = build.rows(m, int64_t{c.num_attention_heads} * c.head_dim);
    at.lse = schedule.slot(DType::f32, {m, c.num_attention_heads});
    attend.forward(schedule, layer, at.qkv, at.out, at.lse);
    drop_below(Keep::everything, {at.qkv});
    r = build.rows(m, h);
    build.linear(layer, at.out, w.o, Tensor{}, r);
    drop_below(Keep::checkpoints, {at.out, at.lse});

    add_norm(layer, w.post_norm, keep >= Keep::checkpoints, at.s2, at.rstd2, at.y2);
    if (offload) offload->put(schedule, layer, {at.s1, at.out, at.lse});
    if (keep == Keep::everything) {
      const Builder::Mlp mlp = build.gated_mlp(layer, w, at.y2);
      at.gate_up = mlp.gate_up;
      at.gated = mlp.gated;
      r = build.rows(m, h);
      build.linear(layer, at.gated, w.down, Tensor{}, r);
    } else {
      in_parts(m, [&](int64_t begin, int64_t count) {
        const Builder::Mlp mlp = build.gated_mlp(layer, w, at.y2.rows(begin, count));
        schedule.release(mlp.gate_up);
        if (!r) r = build.rows(m, h);
        build.linear(layer, mlp.gated, w.down, Tensor{}, r.rows(begin, count));
        schedule.release(mlp.gated);
      });
      build.release({at.rstd2, at.y2});
    }
    params.release(schedule, layer);
    if (keep > Keep::nothing) pass.layers.push_back(at);
  }

  const HeadWeights head = params.acquire_head(schedule);
  add_norm(-1, head.final_norm, keep == Keep::everything, pass.s, pass.rstd, pass.hidden);
  drop_below(Keep::checkpoints, {pass.s, pass.rstd});
  params.release_head(schedule);
  return pass;
}

void Decoder::backward(Schedule& schedule, ParamSource& params, GradSink& sink, Attend& attend, const DecoderPass& pass,
                       Slot dhidden, Offload* offload) const {
  const DecoderConfig& c = config_;
  if (static_cast<int>(pass.layers.size()) != c.num_hidden_layers) {
    fail("INTERNAL", "backward needs a pass that kept what it takes");
  }
  const int64_t m = pass.tokens.shape[0], h = c.hidden_size;
  Builder build{schedule, ops_, c};

  const HeadWeights head = params.acquire_head(schedule);
  const HeadGradients dhead = sink.head(schedule);
  const Slot ds = build.rows(m, h);  // gradient of the residual stream, from top to bottom
  build.norm_backward(-1, dhidden, pass.s, head.final_norm, pass.rstd, ds, false, dhead.final_norm);
  build.release({dhidden, pass.hidden, pass.s, pass.rstd});
  params.release_head(schedule);
  sink.ready_head(schedule);

  for (int layer = c.num_hidden_layers - 1; layer >= 0; --layer) {
    DecoderPass::Layer at = pass.layers[layer];
    const LayerWeights w = params.acquire(schedule, layer);
    const LayerGradients d = sink.layer(schedule, layer);
    if (offload) {
      const auto [s1, out, lse] = offload->get(schedule, layer);
      at.s1 = s1;
      at.out = out;
      at.lse = lse;
    }

    if (pass.keep == Keep::checkpoints) {
      const Slot r = build.rows(m, h);
      build.linear(layer, at.out, w.o, Tensor{}, r);
      at.s2 = build.rows(m, h);
      at.rstd2 = schedule.slot(DType::f32, {m});
      at.y2 = build.rows(m, h);
      build.norm(layer, at.s1, r, w.post_norm, at.s2, at.y2, at.rstd2);
      build.release({r});
    }
    const Slot dy2 = build.rows(m, h);
    if (pass.keep == Keep::checkpoints) {
      in_parts(m, [&](int64_t begin, int64_t count) {
        const Builder::Mlp mlp = build.gated_mlp(layer, w, at.y2.rows(begin, count));
        build.gated_mlp_backward(layer, w, d, mlp, ds.rows(begin, count), dy2.rows(begin, count));
      });
    } else {
      build.gated_mlp_backward(layer, w, d, {at.y2, at.gate_up, at.gated}, ds, dy2);
    }
    build.release({at.y2});
    build.norm_backward(layer, dy2, at.s2, w.post_norm, at.rstd2, ds, true, d.post_norm);
    build.release({dy2, at.s2, at.rstd2});

    if (pass.keep == Keep::checkpoints) {
      at.rstd1 = schedule.slot(DType::f32, {m});
      at.y1 = build.rows(m, h);
      build.norm(layer, at.s1, Slot{}, w.input_norm, at.s1, at.y1, at.rstd1);
      build.attention_inputs(layer, w, at, pass.positions, rope_, true);
    }
    const Slot dout = build.rows(m, at.out.shape[1]);
    build.linear_backward(layer, ds, w.o, at.out, d.o, Tensor{}, dout);
    const Slot dqkv = build.rows(m, at.qkv.shape[1]);
    attend.backward(schedule, layer, dout, at.qkv, at.out, at.lse, dqkv);
    build.release({dout, at.out, at.lse, at.qkv});
    build.rope(layer, dqkv, pass.positions, rope_, true);
    if (c.qk_norm) build.qk_norm_backward(layer, dqkv, w, at.qk, at.rstd_qk, d);
    build.release({at.qk, at.rstd_qk});
    const Slot dy1 = build.rows(m, h);
    build.linear_backward(layer, dqkv, w.qkv, at.y1, d.qkv, d.qkv_bias, dy1);
    build.release({dqkv, at.y1});
    build.norm_backward(layer, dy1, at.s1, w.input_norm, at.rstd1, ds, true, d.input_norm);
    build.release({dy1, at.s1, at.rstd1});
    params.release(schedule, layer);
    sink.ready(schedule, layer);
  }

  const Tensor dtable = sink.embedding(schedule);
  schedule.add("embedding_backward", -1, 2 * static_cast<int64_t>(ds.bytes()), m * h,
               [&ops = ops_, tokens = pass.tokens, ds, dtable](const Frame& f) {
                 ops.embedding_backward(f.stream, f[tokens], f[ds], dtable);
               });
  build.release({ds});
  sink.ready_embedding(schedule);
}

void Decoder::idle(Schedule& schedule, ParamSource& params, GradSink* sink) const {
  params.acquire_embedding(schedule);
  params.release_embedding(schedule);
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
    params.acquire(schedule, layer);
    params.release(schedule, layer);
  }
  params.acquire_head(schedule);
  if (sink) sink->head(schedule);
  params.release_head(schedule);
  if (!sink) return;
  sink->ready_head(schedule);
  for (int layer = config_.num_hidden_layers - 1; layer >= 0; --layer) {
    params.acquire(schedule, layer);
    sink->layer(schedule, layer);
    params.release(schedule, layer);
    sink->ready(schedule, layer);
  }
  sink->embedding(schedule);
  sink->ready_embedding(schedule);
}

Slot Decoder::logits(Schedule& schedule, ParamSource& params, Slot hidden, Slot index) const {
  Builder build{schedule, ops_, config_};
  const int64_t r = index.shape[0];
  const Weight head = params.acquire_head(schedule).weight;
  const Slot x = build.rows(r, config_.hidden_size);
  schedule.add(
      "gather_rows", -1, 2 * static_cast<int64_t>(x.bytes()), 0,
      [&ops = ops_, hidden, index, x](const Frame& f) { ops.gather_rows(f.stream, f[hidden], f[index], f[x]); });
  const Slot logits = schedule.slot(DType::f32, {r, config_.vocab_size});
  build.linear(-1, x, head, Tensor{}, logits);
  schedule.release(x);
  params.release_head(schedule);
  return logits;
}

}  // namespace tokenring
