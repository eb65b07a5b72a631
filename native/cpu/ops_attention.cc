// Attention, forward and backward: of packed documents on themselves, and of some queries on some keys.
//
// Work is cut into (block of queries, kv head); every row walks the tiles of keys in ascending order, so the cut never
// shows in the result. Keys are transposed tile by tile into the thread's scratch: memory is linear in the length.
#include <algorithm>
#include <cstring>
#include <memory>

#include "core/check.h"
#include "cpu/attention_plan.h"
#include "cpu/heads.h"
#include "cpu/ops.h"
#include "cpu/stream.h"

namespace tokenring::cpu {
namespace {

// Lanes outside [lo, hi) are set to 0: they are masked later, but nothing should compute on what memory held before.
void transpose_tile(const Kernels& kernels, const float* from, int64_t ld, int head_dim, int lo, int hi, float* to) {
  if (lo > 0 || hi < kTile) std::fill_n(to, head_dim * kTile, 0.0f);
  kernels.transpose(hi - lo, head_dim, from, ld, to + lo, kTile);
}

// Rows that lie `ld` apart, close together.
void copy_tile(const float* from, int64_t ld, int rows, int head_dim, float* to) {
  for (int j = 0; j < rows; ++j)
    std::memcpy(to + j * head_dim, from + j * ld, static_cast<size_t>(head_dim) * sizeof(float));
}

// Scratch of one attending thread: a tile's keys and values transposed, and one of both as rows.
struct Scratch {
  Scratch(int heads, int head_dim)
      : tile(static_cast<size_t>(head_dim) * kTile), acc_size(static_cast<size_t>(heads) * kQueryBlock * head_dim) {
    const size_t states = static_cast<size_t>(heads) * kQueryBlock * sizeof(SoftmaxState) / sizeof(float);
    keys = scratch(3 * tile + acc_size + 2 * kQueryBlock * (kTile + head_dim) + states);
    values = keys + tile;
    rows = values + tile;
    acc = rows + tile;
    work = acc + acc_size;
    state = reinterpret_cast<SoftmaxState*>(work + 2 * kQueryBlock * (kTile + head_dim));
  }
  size_t tile, acc_size;
  float *keys, *values, *rows, *acc, *work;
  SoftmaxState* state;
};

// Nanoseconds that one block of queries spends on one tile, for one head; only to decide what to share.
double tile_nanoseconds(int head_dim) { return 60.0 * head_dim; }

// The parts of a packed qkv.
struct Parts {
  Parts(const Heads& h, const Tensor& qkv)
      : q{qkv.data, DType::f32, qkv.shape[0], h.ld()},
        k{qkv.f32() + h.k(0), DType::f32, qkv.shape[0], h.ld()},
        v{qkv.f32() + h.v(0), DType::f32, qkv.shape[0], h.ld()} {}
  HeadRows q, k, v;
};

void check_rows(const char* op, const char* name, const HeadRows& x, int64_t rows, int64_t width) {
  require(x.dtype == DType::f32 && x.rows == rows && x.stride >= width && (x.data || rows == 0), op, ": ", name, " is ",
          name_of(x.dtype), " of ", x.rows, " rows, ", x.stride, " elements apart", x.data ? "" : ", without memory",
          "; must be f32 of ", rows, " rows, at least ", width, " apart");
}

Heads check_parts(const char* op, const AttentionHeads& heads, const HeadRows& q, const HeadRows& k,
                  const HeadRows& v) {
  const Heads h = check_heads(op, heads.heads, heads.kv_heads, heads.head_dim);
  check_rows(op, "q", q, q.rows, h.width());
  check_rows(op, "k", k, k.rows, h.kv_width());
  check_rows(op, "v", v, k.rows, h.kv_width());
  return h;
}

}  // namespace

struct CpuOps::Attention {
  AttentionPlan plan;
  Heads h;
  float scale;
  HeadRows q, k, v;
};

// All in addition to what dq, dk, dv hold.
struct CpuOps::AttentionGradient {
  const float *dout, *lse, *delta;
  HeadRows dq, dk, dv;
};

size_t CpuOps::attention_workspace(const std::vector<AttentionTile>&, int64_t rows, int heads, int kv_heads,
                                   int head_dim) const {
  check_heads("attention_workspace", heads, kv_heads, head_dim);
  require(rows >= 0, "attention_workspace: rows is ", rows);
  return static_cast<size_t>(rows) * heads * sizeof(float);  // delta of the backward pass
}

void CpuOps::attention_forward(Stream& stream, Tensor qkv, const std::vector<AttentionTile>& tiles, int heads,
                               int kv_heads, int head_dim, float scale, Tensor out, Tensor lse,
                               Tensor workspace) const {
  const Heads h = check_qkv("attention_forward", qkv, heads, kv_heads, head_dim);
  const int64_t m = qkv.shape[0];
  check("attention_forward", "out", out, DType::f32, {m, h.width()});
  check("attention_forward", "lse", lse, DType::f32, {m, heads});
  check_bytes("attention_forward", "workspace", workspace, attention_workspace(tiles, m, heads, kv_heads, head_dim));
  const Parts at(h, qkv);
  auto work = std::make_shared<const Attention>(
      Attention{plan_attention("attention_forward", tiles, m, m), h, scale, at.q, at.k, at.v});
  cpu_stream(stream).enqueue([=, this] { attend(*work, false, out.f32(), lse.f32()); });
}

void CpuOps::attention_block_forward(Stream& stream, AttentionHeads heads, HeadRows q, HeadRows k, HeadRows v,
                                     const std::vector<AttentionTile>& tiles, bool merge, Tensor out,
                                     Tensor lse) const {
  const char* op = "attention_block_forward";
  const Heads h = check_parts(op, heads, q, k, v);
  check(op, "out", out, DType::f32, {q.rows, h.width()});
  check(op, "lse", lse, DType::f32, {q.rows, h.heads});
  auto work =
      std::make_shared<const Attention>(Attention{plan_attention(op, tiles, q.rows, k.rows), h, heads.scale, q, k, v});
  cpu_stream(stream).enqueue([=, this] { attend(*work, merge, out.f32(), lse.f32()); });
}

void CpuOps::attend(const Attention& work, bool merge, float* out, float* lse) const {
  const auto& [plan, h, scale, q, k, v] = work;
  const std::vector<QueryBlock> blocks = plan.blocks();
  const int head_dim = h.head_dim;
  const int64_t tasks = static_cast<int64_t>(blocks.size()) * h.kv_heads;
  const auto run = [&](int64_t begin, int64_t end) {
    const Scratch s(h.per_kv(), head_dim);
    for (int64_t task = begin; task < end; ++task) {
      const QueryBlock& block = blocks[task / h.kv_heads];
      const int64_t kv = task % h.kv_heads, first_head = kv * h.per_kv();
      const int64_t last = block.position + block.tokens - 1;
      float* to = out + block.row * h.width() + h.q(kv);
      float* to_lse = lse + block.row * h.heads + first_head;
      if (merge)
        k_.attend_resume(h.per_kv(), block.tokens, head_dim, to, h.width(), to_lse, h.heads, s.state, s.acc);
      else
        k_.attend_start(h.per_kv(), block.tokens, head_dim, s.state, s.acc);
      for (int key : plan.queries[block.query].keys) {
        const KeySpan& span = plan.keys[key];
        for (int i = 0; i < span.tiles(); ++i) {
          const KeyTile t = span.tile(i);
          if (t.position + t.lo > last) break;
          transpose_tile(k_, k.f32() + t.row * k.stride + kv * head_dim, k.stride, head_dim, t.lo, t.hi, s.keys);
          copy_tile(v.f32() + t.row * v.stride + kv * head_dim, v.stride, t.hi - t.lo, head_dim, s.rows);
          k_.attend({.tokens = block.tokens,
                     .heads = h.per_kv(),
                     .head_dim = head_dim,
                     .q = q.f32() + block.row * q.stride + h.q(kv),
                     .ldq = q.stride,
                     .keys = s.keys,
                     .v = s.rows,
                     .ldv = head_dim,
                     .lo = t.lo,
                     .hi = t.hi,
                     .visible = block.position - t.position + 1,
                     .scale = scale,
                     .state = s.state,
                     .acc = s.acc,
                     .scratch = s.work});
        }
      }
      k_.attend_finish(h.per_kv(), block.tokens, head_dim, s.state, s.acc, to, h.width(), to_lse, h.heads);
    }
  };
  const double nanoseconds = static_cast<double>(plan.total_cost) * h.heads * tile_nanoseconds(head_dim);
  pool_.run(tasks, nanoseconds < kChunkNanoseconds ? tasks : 1, run);
}

void CpuOps::attention_backward(Stream& stream, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                                const std::vector<AttentionTile>& tiles, int heads, int kv_heads, int head_dim,
                                float scale, Tensor dqkv, Tensor workspace) const {
  const Heads h = check_qkv("attention_backward", qkv, heads, kv_heads, head_dim);
  const int64_t m = qkv.shape[0], width = h.width();
  check("attention_backward", "dout", dout, DType::f32, {m, width});
  check("attention_backward", "out", out, DType::f32, {m, width});
  check("attention_backward", "lse", lse, DType::f32, {m, heads});
  check("attention_backward", "dqkv", dqkv, DType::f32, {m, h.ld()});
  check_bytes("attention_backward", "workspace", workspace, attention_workspace(tiles, m, heads, kv_heads, head_dim));
  const Parts at(h, qkv), to(h, dqkv);
  auto work = std::make_shared<const Attention>(
      Attention{plan_attention("attention_backward", tiles, m, m), h, scale, at.q, at.k, at.v});
  float* delta = static_cast<float*>(workspace.data);
  const AttentionGradient gradient{dout.f32(), lse.f32(), delta, to.q, to.k, to.v};
  cpu_stream(stream).enqueue([=, this] {
    share(m, static_cast<double>(width) * 0.3, [&](int64_t begin, int64_t end) {
      k_.attend_delta(end - begin, heads, head_dim, dout.f32() + begin * width, out.f32() + begin * width,
                      delta + begin * heads);
      std::fill(dqkv.f32() + begin * h.ld(), dqkv.f32() + end * h.ld(), 0.0f);
    });
    attend_backward(*work, gradient);
  });
}

void CpuOps::attention_delta(Stream& stream, Tensor dout, Tensor out, int heads, Tensor delta) const {
  check_matrix("attention_delta", "dout", dout);
  const int64_t m = dout.shape[0], width = dout.shape[1];
  require(heads > 0 && width % heads == 0 && width / heads % 16 == 0, "attention_delta: a row of ", width,
          " does not divide into ", heads, " heads of a multiple of 16");
  check("attention_delta", "out", out, DType::f32, {m, width});
  check("attention_delta", "delta", delta, DType::f32, {m, heads});
  cpu_stream(stream).enqueue([=, this] {
    share(m, static_cast<double>(width) * 0.2, [&](int64_t begin, int64_t end) {
      k_.attend_delta(end - begin, heads, static_cast<int>(width / heads), dout.f32() + begin * width,
                      out.f32() + begin * width, delta.f32() + begin * heads);
    });
  });
}

void CpuOps::copy_rows(Stream& stream, HeadRows from, HeadRows to, int64_t width, bool add) const {
  check_rows("copy_rows", "from", from, from.rows, width);
  check_rows("copy_rows", "to", to, from.rows, width);
  cpu_stream(stream).enqueue([=, this] {
    share(from.rows, static_cast<double>(width) * 0.2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* x = from.f32() + i * from.stride;
        float* y = to.f32() + i * to.stride;
        if (!add) {
          std::memcpy(y, x, static_cast<size_t>(width) * sizeof(float));
          continue;
        }
        for (int64_t j = 0; j < width; ++j) y[j] += x[j];
      }
    });
  });
}

