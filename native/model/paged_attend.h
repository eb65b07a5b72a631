// Attention of the sampler: new tokens of many sessions against the keys in their pages.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/ops.h"
#include "core/seams.h"
#include "model/config.h"

namespace tokenring {

class PagePool;

// Appends each layer's keys to the pages, then attends. lse stays unwritten: nothing goes backward from here.
class PagedAttend : public Attend {
 public:
  // The pool outlives the schedules and does not grow while they run.
  PagedAttend(const DecoderConfig&, const Ops&, std::vector<PagedSequence>, const PagePool&);

  // Puts where the sequences lie into the device's memory, ahead of a pass that may be recorded.
  void place(Schedule&) const;
  void forward(Schedule&, int layer, Slot qkv, Slot out, Slot lse) override;
  void backward(Schedule&, int layer, Slot dout, Slot qkv, Slot out, Slot lse, Slot dqkv) override;

 private:
  int heads_, kv_heads_, head_dim_;
  const Ops& ops_;
  std::shared_ptr<const std::vector<PagedSequence>> sequences_;
  const PagePool& pool_;
  int64_t rows_ = 0;
  int64_t pairs_ = 0;  // (query, key) pairs under the causal mask
};

}  // namespace tokenring
