#include "parallel/gradient_sum.h"

namespace tokenring {

void GradientSum::sum(Schedule& schedule, int layer) {
  const std::vector<Tensor> bucket = own_.bucket(layer);
  int64_t bytes = 0;
  for (const Tensor& part : bucket) bytes += static_cast<int64_t>(part.bytes());
  schedule.add(Track::gradients, {Track::compute}, "all_reduce", layer, bytes, 0,
               [&world = mesh_.world(), bucket](const Frame& f) {
                 for (const Tensor& part : bucket) world.all_reduce(f.stream, part, Reduction::sum);
               });
}

void GradientSum::ready(Schedule& schedule, int layer) {
  own_.ready(schedule, layer);
  sum(schedule, layer);
}

void GradientSum::ready_edge(Schedule& schedule) {
  own_.ready_edge(schedule);
  schedule.add("complete_gradients", -1, 0, 0, [&own = own_](const Frame& f) { own.complete_gradients(f.stream); });
  sum(schedule, -1);
}

void GradientSum::add(Schedule& schedule) {
  for (int layer = layers_ - 1; layer >= 0; --layer) ready(schedule, layer);
  ready_edge(schedule);
}

}  // namespace tokenring
