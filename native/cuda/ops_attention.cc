// Attention: the Hopper kernels for heads of 64 and 128, the plain ones for all others, for parts in float32 and for
// keys in pages.
#include <algorithm>
#include <array>
#include <bit>

#include "core/check.h"
#include "cuda/ops.h"
#include "cuda/stream.h"

namespace tokenring::cuda {

using Table = DeviceStream::Table;
using Room = DeviceStream::Room;

namespace {

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

bool for_hopper(int head_dim) { return head_dim == 64 || head_dim == 128; }

// A row of qkv: all query heads, all key heads, all value heads.
struct Heads {
  int heads, kv_heads, head_dim;
  Heads(const char* op, int heads, int kv_heads, int head_dim) : heads(heads), kv_heads(kv_heads), head_dim(head_dim) {
    require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, op, ": ", heads,
            " heads must be a positive multiple of ", kv_heads, " kv heads");
    require(head_dim > 0 && head_dim % 8 == 0 && head_dim <= 256, op, ": head_dim is ", head_dim,
            "; it must be a multiple of 8 up to 256");
  }
  int64_t width() const { return int64_t{heads} * head_dim; }
  int64_t kv_width() const { return int64_t{kv_heads} * head_dim; }
  int64_t ld() const { return width() + 2 * kv_width(); }
};

struct Qkv {
  Bf16 *q, *k, *v;
  Qkv(const char* op, const char* name, const Heads& h, const Tensor& qkv) {
    check(op, name, qkv, DType::bf16, {qkv.rows(), h.ld()});
    q = static_cast<Bf16*>(qkv.data);
    k = q + h.width();
    v = k + h.kv_width();
  }
};

PlainHeads plain(const Heads& h, float scale, const Qkv& at) {
  return {h.heads, h.kv_heads, h.head_dim, scale, false, at.q, at.k, at.v, h.ld(), h.ld()};
}

// Where the parts of the backward pass's workspace begin.
struct Workspace {
  size_t statistics = 0, dk = 0, dv = 0, bytes = 0;
  Workspace(const Kernels& k, const Heads& h, int64_t rows, const BackwardPlan& plan, bool deterministic) {
    if (!for_hopper(h.head_dim)) {
      bytes = static_cast<size_t>(rows * h.heads) * sizeof(float);  // delta
      return;
    }
    const size_t gradient = aligned(static_cast<size_t>(rows * h.kv_width()) * sizeof(float));
    dk = aligned(
        k.attention_backward_workspace(static_cast<int>(plan.queries.size()), h.heads, h.head_dim, deterministic));
    dv = dk + gradient;
    bytes = dv + gradient;
  }
};

}  // namespace

struct CudaOps::Lists {
  const QueryTile* tiles;
  const Span* keys;
  int count;
};

CudaOps::Lists CudaOps::forward_lists(DeviceStream& on, const std::vector<AttentionTile>& tiles, int rows_of_tile,
                                      int64_t rows, int64_t key_rows, bool for_dq) const {
  const ForwardPlan plan = plan_forward(tiles, rows_of_tile, true, rows, key_rows);
  return {on.table(for_dq ? Table::dq_tiles : Table::query_tiles, plan.tiles),
          on.table(for_dq ? Table::dq_keys : Table::keys, plan.keys), static_cast<int>(plan.tiles.size())};
}

size_t CudaOps::attention_workspace(const std::vector<AttentionTile>& tiles, int64_t rows, int heads, int kv_heads,
                                    int head_dim) const {
  const Heads h("attention_workspace", heads, kv_heads, head_dim);
  require(rows >= 0, "attention_workspace: rows is ", rows);
  BackwardPlan plan;
  if (for_hopper(head_dim))
    plan =
        plan_backward(tiles, k_.attention_backward_queries(head_dim), k_.attention_backward_keys(), true, rows, rows);
  return Workspace(k_, h, rows, plan, deterministic_).bytes;
}

