#include "loss/policy_loss.h"

#include <algorithm>
#include <cmath>

namespace tokenring {

namespace {

// The lanes of all rows on the device; a chunk is a range of each.
struct DeviceRows {
  Slot row, target, lse, logprob, entropy;
};

class HeadBuilder {
 public:
  HeadBuilder(Schedule& schedule, const PolicyHead& head, float temperature, Slot hidden, const LossRows& rows)
      : schedule_(schedule), head_(head), inv_temperature_(1.0f / temperature), hidden_(hidden), count_(rows.size()) {
    at_.row = uploaded(DType::i32, rows.row.data());
    at_.target = uploaded(DType::i32, rows.target.data());
    at_.lse = schedule_.slot(DType::f32, {count_});
    at_.logprob = schedule_.slot(DType::f32, {count_});
    at_.entropy = schedule_.slot(DType::f32, {count_});
  }

  Slot uploaded(DType dtype, const void* host) {
    const Slot slot = schedule_.slot(dtype, {count_});
    schedule_.upload(slot, host);
    return slot;
  }

  // Rows [begin, begin + count): returns their hidden states and their logits, statistics taken.
  struct Chunk {
    Slot x, logits;
  };
  Chunk forward(int64_t begin, int64_t count) {
    const int64_t v = head_.weight.n, h = head_.weight.k;
    const Slot row = at_.row.rows(begin, count), target = at_.target.rows(begin, count);
    const Slot lse = at_.lse.rows(begin, count), logprob = at_.logprob.rows(begin, count);
    const Slot entropy = at_.entropy.rows(begin, count);
    const Slot x = schedule_.slot(head_.ops.activation(), {count, h});
    schedule_.add("gather_rows", -1, 2 * bytes(x), 0, [&ops = head_.ops, hidden = hidden_, row, x](const Frame& f) {
      ops.gather_rows(f.stream, f[hidden], f[row], f[x]);
    });
    const Slot logits = schedule_.slot(DType::f32, {count, v});
    schedule_.add("linear_forward", -1, bytes(x) + bytes(logits) + weight_bytes(), 2 * count * v * h,
                  [&ops = head_.ops, x, weight = head_.weight, logits](const Frame& f) {
                    ops.linear_forward(f.stream, f[x], weight, Tensor{}, f[logits]);
                  });
    schedule_.add("logits_statistics", -1, bytes(logits), 6 * count * v,
                  [&ops = head_.ops, logits, target, scale = inv_temperature_, lse, logprob, entropy](const Frame& f) {
                    ops.logits_statistics(f.stream, f[logits], f[target], scale, f[lse], f[logprob], f[entropy]);
                  });
    return Chunk{x, logits};
  }

  // g and, unless empty, entropy_g (f32, all rows) are d loss / d logprob and d loss / d entropy; overwrites the
  // chunk's logits.
  void backward(int64_t begin, int64_t count, const Chunk& chunk, Slot g, Slot entropy_g, Slot dhidden) {
    const int64_t v = head_.weight.n, h = head_.weight.k;
    const Slot row = at_.row.rows(begin, count), target = at_.target.rows(begin, count);
    const Slot lse = at_.lse.rows(begin, count), scalar = g.rows(begin, count), logits = chunk.logits, x = chunk.x;
    const Slot entropy = at_.entropy.rows(begin, count);
    const Slot of_entropy = entropy_g ? entropy_g.rows(begin, count) : Slot{};
    // Of the logits' own dtype, the gradient takes their place.
    const bool in_place = head_.ops.activation() == logits.dtype;
    const Slot dlogits = in_place ? logits : schedule_.slot(head_.ops.activation(), {count, v});
    schedule_.add("logits_gradient", -1, bytes(logits) + bytes(dlogits), (of_entropy ? 8 : 4) * count * v,
                  [&ops = head_.ops, logits, target, lse, scalar, entropy, of_entropy, scale = inv_temperature_,
                   out = in_place ? Slot{} : dlogits](const Frame& f) {
                    const Tensor dentropy = of_entropy ? f[of_entropy] : Tensor{};
                    ops.logits_gradient(f.stream, f[logits], f[target], f[lse], f[scalar], f[entropy], dentropy, scale,
                                        f[out]);
                  });
    schedule_.add("linear_wgrad", -1, bytes(dlogits) + bytes(x) + 2 * 4 * v * h, 2 * count * v * h,
                  [&ops = head_.ops, dlogits, x, gradient = head_.gradient](const Frame& f) {
                    ops.linear_wgrad(f.stream, f[dlogits], f[x], gradient, Tensor{});
                  });
    const Slot dx = schedule_.slot(x.dtype, {count, h});
    schedule_.add("linear_dgrad", -1, bytes(dlogits) + bytes(x) + weight_bytes(), 2 * count * v * h,
                  [&ops = head_.ops, dlogits, weight = head_.weight, dx](const Frame& f) {
                    ops.linear_dgrad(f.stream, f[dlogits], weight, f[dx], false);
                  });
    if (!in_place) schedule_.release(dlogits);
    schedule_.add("scatter_rows_add", -1, 3 * bytes(x), count * h,
                  [&ops = head_.ops, dx, row, dhidden](const Frame& f) {
                    ops.scatter_rows_add(f.stream, f[dx], f[row], f[dhidden]);
                  });
    schedule_.release(dx);
  }

