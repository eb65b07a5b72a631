#include "parallel/gradient_sum.h"

#include <algorithm>
#include <utility>

namespace tokenring {

void GradientSum::sum(Schedule& schedule, int unit) {
  const std::vector<Bucket> buckets = own_.buckets(unit);
  const auto add = [&](const char* op, auto tensor, auto run) {
    int64_t bytes = 0;
    for (const Bucket& bucket : buckets) bytes += static_cast<int64_t>(tensor(bucket).bytes());
    schedule.add(Track::gradients, {Track::compute}, op, std::max(unit, -1), bytes, 0, [buckets, run](const Frame& f) {
      for (const Bucket& bucket : buckets) run(f.stream, bucket);
    });
  };
  const auto whole = [](const Bucket& bucket) { return bucket.whole; };
  const auto part = [](const Bucket& bucket) { return bucket.part; };
  if (!buckets.front().part) {
    add("all_reduce", whole, [&world = mesh_.world()](Stream& stream, const Bucket& bucket) {
      world.all_reduce(stream, bucket.whole, Reduction::sum);
    });
    return;
  }
  if (buckets.front().whole) {
    add("reduce_scatter", whole, [group = mesh_.shard()](Stream& stream, const Bucket& bucket) {
      if (group)
        group->reduce_scatter(stream, bucket.whole, bucket.part, Reduction::sum);
      else
        stream.copy_on_device(bucket.part.data, bucket.whole.data, bucket.part.bytes());
    });
  }
  if (mesh_.replica()) {
    add("all_reduce", part, [group = mesh_.replica()](Stream& stream, const Bucket& bucket) {
      group->all_reduce(stream, bucket.part, Reduction::sum);
    });
  }
}

// Where each pass sums over the shard group itself, it has queued that of a unit by the time that the next one is
// ready.
void GradientSum::sum_behind(Schedule& schedule, int unit) {
  const int ready = own_.buckets(unit).front().whole ? unit : std::exchange(behind_, unit);
  if (ready != kNone) sum(schedule, ready);
}

void GradientSum::ready_head(Schedule& schedule) {
  own_.ready_head(schedule);
  behind_ = kNone;
  sum_behind(schedule, kHeadUnit);
}

void GradientSum::ready(Schedule& schedule, int layer) {
  own_.ready(schedule, layer);
  sum_behind(schedule, layer);
}

void GradientSum::ready_embedding(Schedule& schedule) {
  own_.ready_embedding(schedule);
  schedule.add("complete_gradients", -1, 0, 0, [&own = own_](const Frame& f) { own.complete_gradients(f.stream); });
  sum_behind(schedule, kEmbeddingUnit);
  if (behind_ != kNone) sum(schedule, std::exchange(behind_, kNone));
}

void GradientSum::add(Schedule& schedule) {
  sum(schedule, kHeadUnit);
  for (int layer = layers_ - 1; layer >= 0; --layer) sum(schedule, layer);
  schedule.add("complete_gradients", -1, 0, 0, [&own = own_](const Frame& f) { own.complete_gradients(f.stream); });
  sum(schedule, kEmbeddingUnit);
}

}  // namespace tokenring