void CudaOps::attention_forward(Stream& stream, Tensor qkv, const std::vector<AttentionTile>& tiles, int heads,
                                int kv_heads, int head_dim, float scale, Tensor out, Tensor lse, Tensor) const {
  const char* op = "attention_forward";
  const Heads h(op, heads, kv_heads, head_dim);
  const Qkv at(op, "qkv", h, qkv);
  const int64_t m = qkv.rows();
  check(op, "out", out, DType::bf16, {m, h.width()});
  check(op, "lse", lse, DType::f32, {m, heads});
  if (m == 0) return;
  DeviceStream& on = device_stream(stream);
  auto* to = static_cast<Bf16*>(out.data);
  if (!for_hopper(head_dim)) {
    const Lists lists = forward_lists(on, tiles, kPlainRows, m, m, false);
    k_.attention_plain_forward(
        on.raw(), {plain(h, scale, at), lists.tiles, lists.count, lists.keys, to, nullptr, false, lse.f32()});
  } else {
    const Lists lists = forward_lists(on, tiles, k_.attention_forward_rows(head_dim), m, m, false);
    auto* counters = static_cast<int32_t*>(on.room(Room::counters, 2 * sizeof(int32_t)));
    k_.attention_forward(on.raw(), encode_,
                         {{at.q, m, h.ld(), heads, head_dim},
                          {at.k, m, h.ld(), kv_heads, head_dim},
                          {at.v, m, h.ld(), kv_heads, head_dim},
                          lists.tiles,
                          lists.count,
                          lists.keys,
                          true,
                          scale,
                          to,
                          lse.f32(),
                          nullptr,
                          counters,
                          multiprocessors_});
  }
  launched(op);
}

void CudaOps::attention_backward(Stream& stream, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                                 const std::vector<AttentionTile>& tiles, int heads, int kv_heads, int head_dim,
                                 float scale, Tensor dqkv, Tensor workspace) const {
  const char* op = "attention_backward";
  const Heads h(op, heads, kv_heads, head_dim);
  const Qkv at(op, "qkv", h, qkv), to(op, "dqkv", h, dqkv);
  const int64_t m = qkv.rows();
  check(op, "dqkv", dqkv, DType::bf16, {m, h.ld()});
  for (const auto& [name, t] : {std::pair{"dout", dout}, {"out", out}}) check(op, name, t, DType::bf16, {m, h.width()});
  check(op, "lse", lse, DType::f32, {m, heads});
  DeviceStream& on = device_stream(stream);
  clear(on, dqkv.data, dqkv.bytes());  // rows that no tile names
  if (m == 0) return;
  const bool hopper = for_hopper(head_dim);
  const int queries = hopper ? k_.attention_backward_queries(head_dim) : kPlainRows;
  const BackwardPlan plan =
      plan_backward(tiles, queries, hopper ? k_.attention_backward_keys() : kPlainRows, true, m, m);
  const Workspace room(k_, h, m, plan, deterministic_);
  check_bytes(op, "workspace", workspace, room.bytes);
  auto* memory = static_cast<std::byte*>(workspace.data);
  const auto *upstream = static_cast<const Bf16*>(dout.data), *forward = static_cast<const Bf16*>(out.data);
  const KeyTile* key_tiles = on.table(Table::key_tiles, plan.tiles);
  const QueryRange* ranges = on.table(Table::ranges, plan.ranges);
  const int key_count = static_cast<int>(plan.tiles.size());
  if (!hopper) {
    auto* delta = static_cast<float*>(workspace.data);
    k_.attention_delta(on.raw(), m, heads, head_dim, upstream, forward, delta);
    const Lists lists = forward_lists(on, tiles, kPlainRows, m, m, true);
    k_.attention_plain_backward(on.raw(), {plain(h, scale, at), upstream, lse.f32(), delta, lists.tiles, lists.count,
                                           lists.keys, key_tiles, key_count, ranges, to.q, to.k, to.v, h.ld(), false});
  } else {
    auto *dk = reinterpret_cast<float*>(memory + room.dk), *dv = reinterpret_cast<float*>(memory + room.dv);
    const size_t gradient = static_cast<size_t>(m * h.kv_width()) * sizeof(float);
    clear(on, dk, gradient);
    clear(on, dv, gradient);
    const HeadTensor q{at.q, m, h.ld(), heads, head_dim}, k{at.k, m, h.ld(), kv_heads, head_dim},
        v{at.v, m, h.ld(), kv_heads, head_dim}, d{upstream, m, h.width(), heads, head_dim};
    const AttentionBackward work{q,
                                 k,
                                 v,
                                 d,
                                 forward,
                                 lse.f32(),
                                 on.table(Table::queries, plan.queries),
                                 static_cast<int>(plan.queries.size()),
                                 key_tiles,
                                 key_count,
                                 ranges,
                                 true,
                                 scale,
                                 dk,
                                 dv,
                                 memory,
                                 deterministic_};
    k_.attention_backward_begin(on.raw(), work);
    k_.attention_backward(on.raw(), encode_, work);
    if (deterministic_) {
      const Lists lists = forward_lists(on, tiles, k_.attention_dq_rows(), m, m, true);
      k_.attention_dq(
          on.raw(), encode_,
          {q, k, v, d, forward, lse.f32(), lists.tiles, lists.count, lists.keys, true, scale, to.q, h.ld()});
    } else {
      k_.attention_backward_end(on.raw(), work, to.q, h.ld());
    }
    k_.round_rows(on.raw(), m, h.kv_width(), dk, to.k, h.ld());
    k_.round_rows(on.raw(), m, h.kv_width(), dv, to.v, h.ld());
  }
  launched(op);
}

