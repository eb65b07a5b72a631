#include "parallel/context_sequences.h"

namespace tokenring {

void ContextSequences::add(Schedule& schedule, Slot logprob, Slot sequence) {
  const int64_t count = all_.size(), bytes = 4 * count;
  const Slot every = schedule.slot(DType::f32, {count}), old = schedule.slot(DType::f32, {count});
  const Slot ratio = schedule.slot(DType::f32, {count});
  const Slot begin = schedule.slot(DType::i32, {static_cast<int64_t>(all_.begin.size())});
  schedule.upload(old, all_.old_logprob.data());
  schedule.upload(begin, all_.begin.data());
  schedule.add("copy_on_device", -1, 2 * bytes, 0, [this, logprob, every](const Frame& f) {
    ops_.zero(f.stream, f[every]);
    for (const Run& run : runs_) {
      const Slot from = logprob.rows(run.own, run.count), to = every.rows(run.all, run.count);
      f.stream.copy_on_device(f[to].data, f[from].data, to.bytes());
    }
  });
  // Each row is one rank's: the sums are that number and zeros.
  schedule.add(Track::context, {Track::compute}, "all_reduce", -1, bytes, 0,
               [this, every](const Frame& f) { context_.all_reduce(f.stream, f[every], Reduction::sum); });
  schedule.add(Track::compute, {Track::context}, "sequence_log_ratio", -1, 3 * bytes, 2 * count,
               [this, every, old, begin, ratio](const Frame& f) {
                 ops_.sequence_log_ratio(f.stream, f[every], f[old], f[begin], f[ratio]);
               });
  schedule.add("copy_on_device", -1, 2 * bytes, 0, [this, ratio, sequence](const Frame& f) {
    for (const Run& run : runs_) {
      const Slot from = ratio.rows(run.all, run.count), to = sequence.rows(run.own, run.count);
      f.stream.copy_on_device(f[to].data, f[from].data, to.bytes());
    }
  });
  for (const Slot& slot : {every, old, ratio, begin}) schedule.release(slot);
}

}  // namespace tokenring
