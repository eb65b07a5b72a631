// The decoder's attention where a context group shares the documents.
#pragma once

#include <vector>

#include "core/seams.h"
#include "parallel/ring_attention.h"

namespace tokenring {

class ContextAttend : public Attend {
 public:
  // As RingAttention; this object outlives the run of the schedules.
  ContextAttend(const Ops& ops, Communicator& context, Communicator* node, AttentionHeads heads,
                std::vector<Shard> shards)
      : ops_(ops), heads_(heads), ring_(ops, context, node, heads, std::move(shards)) {}

  void forward(Schedule&, int layer, Slot qkv, Slot out, Slot lse) override;
  void backward(Schedule&, int layer, Slot dout, Slot qkv, Slot out, Slot lse, Slot dqkv) override;

 private:
  struct Parts {
    HeadSlot q, k, v;
  };
  Parts parts_of(Slot qkv) const;

  const Ops& ops_;
  AttentionHeads heads_;
  RingAttention ring_;
};

}  // namespace tokenring