// --- parts ---------------------------------------------------------------------------------------------------------

namespace {

// Blocks of a persistent kernel leave so many multiprocessors to the copies between ranks that run beside it.
constexpr int kLeftForCopies = 8;

// Of float32, or all of bf16.
struct Parts {
  Heads h;
  float scale;
  bool is_float;
  HeadRows q, k, v;

  Parts(const char* op, const AttentionHeads& of, const HeadRows& q, const HeadRows& k, const HeadRows& v)
      : h(op, of.heads, of.kv_heads, of.head_dim), scale(of.scale), is_float(q.dtype == DType::f32), q(q), k(k), v(v) {
    for (const HeadRows* part : {&q, &k, &v})
      require(
          part->dtype == (is_float ? DType::f32 : DType::bf16) && part->rows >= 0 && (part->data || part->rows == 0),
          op, ": q, k and v must be in memory, all f32 or all bf16");
    require(q.stride >= h.width() && k.stride >= h.kv_width() && k.stride == v.stride && k.rows == v.rows, op,
            ": rows of q, k and v are ", q.stride, ", ", k.stride, " and ", v.stride, " elements apart; k and v alike");
  }
  bool hopper() const { return !is_float && for_hopper(h.head_dim); }
  PlainHeads plain() const {
    return {h.heads, h.kv_heads, h.head_dim, scale, is_float, q.data, k.data, v.data, q.stride, k.stride};
  }
  HeadTensor queries() const { return {q.data, q.rows, q.stride, h.heads, h.head_dim}; }
  HeadTensor keys() const { return {k.data, k.rows, k.stride, h.kv_heads, h.head_dim}; }
  HeadTensor values() const { return {v.data, v.rows, v.stride, h.kv_heads, h.head_dim}; }
};

}  // namespace

void CudaOps::attention_block_forward(Stream& stream, AttentionHeads heads, HeadRows q, HeadRows k, HeadRows v,
                                      const std::vector<AttentionTile>& tiles, bool merge, Tensor out,
                                      Tensor lse) const {
  const char* op = "attention_block_forward";
  const Parts at(op, heads, q, k, v);
  const bool narrow = out.dtype == DType::bf16 && !at.is_float && !merge;
  check(op, "out", out, narrow ? DType::bf16 : DType::f32, {q.rows, at.h.width()});
  check(op, "lse", lse, DType::f32, {q.rows, heads.heads});
  if (q.rows == 0) return;
  DeviceStream& on = device_stream(stream);
  auto* to = narrow ? static_cast<Bf16*>(out.data) : nullptr;
  float* wide = narrow ? nullptr : out.f32();
  const int rows = at.hopper() ? k_.attention_forward_rows(heads.head_dim) : kPlainRows;
  const Lists lists = forward_lists(on, tiles, rows, q.rows, k.rows, false);
  if (at.hopper()) {
    auto* counters = static_cast<int32_t*>(on.room(Room::counters, 2 * sizeof(int32_t)));
    k_.attention_forward(on.raw(), encode_,
                         {at.queries(), at.keys(), at.values(), lists.tiles, lists.count, lists.keys, true, heads.scale,
                          to, lse.f32(), wide, counters, std::max(1, multiprocessors_ - kLeftForCopies), !merge});
  } else {
    k_.attention_plain_forward(on.raw(),
                               {at.plain(), lists.tiles, lists.count, lists.keys, to, wide, merge, lse.f32()});
  }
  launched(op);
}