  void release(const Chunk& chunk) {
    schedule_.release(chunk.x);
    schedule_.release(chunk.logits);
  }

  void finish(LossLanes& lanes) {
    lanes.logprob.resize(count_);
    lanes.entropy.resize(count_);
    schedule_.download(lanes.logprob.data(), at_.logprob);
    schedule_.download(lanes.entropy.data(), at_.entropy);
    for (const Slot& slot : {at_.row, at_.target, at_.lse, at_.logprob, at_.entropy}) schedule_.release(slot);
  }

  const DeviceRows& at() const { return at_; }

 private:
  static int64_t bytes(const Slot& slot) { return static_cast<int64_t>(slot.bytes()); }
  int64_t weight_bytes() const {
    return head_.weight.n * head_.weight.k * static_cast<int64_t>(size_of(head_.ops.activation()));
  }

  Schedule& schedule_;
  const PolicyHead& head_;
  float inv_temperature_;
  Slot hidden_;
  int64_t count_;
  DeviceRows at_;
};

int64_t chunk_rows_of(int32_t asked, const PolicyHead& head) {
  return asked > 0 ? asked : head.ops.logits_rows(head.weight.n);
}

}  // namespace

void PolicyLoss::check() const {
  require(std::isfinite(temperature) && temperature > 0, "loss: temperature is ", temperature, "; it must be above 0");
  require(chunk_rows >= 0, "loss: chunk_rows is ", chunk_rows, "; it must be at least 1, or 0 for the default");
  scalars.check();
}

Slot policy_loss(Schedule& schedule, const PolicyHead& head, const PolicyLoss& loss, Slot hidden, const LossRows& rows,
                 LossLanes& lanes, SequenceRatios* ratios) {
  const int64_t count = rows.size();
  const Slot dhidden = schedule.slot(hidden.dtype, {hidden.shape[0], hidden.shape[1]});
  schedule.add("zero", -1, static_cast<int64_t>(dhidden.bytes()), 0,
               [&ops = head.ops, dhidden](const Frame& f) { ops.zero(f.stream, f[dhidden]); });
  const PolicyScalars& how = loss.scalars;
  if (count == 0) {
    if (ratios && how.objective == PolicyObjective::gspo) ratios->add(schedule, Slot{}, Slot{});
    return dhidden;
  }

  HeadBuilder build(schedule, head, loss.temperature, hidden, rows);
  std::vector<Slot> held;
  const auto lane = [&](bool wanted, DType dtype, const void* host) {
    if (!wanted) return Slot{};
    held.push_back(host ? build.uploaded(dtype, host) : schedule.slot(dtype, {count}));
    return held.back();
  };
  const bool ratio = how.objective != PolicyObjective::nll, sequence = how.objective == PolicyObjective::gspo;
  const Slot weight = lane(true, DType::f32, rows.weight.data());
  const Slot old = lane(ratio, DType::f32, rows.old_logprob.data());
  const Slot advantage = lane(ratio, DType::f32, rows.advantage.data());
  const Slot reference = lane(how.kl_coef != 0, DType::f32, rows.reference_logprob.data());
  const Slot of_sequence = lane(sequence, DType::f32, nullptr);
  const Slot g = lane(true, DType::f32, nullptr), value = lane(true, DType::f32, nullptr);
  const Slot entropy_g = lane(how.entropy_coef != 0, DType::f32, nullptr);
  const Slot flags = lane(true, DType::i32, nullptr);

  const int64_t chunk_rows = chunk_rows_of(loss.chunk_rows, head);
  const auto chunk_size = [&](int64_t begin) { return std::min(chunk_rows, count - begin); };
  HeadBuilder::Chunk only{};  // the one chunk of a sequence objective keeps its logits between the sweeps
  if (sequence) {
    for (int64_t begin = 0; begin < count; begin += chunk_rows) {
      only = build.forward(begin, chunk_size(begin));
      if (count > chunk_rows) build.release(only);
    }
    if (ratios) {
      ratios->add(schedule, build.at().logprob, of_sequence);
    } else {
      const int64_t entries = static_cast<int64_t>(rows.begin.size());
      held.push_back(schedule.slot(DType::i32, {entries}));
      const Slot documents = held.back();
      schedule.upload(documents, rows.begin.data());
      schedule.add("sequence_log_ratio", -1, 3 * 4 * count, 2 * count,
                   [&ops = head.ops, lp = build.at().logprob, old, documents, of_sequence](const Frame& f) {
                     ops.sequence_log_ratio(f.stream, f[lp], f[old], f[documents], f[of_sequence]);
                   });
    }
  }
  for (int64_t begin = 0; begin < count; begin += chunk_rows) {
    const int64_t n = chunk_size(begin);
    const bool made = sequence && count <= chunk_rows;
    const HeadBuilder::Chunk chunk = made ? only : build.forward(begin, n);
    const auto part = [&](Slot slot) { return slot ? slot.rows(begin, n) : slot; };
    schedule.add("policy_scalars", -1, 7 * 4 * n, 8 * n,
                 [&ops = head.ops, how, logprob = part(build.at().logprob), entropy = part(build.at().entropy),
                  w = part(weight), o = part(old), a = part(advantage), s = part(of_sequence), r = part(reference),
                  dl = part(g), de = part(entropy_g), l = part(value), flag = part(flags)](const Frame& f) {
                   const auto at = [&](Slot slot) { return slot ? f[slot] : Tensor{}; };
                   ops.policy_scalars(f.stream, how,
                                      {.logprob = at(logprob),
                                       .weight = at(w),
                                       .old = at(o),
                                       .advantage = at(a),
                                       .sequence = at(s),
                                       .reference = at(r),
                                       .entropy = at(entropy),
                                       .g = at(dl),
                                       .entropy_g = at(de),
                                       .loss = at(l),
                                       .flags = at(flag)});
                 });
    build.backward(begin, n, chunk, g, entropy_g, dhidden);
    build.release(chunk);
  }
  lanes.loss.resize(count);
  lanes.flags.resize(count);
  schedule.download(lanes.loss.data(), value);
  schedule.download(lanes.flags.data(), flags);
  build.finish(lanes);
  for (const Slot& slot : held) schedule.release(slot);
  return dhidden;
}

void policy_score(Schedule& schedule, const PolicyHead& head, float temperature, int32_t chunk_rows, Slot hidden,
                  const LossRows& rows, LossLanes& lanes) {
  const int64_t count = rows.size(), at_once = chunk_rows_of(chunk_rows, head);
  if (count == 0) return;
  HeadBuilder build(schedule, head, temperature, hidden, rows);
  for (int64_t begin = 0; begin < count; begin += at_once) {
    build.release(build.forward(begin, std::min(at_once, count - begin)));
  }
  build.finish(lanes);
}

}  // namespace tokenring