void CpuOps::attention_block_backward(Stream& stream, AttentionHeads heads, Tensor dout, HeadRows q, HeadRows k,
                                      HeadRows v, Tensor lse, Tensor delta, const std::vector<AttentionTile>& tiles,
                                      HeadRows dq, HeadRows dk, HeadRows dv) const {
  const char* op = "attention_block_backward";
  const Heads h = check_parts(op, heads, q, k, v);
  check(op, "dout", dout, DType::f32, {q.rows, h.width()});
  check(op, "lse", lse, DType::f32, {q.rows, h.heads});
  check(op, "delta", delta, DType::f32, {q.rows, h.heads});
  check_rows(op, "dq", dq, q.rows, h.width());
  check_rows(op, "dk", dk, k.rows, h.kv_width());
  check_rows(op, "dv", dv, k.rows, h.kv_width());
  require(dq.stride == q.stride && dk.stride == dv.stride, op, ": dq must lie like q, and dk like dv");
  auto work =
      std::make_shared<const Attention>(Attention{plan_attention(op, tiles, q.rows, k.rows), h, heads.scale, q, k, v});
  const AttentionGradient gradient{dout.f32(), lse.f32(), delta.f32(), dq, dk, dv};
  cpu_stream(stream).enqueue([=, this] { attend_backward(*work, gradient); });
}