void CudaOps::attention_delta(Stream& stream, Tensor dout, Tensor out, int heads, Tensor delta) const {
  const char* op = "attention_delta";
  require(heads > 0 && out.cols() % heads == 0, op, ": ", heads, " heads in rows of ", out.cols());
  require(out.dtype == DType::f32 || out.dtype == DType::bf16, op, ": out is ", name_of(out.dtype),
          "; it must be f32 or bf16");
  check(op, "out", out, out.dtype, {out.rows(), out.cols()});
  check(op, "dout", dout, out.dtype, {out.rows(), out.cols()});
  check(op, "delta", delta, DType::f32, {out.rows(), heads});
  const CudaStream raw = device_stream(stream).raw();
  const int head_dim = static_cast<int>(out.cols() / heads);
  if (out.dtype == DType::f32)
    k_.attention_delta_f32(raw, out.rows(), heads, head_dim, dout.f32(), out.f32(), delta.f32());
  else
    k_.attention_delta(raw, out.rows(), heads, head_dim, static_cast<const Bf16*>(dout.data),
                       static_cast<const Bf16*>(out.data), delta.f32());
  launched(op);
}

void CudaOps::attention_block_backward(Stream& stream, AttentionHeads heads, Tensor dout, HeadRows q, HeadRows k,
                                       HeadRows v, Tensor lse, Tensor delta, const std::vector<AttentionTile>& tiles,
                                       HeadRows dq, HeadRows dk, HeadRows dv) const {
  const char* op = "attention_block_backward";
  const Parts at(op, heads, q, k, v), to(op, heads, dq, dk, dv);
  require(to.is_float && dq.rows == q.rows && dk.rows == k.rows, op,
          ": gradients are f32, of as many rows as q, k and v");
  check(op, "dout", dout, q.dtype, {q.rows, at.h.width()});
  check(op, "lse", lse, DType::f32, {q.rows, heads.heads});
  check(op, "delta", delta, DType::f32, {q.rows, heads.heads});
  if (q.rows == 0 || k.rows == 0) return;
  DeviceStream& on = device_stream(stream);
  const bool hopper = at.hopper();
  const BackwardPlan plan = plan_backward(tiles, hopper ? k_.attention_backward_queries(heads.head_dim) : kPlainRows,
                                          hopper ? k_.attention_backward_keys() : kPlainRows, true, q.rows, k.rows);
  const KeyTile* key_tiles = on.table(Table::key_tiles, plan.tiles);
  const QueryRange* ranges = on.table(Table::ranges, plan.ranges);
  const int key_count = static_cast<int>(plan.tiles.size()), query_count = static_cast<int>(plan.queries.size());
  if (!hopper) {
    require(dk.stride == k.stride, op, ": rows of dk and dv are as far apart as those of k and v");
    const Lists lists = forward_lists(on, tiles, kPlainRows, q.rows, k.rows, true);
    k_.attention_plain_backward(
        on.raw(), {at.plain(), dout.data, lse.f32(), delta.f32(), lists.tiles, lists.count, lists.keys, key_tiles,
                   key_count, ranges, dq.data, dk.data, dv.data, dq.stride, true});
    return launched(op);
  }
  const HeadTensor upstream{dout.data, q.rows, at.h.width(), heads.heads, heads.head_dim};
  const AttentionBackward work{
      at.queries(),
      at.keys(),
      at.values(),
      upstream,
      nullptr,
      lse.f32(),
      on.table(Table::queries, plan.queries),
      query_count,
      key_tiles,
      key_count,
      ranges,
      true,
      heads.scale,
      dk.f32(),
      dv.f32(),
      on.room(Room::sums, k_.attention_backward_workspace(query_count, heads.heads, heads.head_dim, deterministic_)),
      deterministic_,
      delta.f32(),
      dk.stride};
  k_.attention_backward_begin(on.raw(), work);
  k_.attention_backward(on.raw(), encode_, work);
  if (deterministic_) {
    const Lists lists = forward_lists(on, tiles, k_.attention_dq_rows(), q.rows, k.rows, true);
    k_.attention_dq(on.raw(), encode_,
                    {work.q, work.k, work.v, upstream, nullptr, lse.f32(), lists.tiles, lists.count, lists.keys, true,
                     heads.scale, nullptr, dq.stride, delta.f32(), dq.f32()});
  } else {
    k_.attention_backward_end_f32(on.raw(), work, dq.f32(), dq.stride);
  }
  launched(op);
}

