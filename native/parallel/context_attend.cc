#include "parallel/context_attend.h"

namespace tokenring {

namespace {

void copy(Schedule& schedule, const Ops& ops, int layer, Slot from, Slot to) {
  schedule.add("copy_rows", layer, static_cast<int64_t>(from.bytes() + to.bytes()), 0,
               [&ops, from, to](const Frame& f) {
                 ops.copy_rows(f.stream, HeadSlot{from}.at(f), HeadSlot{to}.at(f), from.shape[1], false);
               });
}

}  // namespace

ContextAttend::Parts ContextAttend::parts_of(Slot qkv) const {
  const int64_t q = int64_t{heads_.heads} * heads_.head_dim, kv = int64_t{heads_.kv_heads} * heads_.head_dim;
  return {{qkv, 0}, {qkv, q}, {qkv, q + kv}};
}

Slot ContextAttend::as_f32(Schedule& schedule, int layer, Slot x, bool read) const {
  if (x.dtype == DType::f32) return x;
  const Slot wide = schedule.slot(DType::f32, {x.shape[0], x.shape[1]});
  if (read) copy(schedule, ops_, layer, x, wide);
  return wide;
}

void ContextAttend::round(Schedule& schedule, int layer, Slot wide, Slot to) const {
  if (to.dtype != DType::f32) copy(schedule, ops_, layer, wide, to);
}

void ContextAttend::forward(Schedule& schedule, int layer, Slot qkv, Slot out, Slot lse) {
  const Slot from = as_f32(schedule, layer, qkv, true), to = as_f32(schedule, layer, out, false);
  const Parts at = parts_of(from);
  ring_.forward(schedule, layer, at.q, at.k, at.v, to, lse);
  round(schedule, layer, to, out);
  if (qkv.dtype != DType::f32)
    for (const Slot& slot : {from, to}) schedule.release(slot);
}

void ContextAttend::backward(Schedule& schedule, int layer, Slot dout, Slot qkv, Slot out, Slot lse, Slot dqkv) {
  const Slot d = as_f32(schedule, layer, dout, true), from = as_f32(schedule, layer, qkv, true);
  const Slot o = as_f32(schedule, layer, out, true), to = as_f32(schedule, layer, dqkv, false);
  const Parts at = parts_of(from), gradient = parts_of(to);
  ring_.backward(schedule, layer, d, at.q, at.k, at.v, o, lse, gradient.q, gradient.k, gradient.v);
  round(schedule, layer, to, dqkv);
  if (qkv.dtype != DType::f32)
    for (const Slot& slot : {d, from, o, to}) schedule.release(slot);
}

}  // namespace tokenring