void CpuOps::attend_backward(const Attention& work, const AttentionGradient& g) const {
  const auto& [plan, h, scale, q, k, v] = work;
  const int heads = h.heads, kv_heads = h.kv_heads, head_dim = h.head_dim;
  const int64_t width = h.width();
  // One tile of keys, already transposed in `s`, against the blocks of one query span.
  const auto visit = [&](const Scratch& s, const KeyTile& t, int64_t kv, int64_t row, int64_t position, int tokens,
                         bool want_dq, bool want_dkv) {
    const int64_t first_head = kv * h.per_kv(), keys = t.row * g.dk.stride + kv * head_dim;
    k_.attend_backward({.tokens = tokens,
                        .heads = h.per_kv(),
                        .head_dim = head_dim,
                        .q = q.f32() + row * q.stride + h.q(kv),
                        .ldq = q.stride,
                        .dout = g.dout + row * width + h.q(kv),
                        .ldo = width,
                        .lse = g.lse + row * heads + first_head,
                        .delta = g.delta + row * heads + first_head,
                        .lds = heads,
                        .keys = s.keys,
                        .values = s.values,
                        .k = s.rows,
                        .ldk = head_dim,
                        .lo = t.lo,
                        .hi = t.hi,
                        .visible = position - t.position + 1,
                        .scale = scale,
                        .dq = want_dq ? g.dq.f32() + row * g.dq.stride + h.q(kv) : nullptr,
                        .dk = want_dkv ? g.dk.f32() + keys : nullptr,
                        .dv = want_dkv ? g.dv.f32() + keys : nullptr,
                        .lddk = g.dk.stride,
                        .scratch = s.work});
  };
  const auto load_tile = [&](const Scratch& s, const KeyTile& t, int64_t kv) {
    const float* key = k.f32() + t.row * k.stride + kv * head_dim;
    transpose_tile(k_, key, k.stride, head_dim, t.lo, t.hi, s.keys);
    transpose_tile(k_, v.f32() + t.row * v.stride + kv * head_dim, v.stride, head_dim, t.lo, t.hi, s.values);
    copy_tile(key, k.stride, t.hi - t.lo, head_dim, s.rows);
  };
  // All queries against one tile. dk and dv sum the queries in ascending order, dq the tiles in ascending order:
  // both ways below keep these two orders, so they give the same bits.
  const auto visit_tile = [&](const KeySpan& span, int index, int64_t kv, bool want_dq) {
    const Scratch s(h.per_kv(), head_dim);
    const KeyTile t = span.tile(index);
    load_tile(s, t, kv);
    for (int at : span.queries) {
      const Span& query = plan.queries[at].span;
      for (int begin = 0; begin < query.rows; begin += kQueryBlock) {
        const int tokens = std::min(kQueryBlock, query.rows - begin);
        if (query.position + begin + tokens <= t.position + t.lo) continue;
        visit(s, t, kv, query.row + begin, int64_t{query.position} + begin, tokens, want_dq, true);
      }
    }
  };

  // One pass (5 products a tile) where documents and kv heads alone keep the threads busy, else two passes
  // (7 products) that cut documents.
  const std::vector<QueryBlock> blocks = plan.blocks();
  std::vector<int64_t> cost(plan.queries.size(), 0);
  for (const QueryBlock& block : blocks) cost[block.query] += block.cost;
  const int64_t largest = cost.empty() ? 0 : *std::max_element(cost.begin(), cost.end());
  const double each = static_cast<double>(plan.total_cost) * kv_heads / pool_.free_threads();
  const double nanoseconds = 2.5 * static_cast<double>(plan.total_cost) * heads * tile_nanoseconds(head_dim);
  const bool alone = nanoseconds < kChunkNanoseconds;
  if (plan.paired && (alone || static_cast<double>(largest) <= 1.4 * each)) {
    std::vector<int> order(plan.keys.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return cost[plan.keys[a].queries[0]] > cost[plan.keys[b].queries[0]]; });
    const int64_t tasks = static_cast<int64_t>(order.size()) * kv_heads;
    pool_.run(tasks, alone ? tasks : 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const KeySpan& span = plan.keys[order[task / kv_heads]];
        for (int i = 0; i < span.tiles(); ++i) visit_tile(span, i, task % kv_heads, true);
      }
    });
    return;
  }
  struct Tile {
    int span, index;
  };
  std::vector<Tile> key_tiles;
  for (size_t i = 0; i < plan.keys.size(); ++i)
    for (int t = 0; t < plan.keys[i].tiles(); ++t) key_tiles.push_back({static_cast<int>(i), t});
  pool_.run(static_cast<int64_t>(key_tiles.size()) * kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Tile& tile = key_tiles[task / kv_heads];
      visit_tile(plan.keys[tile.span], tile.index, task % kv_heads, false);
    }
  });
  pool_.run(static_cast<int64_t>(blocks.size()) * kv_heads, 1, [&](int64_t begin, int64_t end) {
    const Scratch s(h.per_kv(), head_dim);
    for (int64_t task = begin; task < end; ++task) {
      const QueryBlock& block = blocks[task / kv_heads];
      const int64_t kv = task % kv_heads;
      for (int key : plan.queries[block.query].keys) {
        const KeySpan& span = plan.keys[key];
        for (int i = 0; i < span.tiles(); ++i) {
          const KeyTile t = span.tile(i);
          if (t.position + t.lo >= block.position + block.tokens) break;
          load_tile(s, t, kv);
          visit(s, t, kv, block.row, block.position, block.tokens, true, false);
        }
      }
    }
  });
}

}  // namespace tokenring::cpu
