// Attention of the sampler: keys and values in pages, one attention tile a page.
//
// A page of one layer: for each kv head, keys [head_dim][64] (transposed, as attend() reads them), then values
// [64][head_dim].
#include <algorithm>
#include <cstring>
#include <memory>

#include "core/check.h"
#include "cpu/heads.h"
#include "cpu/ops.h"
#include "cpu/stream.h"

namespace tokenring::cpu {

static_assert(kTile == kPageTokens);

namespace {

void check_sequences(const char* op, const std::vector<PagedSequence>& sequences, int64_t rows, const void* pool) {
  require(pool || sequences.empty(), op, ": the page pool is null");
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Span& q = sequences[i].q;
    require(q.row >= 0 && q.rows >= 0 && q.position >= 0 && int64_t{q.row} + q.rows <= rows, op, ": sequence ", i,
            " {row ", q.row, ", rows ", q.rows, ", position ", q.position, "} does not lie in ", rows, " rows");
    require(static_cast<int64_t>(sequences[i].pages.size()) * kTile >= int64_t{q.position} + q.rows, op, ": sequence ",
            i, " has ", sequences[i].pages.size(), " pages of ", kTile, " tokens for ", q.position, " + ", q.rows,
            " tokens");
    for (int32_t page : sequences[i].pages) require(page >= 0, op, ": sequence ", i, " names page ", page);
  }
}

}  // namespace

size_t CpuOps::page_bytes(int kv_heads, int head_dim) const {
  require(kv_heads > 0 && head_dim > 0, "page_bytes: ", kv_heads, " kv heads of dimension ", head_dim);
  return static_cast<size_t>(kv_heads) * 2 * kTile * head_dim * sizeof(float);
}

void CpuOps::kv_append(Stream& stream, Tensor qkv, const std::vector<PagedSequence>& sequences, int heads, int kv_heads,
                       int head_dim, void* pool) const {
  const Heads h = check_qkv("kv_append", qkv, heads, kv_heads, head_dim);
  check_sequences("kv_append", sequences, qkv.shape[0], pool);
  auto list = std::make_shared<const std::vector<PagedSequence>>(sequences);
  cpu_stream(stream).enqueue([=, this] {
    const int64_t page_floats = static_cast<int64_t>(page_bytes(kv_heads, head_dim) / sizeof(float));
    int64_t rows = 0;
    for (const PagedSequence& s : *list) rows += s.q.rows;
    const int64_t n = static_cast<int64_t>(list->size()) * kv_heads;
    const auto append = [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const PagedSequence& s = (*list)[task / kv_heads];
        const int64_t kv = task % kv_heads;
        for (int i = 0; i < s.q.rows;) {
          const int64_t position = int64_t{s.q.position} + i;
          const int lane = static_cast<int>(position % kTile), count = std::min(kTile - lane, s.q.rows - i);
          float* keys = static_cast<float*>(pool) + s.pages[position / kTile] * page_floats + kv * 2 * kTile * head_dim;
          const float* k = qkv.f32() + (s.q.row + i) * h.ld() + h.k(kv);
          k_.transpose(count, head_dim, k, h.ld(), keys + lane, kTile);
          for (int j = 0; j < count; ++j)
            std::memcpy(keys + (kTile + lane + j) * head_dim, k + j * h.ld() + h.v(kv) - h.k(kv),
                        static_cast<size_t>(head_dim) * sizeof(float));
          i += count;
        }
      }
    };
    pool_.run(n, rows * kv_heads * head_dim < 8000 ? n : 1, append);
  });
}

