// Data parallelism: the gradients of a step, summed over all ranks of a mesh. Weights of tokens are made for the whole
// step before anything is scattered, so it is a plain sum, over data groups and context groups alike.
//
// A bucket is what one layer (or the edge: embedding, final norm and head) has in the flat gradient. Buckets are summed
// in float32, in the order of the ranks, from the last layer to the first and then the edge: the bits of a sum depend
// neither on whether it ran beside the backward pass or after it, nor on the ranks' speed.
#pragma once

#include <vector>

#include "core/seams.h"
#include "parallel/mesh.h"

namespace tokenring {

class GradientSum : public GradSink {
 public:
  // `own` collects this rank's gradients; it and the mesh outlive what is queued.
  GradientSum(GradSink& own, int layers, Mesh& mesh) : own_(own), layers_(layers), mesh_(mesh) {}

  // As a sink of the last pass before an optimiser step: a bucket is queued for its sum as soon as it is ready.
  LayerGradients layer(Schedule& schedule, int layer) override { return own_.layer(schedule, layer); }
  HeadGradients head(Schedule& schedule) override { return own_.head(schedule); }
  Tensor embedding(Schedule& schedule) override { return own_.embedding(schedule); }
  void ready_head(Schedule&) override;
  void ready(Schedule&, int layer) override;
  void ready_embedding(Schedule&) override;
  std::vector<Bucket> buckets(int unit) override { return own_.buckets(unit); }
  void complete_gradients(Stream& stream) override { own_.complete_gradients(stream); }

  // All buckets at once, for a rank whose backward pass has not done it.
  void add(Schedule&);

 private:
  void sum(Schedule&, int unit);
  void sum_behind(Schedule&, int unit);

  GradSink& own_;
  int layers_;
  Mesh& mesh_;
  int behind_ = kNone;
  static constexpr int kNone = -3;
};

}  // namespace tokenring
