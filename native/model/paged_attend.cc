#include "model/paged_attend.h"

#include <cmath>
#include <utility>

#include "model/pages.h"

namespace tokenring {

PagedAttend::PagedAttend(const DecoderConfig& config, const Ops& ops, std::vector<PagedSequence> sequences,
                         const PagePool& pool)
    : heads_(config.num_attention_heads),
      kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim),
      ops_(ops),
      pool_(pool) {
  for (const PagedSequence& sequence : sequences) {
    const int64_t rows = sequence.q.rows;
    rows_ += rows;
    pairs_ += rows * sequence.q.position + rows * (rows + 1) / 2;
  }
  sequences_ = std::make_shared<const std::vector<PagedSequence>>(std::move(sequences));
}

void PagedAttend::place(Schedule& schedule) const {
  schedule.add_of_host("place_sequences", rows_ * static_cast<int64_t>(sizeof(PagedSequence)),
                       [&ops = ops_, sequences = sequences_, rows = rows_](const Frame& frame) {
                         ops.place_sequences(frame.stream, *sequences, rows);
                       });
}

void PagedAttend::forward(Schedule& schedule, int layer, Slot qkv, Slot out, Slot) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
  const int64_t kv_bytes = rows_ * 2 * kv_heads_ * head_dim_ * static_cast<int64_t>(size_of(qkv.dtype));
  schedule.add("kv_append", layer, 2 * kv_bytes, 0,
               [=, &ops = ops_, sequences = sequences_, pool = pool_.layer(layer), heads = heads_, kv_heads = kv_heads_,
                head_dim = head_dim_](const Frame& frame) {
                 ops.kv_append(frame.stream, frame[qkv], *sequences, heads, kv_heads, head_dim, pool);
               });
  schedule.add(
      "attention_paged", layer, static_cast<int64_t>(qkv.bytes() + out.bytes()), 4 * pairs_ * heads_ * head_dim_,
      [=, &ops = ops_, sequences = sequences_, pool = pool_.layer(layer), heads = heads_, kv_heads = kv_heads_,
       head_dim = head_dim_](const Frame& frame) {
        ops.attention_paged(frame.stream, frame[qkv], *sequences, heads, kv_heads, head_dim, scale, pool, frame[out]);
      });
}

void PagedAttend::backward(Schedule&, int, Slot, Slot, Slot, Slot, Slot) {
  fail("INTERNAL", "the sampler's attention has no backward pass");
}

}  // namespace tokenring
