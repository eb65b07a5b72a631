#include "parallel/context_attend.h"

namespace tokenring {

ContextAttend::Parts ContextAttend::parts_of(Slot qkv) const {
  const int64_t q = int64_t{heads_.heads} * heads_.head_dim, kv = int64_t{heads_.kv_heads} * heads_.head_dim;
  return {{qkv, 0}, {qkv, q}, {qkv, q + kv}};
}

void ContextAttend::forward(Schedule& schedule, int layer, Slot qkv, Slot out, Slot lse) {
  const Parts at = parts_of(qkv);
  ring_.forward(schedule, layer, at.q, at.k, at.v, out, lse);
}

void ContextAttend::backward(Schedule& schedule, int layer, Slot dout, Slot qkv, Slot out, Slot lse, Slot dqkv) {
  const Parts at = parts_of(qkv), gradient = parts_of(dqkv);
  const int64_t width = int64_t{heads_.heads} * heads_.head_dim;
  // The gradients of queries are summed in float32 over what they meet.
  const bool widened = dqkv.dtype != DType::f32;
  const HeadSlot dq = widened ? HeadSlot{schedule.slot(DType::f32, {dqkv.shape[0], width})} : gradient.q;
  ring_.backward(schedule, layer, dout, at.q, at.k, at.v, out, lse, dq, gradient.k, gradient.v);
  if (!widened) return;
  schedule.add("copy_rows", layer, static_cast<int64_t>(dq.slot.bytes() / 2 * 3), 0,
               [this, dq, to = gradient.q, width](const Frame& f) {
                 ops_.copy_rows(f.stream, dq.at(f), to.at(f), width, false);
               });
  schedule.release(dq.slot);
}

}  // namespace tokenring
