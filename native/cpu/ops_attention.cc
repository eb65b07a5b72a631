// Attention over packed documents, forward and backward.
//
// Work is cut into (block of queries, kv head); every row walks the tiles of keys in ascending order, so the cut never
// shows in the result. Keys are transposed tile by tile into the thread's scratch: memory is linear in the length.
#include <algorithm>
#include <cstring>
#include <memory>

#include "cpu/attention_plan.h"
#include "cpu/check.h"
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
void copy_rows(const float* from, int64_t ld, int rows, int head_dim, float* to) {
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

}  // namespace

size_t CpuOps::attention_workspace(int64_t rows, int heads, int kv_heads, int head_dim) const {
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
  check_bytes("attention_forward", "workspace", workspace, attention_workspace(m, heads, kv_heads, head_dim));
  auto plan = std::make_shared<const AttentionPlan>(plan_attention("attention_forward", tiles, m));
  cpu_stream(stream).enqueue([=, this] {
    const std::vector<QueryBlock> blocks = plan->blocks();
    const int64_t tasks = static_cast<int64_t>(blocks.size()) * h.kv_heads;
    const auto attend = [&](int64_t begin, int64_t end) {
      const Scratch s(h.per_kv(), head_dim);
      for (int64_t task = begin; task < end; ++task) {
        const QueryBlock& block = blocks[task / h.kv_heads];
        const int kv = static_cast<int>(task % h.kv_heads);
        const int64_t last = block.position + block.tokens - 1;
        k_.attend_start(h.per_kv(), block.tokens, head_dim, s.state, s.acc);
        for (int key : plan->queries[block.query].keys) {
          const KeySpan& span = plan->keys[key];
          for (int i = 0; i < span.tiles(); ++i) {
            const KeyTile t = span.tile(i);
            if (t.position + t.lo > last) break;
            const float* row = qkv.f32() + t.row * h.ld();
            transpose_tile(k_, row + h.k(kv), h.ld(), head_dim, t.lo, t.hi, s.keys);
            copy_rows(row + h.v(kv), h.ld(), t.hi - t.lo, head_dim, s.rows);
            k_.attend({.tokens = block.tokens,
                       .heads = h.per_kv(),
                       .head_dim = head_dim,
                       .q = qkv.f32() + block.row * h.ld() + h.q(kv),
                       .ldq = h.ld(),
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
        const int64_t first_head = static_cast<int64_t>(kv) * h.per_kv();
        k_.attend_finish(h.per_kv(), block.tokens, head_dim, s.state, s.acc,
                         out.f32() + block.row * heads * head_dim + first_head * head_dim,
                         static_cast<int64_t>(heads) * head_dim, lse.f32() + block.row * heads + first_head, heads);
      }
    };
    const double nanoseconds = static_cast<double>(plan->total_cost) * heads * tile_nanoseconds(head_dim);
    pool_.run(tasks, nanoseconds < kChunkNanoseconds ? tasks : 1, attend);
  });
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
  check_bytes("attention_backward", "workspace", workspace, attention_workspace(m, heads, kv_heads, head_dim));
  auto plan = std::make_shared<const AttentionPlan>(plan_attention("attention_backward", tiles, m));
  cpu_stream(stream).enqueue([=, this] {
    float* delta = static_cast<float*>(workspace.data);
    share(m, static_cast<double>(width) * 0.3, [&](int64_t begin, int64_t end) {
      k_.attend_delta(end - begin, heads, head_dim, dout.f32() + begin * width, out.f32() + begin * width,
                      delta + begin * heads);
      std::fill(dqkv.f32() + begin * h.ld(), dqkv.f32() + end * h.ld(), 0.0f);
    });

    // One tile of keys, already transposed in `s`, against the blocks of one query span.
    const auto visit = [&](const Scratch& s, const KeyTile& t, int kv, int64_t row, int64_t position, int tokens,
                           bool want_dq, bool want_dkv) {
      const int64_t keys = t.row * h.ld(), queries = row * h.ld() + h.q(kv), first_head = int64_t{kv} * h.per_kv();
      k_.attend_backward({.tokens = tokens,
                          .heads = h.per_kv(),
                          .head_dim = head_dim,
                          .q = qkv.f32() + queries,
                          .ldq = h.ld(),
                          .dout = dout.f32() + row * width + first_head * head_dim,
                          .ldo = width,
                          .lse = lse.f32() + row * heads + first_head,
                          .delta = delta + row * heads + first_head,
                          .lds = heads,
                          .keys = s.keys,
                          .values = s.values,
                          .k = s.rows,
                          .ldk = head_dim,
                          .lo = t.lo,
                          .hi = t.hi,
                          .visible = position - t.position + 1,
                          .scale = scale,
                          .dq = want_dq ? dqkv.f32() + queries : nullptr,
                          .dk = want_dkv ? dqkv.f32() + keys + h.k(kv) : nullptr,
                          .dv = want_dkv ? dqkv.f32() + keys + h.v(kv) : nullptr,
                          .lddk = h.ld(),
                          .scratch = s.work});
    };
    const auto load_tile = [&](const Scratch& s, const KeyTile& t, int kv) {
      const float* row = qkv.f32() + t.row * h.ld();
      transpose_tile(k_, row + h.k(kv), h.ld(), head_dim, t.lo, t.hi, s.keys);
      transpose_tile(k_, row + h.v(kv), h.ld(), head_dim, t.lo, t.hi, s.values);
      copy_rows(row + h.k(kv), h.ld(), t.hi - t.lo, head_dim, s.rows);
    };
    // All queries against one tile. dk and dv sum the queries in ascending order, dq the tiles in ascending order:
    // both ways below keep these two orders, so they give the same bits.
    const auto visit_tile = [&](const KeySpan& span, int index, int kv, bool want_dq) {
      const Scratch s(h.per_kv(), head_dim);
      const KeyTile t = span.tile(index);
      load_tile(s, t, kv);
      for (int q : span.queries) {
        const Span& query = plan->queries[q].span;
        for (int at = 0; at < query.rows; at += kQueryBlock) {
          const int tokens = std::min(kQueryBlock, query.rows - at);
          if (query.position + at + tokens <= t.position + t.lo) continue;
          visit(s, t, kv, query.row + at, int64_t{query.position} + at, tokens, want_dq, true);
        }
      }
    };

    // One pass (5 products a tile) where documents and kv heads alone keep the threads busy, else two passes
    // (7 products) that cut documents.
    const std::vector<QueryBlock> blocks = plan->blocks();
    std::vector<int64_t> cost(plan->queries.size(), 0);
    for (const QueryBlock& block : blocks) cost[block.query] += block.cost;
    const int64_t largest = cost.empty() ? 0 : *std::max_element(cost.begin(), cost.end());
    const double each = static_cast<double>(plan->total_cost) * kv_heads / pool_.threads();
    const double nanoseconds = 2.5 * static_cast<double>(plan->total_cost) * heads * tile_nanoseconds(head_dim);
    const bool alone = nanoseconds < kChunkNanoseconds;
    if (plan->paired && (alone || static_cast<double>(largest) <= 1.4 * each)) {
      std::vector<int> order(plan->keys.size());
      for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
      std::stable_sort(order.begin(), order.end(),
                       [&](int a, int b) { return cost[plan->keys[a].queries[0]] > cost[plan->keys[b].queries[0]]; });
      const int64_t tasks = static_cast<int64_t>(order.size()) * kv_heads;
      pool_.run(tasks, alone ? tasks : 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const KeySpan& span = plan->keys[order[task / kv_heads]];
          for (int i = 0; i < span.tiles(); ++i) visit_tile(span, i, static_cast<int>(task % kv_heads), true);
        }
      });
      return;
    }
    struct Tile {
      int span, index;
    };
    std::vector<Tile> key_tiles;
    for (size_t i = 0; i < plan->keys.size(); ++i)
      for (int t = 0; t < plan->keys[i].tiles(); ++t) key_tiles.push_back({static_cast<int>(i), t});
    pool_.run(static_cast<int64_t>(key_tiles.size()) * kv_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const Tile& tile = key_tiles[task / kv_heads];
        visit_tile(plan->keys[tile.span], tile.index, static_cast<int>(task % kv_heads), false);
      }
    });
    pool_.run(static_cast<int64_t>(blocks.size()) * kv_heads, 1, [&](int64_t begin, int64_t end) {
      const Scratch s(h.per_kv(), head_dim);
      for (int64_t task = begin; task < end; ++task) {
        const QueryBlock& block = blocks[task / kv_heads];
        const int kv = static_cast<int>(task % kv_heads);
        for (int key : plan->queries[block.query].keys) {
          const KeySpan& span = plan->keys[key];
          for (int i = 0; i < span.tiles(); ++i) {
            const KeyTile t = span.tile(i);
            if (t.position + t.lo >= block.position + block.tokens) break;
            load_tile(s, t, kv);
            visit(s, t, kv, block.row, block.position, block.tokens, true, false);
          }
        }
      }
    });
  });
}

}  // namespace tokenring::cpu
