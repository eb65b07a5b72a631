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

  // g (f32, all rows) is d loss / d logprob; overwrites the chunk's logits.
  void backward(int64_t begin, int64_t count, const Chunk& chunk, Slot g, Slot dhidden) {
    const int64_t v = head_.weight.n, h = head_.weight.k;
    const Slot row = at_.row.rows(begin, count), target = at_.target.rows(begin, count);
    const Slot lse = at_.lse.rows(begin, count), scalar = g.rows(begin, count), logits = chunk.logits, x = chunk.x;
    schedule_.add("logits_gradient", -1, 2 * bytes(logits), 4 * count * v,
                  [&ops = head_.ops, logits, target, lse, scalar, scale = inv_temperature_](const Frame& f) {
                    ops.logits_gradient(f.stream, f[logits], f[target], f[lse], f[scalar], scale);
                  });
    schedule_.add("linear_wgrad", -1, bytes(logits) + bytes(x) + 2 * 4 * v * h, 2 * count * v * h,
                  [&ops = head_.ops, logits, x, gradient = head_.gradient](const Frame& f) {
                    ops.linear_wgrad(f.stream, f[logits], f[x], gradient, Tensor{});
                  });
    // The gathered rows have served: their room takes the rows' gradient.
    schedule_.add("linear_dgrad", -1, bytes(logits) + bytes(x) + weight_bytes(), 2 * count * v * h,
                  [&ops = head_.ops, logits, weight = head_.weight, x](const Frame& f) {
                    ops.linear_dgrad(f.stream, f[logits], weight, f[x], false);
                  });
    schedule_.add("scatter_rows_add", -1, 3 * bytes(x), count * h, [&ops = head_.ops, x, row, dhidden](const Frame& f) {
      ops.scatter_rows_add(f.stream, f[x], f[row], f[dhidden]);
    });
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

}  // namespace

void PolicyLoss::check() const {
  require(std::isfinite(temperature) && temperature > 0, "loss: temperature is ", temperature, "; it must be above 0");
  require(chunk_rows > 0, "loss: chunk_rows is ", chunk_rows, "; it must be at least 1");
  require(scalars.clip_low >= 0 && scalars.clip_low <= 1, "loss: clip_low is ", scalars.clip_low,
          "; it must be between 0 and 1");
  require(std::isfinite(scalars.clip_high) && scalars.clip_high >= 0, "loss: clip_high is ", scalars.clip_high,
          "; it must not be negative");
}

Slot policy_loss(Schedule& schedule, const PolicyHead& head, const PolicyLoss& loss, Slot hidden, const LossRows& rows,
                 LossLanes& lanes) {
  const int64_t count = rows.size();
  const Slot dhidden = schedule.slot(hidden.dtype, {hidden.shape[0], hidden.shape[1]});
  schedule.add("zero", -1, static_cast<int64_t>(dhidden.bytes()), 0,
               [&ops = head.ops, dhidden](const Frame& f) { ops.zero(f.stream, f[dhidden]); });
  if (count == 0) return dhidden;

  HeadBuilder build(schedule, head, loss.temperature, hidden, rows);
  const Slot weight = build.uploaded(DType::f32, rows.weight.data());
  const Slot advantage = build.uploaded(DType::f32, rows.advantage.data());
  const Slot old = build.uploaded(DType::f32, rows.old_logprob.data());
  const Slot g = schedule.slot(DType::f32, {count}), value = schedule.slot(DType::f32, {count});
  const Slot flags = schedule.slot(DType::i32, {count});
  for (int64_t begin = 0; begin < count; begin += loss.chunk_rows) {
    const int64_t n = std::min<int64_t>(loss.chunk_rows, count - begin);
    const HeadBuilder::Chunk chunk = build.forward(begin, n);
    schedule.add("policy_scalars", -1, 7 * 4 * n, 8 * n,
                 [&ops = head.ops, scalars = loss.scalars, logprob = build.at().logprob.rows(begin, n),
                  o = old.rows(begin, n), a = advantage.rows(begin, n), w = weight.rows(begin, n),
                  dl = g.rows(begin, n), l = value.rows(begin, n), flag = flags.rows(begin, n)](const Frame& f) {
                   ops.policy_scalars(f.stream, scalars, f[logprob], f[o], f[a], f[w], f[dl], f[l], f[flag]);
                 });
    build.backward(begin, n, chunk, g, dhidden);
    build.release(chunk);
  }
  lanes.loss.resize(count);
  lanes.flags.resize(count);
  schedule.download(lanes.loss.data(), value);
  schedule.download(lanes.flags.data(), flags);
  build.finish(lanes);
  for (const Slot& slot : {weight, advantage, old, g, value, flags}) schedule.release(slot);
  return dhidden;
}

void policy_score(Schedule& schedule, const PolicyHead& head, float temperature, int32_t chunk_rows, Slot hidden,
                  const LossRows& rows, LossLanes& lanes) {
  const int64_t count = rows.size();
  if (count == 0) return;
  HeadBuilder build(schedule, head, temperature, hidden, rows);
  for (int64_t begin = 0; begin < count; begin += chunk_rows) {
    build.release(build.forward(begin, std::min<int64_t>(chunk_rows, count - begin)));
  }
  build.finish(lanes);
}

}  // namespace tokenring