// --- pages ---------------------------------------------------------------------------------------------------------

namespace {

// Where the rows of sequences lie, on the device.
struct Placed {
  const PagedRow* rows;
  int count;
  const int32_t* pages;
};

Placed place(const char* op, DeviceStream& on, const std::vector<PagedSequence>& sequences, int64_t rows) {
  std::vector<PagedRow> list;
  std::vector<int32_t> pages;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const Span& q = sequences[s].q;
    const bool padding = q.position == kPadding;
    require(q.row >= 0 && q.rows >= 0 && (q.position >= 0 || padding) && int64_t{q.row} + q.rows <= rows, op,
            ": sequence ", s, " {row ", q.row, ", rows ", q.rows, ", position ", q.position, "} does not lie in ", rows,
            " rows");
    require(padding || static_cast<int64_t>(sequences[s].pages.size()) * kPageTokens >= int64_t{q.position} + q.rows,
            op, ": sequence ", s, " has ", sequences[s].pages.size(), " pages for ", q.position, " + ", q.rows,
            " tokens");
    for (const int32_t page : sequences[s].pages) require(page >= 0, op, ": sequence ", s, " names page ", page);
    for (int32_t i = 0; i < q.rows; ++i)
      list.push_back({q.row + i, padding ? kPadding : q.position + i, static_cast<int32_t>(pages.size())});
    pages.insert(pages.end(), sequences[s].pages.begin(), sequences[s].pages.end());
  }
  return {on.table(Table::paged_rows, list), static_cast<int>(list.size()), on.table(Table::pages, pages)};
}

PagedHeads paged(const char* op, DeviceStream& on, const Heads& h, const std::vector<PagedSequence>& sequences,
                 int64_t rows, const void* pool) {
  require(pool || sequences.empty(), op, ": the page pool is null");
  const Placed at = place(op, on, sequences, rows);
  return {h.heads, h.kv_heads, h.head_dim, at.rows, at.count, at.pages};
}

}  // namespace

size_t CudaOps::page_bytes(int kv_heads, int head_dim) const {
  require(kv_heads > 0 && head_dim > 0, "page_bytes: ", kv_heads, " kv heads of dimension ", head_dim);
  return static_cast<size_t>(kv_heads) * 2 * kPageTokens * static_cast<size_t>(head_dim) * sizeof(Bf16);
}

void CudaOps::kv_append(Stream& stream, Tensor qkv, const std::vector<PagedSequence>& sequences, int heads,
                        int kv_heads, int head_dim, void* pool) const {
  const Heads h("kv_append", heads, kv_heads, head_dim);
  const Qkv at("kv_append", "qkv", h, qkv);
  DeviceStream& on = device_stream(stream);
  k_.kv_append(on.raw(), paged("kv_append", on, h, sequences, qkv.rows(), pool), at.q, static_cast<Bf16*>(pool));
  launched("kv_append");
}

// Rows from which a sequence has its keys gathered and is attended to on tensor cores.
constexpr int32_t kManyRows = 16;