void CpuOps::attention_paged(Stream& stream, Tensor qkv, const std::vector<PagedSequence>& sequences, int heads,
                             int kv_heads, int head_dim, float scale, const void* pool, Tensor out) const {
  const Heads h = check_qkv("attention_paged", qkv, heads, kv_heads, head_dim);
  const int64_t width = h.width();
  check("attention_paged", "out", out, DType::f32, {qkv.shape[0], width});
  check_sequences("attention_paged", sequences, qkv.shape[0], pool);
  auto list = std::make_shared<const std::vector<PagedSequence>>(sequences);
  cpu_stream(stream).enqueue([=, this] {
    struct Block {
      int sequence, at, tokens, tiles;
    };
    std::vector<Block> blocks;
    int64_t rows_by_tiles = 0;
    for (size_t i = 0; i < list->size(); ++i) {
      const Span& q = (*list)[i].q;
      for (int at = 0; at < q.rows; at += kQueryBlock) {
        const int tokens = std::min(kQueryBlock, q.rows - at), tiles = (q.position + at + tokens - 1) / kTile + 1;
        blocks.push_back({static_cast<int>(i), at, tokens, tiles});
        rows_by_tiles += int64_t{tokens} * tiles;
      }
    }
    std::stable_sort(blocks.begin(), blocks.end(),
                     [](const Block& a, const Block& b) { return a.tokens * a.tiles > b.tokens * b.tiles; });
    const int per_kv = h.per_kv();
    const int64_t page_floats = static_cast<int64_t>(page_bytes(kv_heads, head_dim) / sizeof(float));
    const size_t acc_floats = static_cast<size_t>(per_kv) * kQueryBlock * head_dim;
    const size_t score_floats = static_cast<size_t>(std::max(kQueryBlock, per_kv)) * kTile;
    const size_t state_floats = static_cast<size_t>(per_kv) * kQueryBlock * sizeof(SoftmaxState) / sizeof(float);
    const auto attend = [&](int64_t begin, int64_t end) {
      float* acc = scratch(acc_floats + score_floats + state_floats);
      float* scores = acc + acc_floats;
      auto* state = reinterpret_cast<SoftmaxState*>(scores + score_floats);
      for (int64_t task = begin; task < end; ++task) {
        const Block& b = blocks[task / kv_heads];
        const int64_t kv = task % kv_heads;
        const PagedSequence& s = (*list)[b.sequence];
        const int64_t row = s.q.row + b.at, position = int64_t{s.q.position} + b.at;
        k_.attend_start(per_kv, b.tokens, head_dim, state, acc);
        for (int i = 0; i < b.tiles; ++i) {
          const float* keys = static_cast<const float*>(pool) + s.pages[i] * page_floats + kv * 2 * kTile * head_dim;
          k_.attend({.tokens = b.tokens,
                     .heads = per_kv,
                     .head_dim = head_dim,
                     .q = qkv.f32() + row * h.ld() + h.q(kv),
                     .ldq = h.ld(),
                     .keys = keys,
                     .v = keys + kTile * head_dim,
                     .ldv = head_dim,
                     .lo = 0,
                     .hi = static_cast<int>(std::min<int64_t>(kTile, position + b.tokens - int64_t{i} * kTile)),
                     .visible = position - int64_t{i} * kTile + 1,
                     .scale = scale,
                     .state = state,
                     .acc = acc,
                     .scratch = scores});
        }
        k_.attend_finish(per_kv, b.tokens, head_dim, state, acc, out.f32() + row * width + h.q(kv), width, nullptr, 0);
      }
    };
    const int64_t tasks = static_cast<int64_t>(blocks.size()) * kv_heads;
    const double nanoseconds = static_cast<double>(rows_by_tiles) * heads * head_dim * 2.0;
    pool_.run(tasks, nanoseconds < kChunkNanoseconds ? tasks : 1, attend);
  });
}

void CpuOps::copy_page(Stream& stream, void* pool, size_t page_bytes, int32_t from, int32_t to) const {
  require(pool && from >= 0 && to >= 0, "copy_page: from page ", from, " to page ", to, " needs a pool and two pages");
  cpu_stream(stream).enqueue([=] {
    std::byte* pages = static_cast<std::byte*>(pool);
    std::memmove(pages + static_cast<size_t>(to) * page_bytes, pages + static_cast<size_t>(from) * page_bytes,
                 page_bytes);
  });
}

}  // namespace tokenring::cpu
