// Attention over whole documents packed one after the other: what training and scoring on one rank use.
#pragma once

#include <cstdint>
#include <vector>

#include "core/ops.h"
#include "core/seams.h"
#include "model/config.h"

namespace tokenring {

float attention_scale(const DecoderConfig&);

class PackedAttend : public Attend {
 public:
  // lengths: tokens of each document, in the order of the packed rows. `ops` outlives the schedules.
  PackedAttend(const DecoderConfig&, const Ops&, const std::vector<int32_t>& lengths);

  void forward(Schedule&, int layer, Slot qkv, Slot out, Slot lse) override;
  void backward(Schedule&, int layer, Slot dout, Slot qkv, Slot out, Slot lse, Slot dqkv) override;

 private:
  int heads_, kv_heads_, head_dim_;
  float scale_;
  const Ops& ops_;
  std::vector<AttentionTile> tiles_;
  int64_t pairs_ = 0;  // (query, key) pairs under the causal mask
};

}  // namespace tokenring