void CudaOps::attention_paged(Stream& stream, Tensor qkv, const std::vector<PagedSequence>& sequences, int heads,
                              int kv_heads, int head_dim, float scale, const void* pool, Tensor out) const {
  const char* op = "attention_paged";
  const Heads h(op, heads, kv_heads, head_dim);
  const Qkv at(op, "qkv", h, qkv);
  check(op, "out", out, DType::bf16, {qkv.rows(), h.width()});
  DeviceStream& on = device_stream(stream);
  const auto* pages = static_cast<const Bf16*>(pool);
  auto* to = static_cast<Bf16*>(out.data);
  if (!for_hopper(head_dim)) {
    k_.attention_paged(on.raw(), paged(op, on, h, sequences, qkv.rows(), pool), scale, at.q, pages, to);
    return launched(op);
  }
  std::vector<PagedSequence> few;
  int most_keys = 0;
  for (const PagedSequence& sequence : sequences) {
    const Span& q = sequence.q;
    if (q.rows >= kManyRows) {
      attend_gathered(on, {sequence}, at.q, qkv.rows(), heads, kv_heads, head_dim, scale, pages, to);
      continue;
    }
    few.push_back(sequence);
    if (q.rows > 0) most_keys = std::max(most_keys, q.position + q.rows);
  }
  const PagedHeads rows = paged(op, on, h, few, qkv.rows(), pool);
  // Blocks for keys that no row has end at once.
  most_keys = static_cast<int>(decode_keys(most_keys));
  k_.attention_decode(on.raw(), rows, most_keys, scale, at.q, pages, to,
                      on.room(Room::sums, k_.attention_decode_workspace(rows.row_count, heads, head_dim, most_keys)));
  launched(op);
}

// Few numbers, so that recordings are few, and at most a quarter of the rows, or three, for nothing.
int64_t CudaOps::decode_rows(int64_t sequences) const {
  const auto step = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(sequences, 1)))) / 8;
  return step <= 1 ? std::bit_ceil(static_cast<uint64_t>(sequences)) : (sequences + step - 1) / step * step;
}

int64_t CudaOps::decode_keys(int64_t longest) const {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(longest, 1024))));
}

void CudaOps::place_sequences(Stream& stream, const std::vector<PagedSequence>& sequences, int64_t rows) const {
  place("place_sequences", device_stream(stream), sequences, rows);
}

// A prompt: one sequence, whose keys lie in many pages, through the forward kernel.
void CudaOps::attend_gathered(DeviceStream& on, const std::vector<PagedSequence>& one, Bf16* q, int64_t m, int heads,
                              int kv_heads, int head_dim, float scale, const Bf16* pool, Bf16* out) const {
  const char* op = "attention_paged";
  const Heads h(op, heads, kv_heads, head_dim);
  const Span& span = one[0].q;
  const PagedHeads at = paged(op, on, h, one, m, pool);
  const int64_t keys = int64_t{span.position} + span.rows, width = h.kv_width();
  auto* gathered = static_cast<Bf16*>(on.room(Room::keys, static_cast<size_t>(keys * 2 * width) * sizeof(Bf16)));
  k_.gather_pages(on.raw(), keys, width, at.pages, pool, gathered);
  const Span all{0, static_cast<int32_t>(keys), 0};
  const Lists lists = forward_lists(on, {{span, all}}, k_.attention_forward_rows(head_dim), m, keys, false);
  auto* lse = static_cast<float*>(on.room(Room::sums, static_cast<size_t>(m * heads) * sizeof(float)));
  auto* counters = static_cast<int32_t*>(on.room(Room::counters, 2 * sizeof(int32_t)));
  k_.attention_forward(on.raw(), encode_,
                       {{q, m, h.ld(), heads, head_dim},
                        {gathered, keys, 2 * width, kv_heads, head_dim},
                        {gathered + width, keys, 2 * width, kv_heads, head_dim},
                        lists.tiles,
                        lists.count,
                        lists.keys,
                        true,
                        scale,
                        out,
                        lse,
                        nullptr,
                        counters,
                        multiprocessors_});
}

void CudaOps::copy_page(Stream& stream, void* pool, size_t page_bytes, int32_t from, int32_t to) const {
  require(pool && from >= 0 && to >= 0, "copy_page: from ", from, " to ", to);
  auto* pages = static_cast<std::byte*>(pool);
  stream.copy_on_device(pages + static_cast<size_t>(to) * page_bytes, pages + static_cast<size_t>(from) * page_bytes,
                        page_bytes);
}

}  // namespace tokenring::cuda
