#include "model/attend.h"

#include <cmath>

namespace tokenring {

float attention_scale(const DecoderConfig& config) { return 1.0f / std::sqrt(static_cast<float>(config.head_dim)); }

PackedAttend::PackedAttend(const DecoderConfig& config, const Ops& ops, const std::vector<int32_t>& lengths)
    : heads_(config.num_attention_heads),
      kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim),
      scale_(attention_scale(config)),
      ops_(ops) {
  int32_t row = 0;
  for (const int32_t length : lengths) {
    const Span span{row, length, 0};
    if (length > 0) tiles_.push_back(AttentionTile{span, span});
    row += length;
    pairs_ += int64_t{length} * (length + 1) / 2;
  }
}

void PackedAttend::forward(Schedule& schedule, int layer, Slot qkv, Slot out, Slot lse) {
  const int64_t room =
      static_cast<int64_t>(ops_.attention_workspace(tiles_, qkv.shape[0], heads_, kv_heads_, head_dim_));
  const Slot workspace = schedule.slot(DType::u8, {room});
  schedule.add("attention_forward", layer, static_cast<int64_t>(qkv.bytes() + out.bytes() + lse.bytes()),
               4 * pairs_ * heads_ * head_dim_,
               [&ops = ops_, tiles = tiles_, heads = heads_, kv_heads = kv_heads_, head_dim = head_dim_, scale = scale_,
                qkv, out, lse, workspace](const Frame& f) {
                 ops.attention_forward(f.stream, f[qkv], tiles, heads, kv_heads, head_dim, scale, f[out], f[lse],
                                       f[workspace]);
               });
  schedule.release(workspace);
}

void PackedAttend::backward(Schedule& schedule, int layer, Slot dout, Slot qkv, Slot out, Slot lse, Slot dqkv) {
  const int64_t room =
      static_cast<int64_t>(ops_.attention_workspace(tiles_, qkv.shape[0], heads_, kv_heads_, head_dim_));
  const Slot workspace = schedule.slot(DType::u8, {room});
  schedule.add("attention_backward", layer, static_cast<int64_t>(2 * qkv.bytes() + 2 * out.bytes() + lse.bytes()),
               10 * pairs_ * heads_ * head_dim_,
               [&ops = ops_, tiles = tiles_, heads = heads_, kv_heads = kv_heads_, head_dim = head_dim_, scale = scale_,
                dout, qkv, out, lse, dqkv, workspace](const Frame& f) {
                 ops.attention_backward(f.stream, f[dout], f[qkv], f[out], f[lse], tiles, heads, kv_heads, head_dim,
                                        scale, f[dqkv], f[workspace]);
               });
  schedule.release(workspace);
}

}  // namespace tokenring
