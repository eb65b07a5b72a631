// The gradients that a rank collects, and where its share of their sum over ranks goes.
//
//  - Not sharded: one flat buffer of all of them, in which they are summed.
//  - Stage 1: the same, and a buffer for this rank's share of the sum.
//  - Stage 3: room for two layers and one edge (the head, then the embedding). A layer's gradients are summed over the
//    shard group, each rank keeping its share, while the layer before it computes. What earlier passes of the step have
//    left in the share goes into the room first, so that the sum of a pass goes on from it.
#pragma once

#include "core/device.h"
#include "core/seams.h"
#include "model/layout.h"
#include "parallel/mesh.h"

namespace tokenring {

class Gradients {
 public:
  // All arguments outlive it; memory comes with need(). mesh: null at stage 0.
  Gradients(Device&, const DecoderConfig&, const Layout&, const Share&, int stage, Mesh* mesh);

  // Makes the memory, zero. The rest needs it.
  void need();
  bool any() const { return flat_.data() || share_of_sum_.data(); }

  // As GradSink has them.
  HeadGradients head(Schedule&);
  LayerGradients layer(Schedule&, int layer);
  Tensor embedding(Schedule&);
  void ready(Schedule&, int unit);
  std::vector<Bucket> buckets(int unit) const;
  void complete(Stream&);

  // Stage 3: a pass begins; and queues the sum of what is ready, unless it is.
  void begin() {
    ready_ = kNone;
    head_open_ = false;
  }
  void flush(Schedule&);

  // What the optimiser reads: all of them, or this rank's share of the sum.
  Tensor sum() const;
  void zero(Stream&);    // all of them
  void finish(Stream&);  // those that the optimiser, which leaves zeros in sum(), has not seen

 private:
  static constexpr int kNone = -3;
  Buffer make(Stream&, int64_t elements) const;
  void clear(Stream&, const Buffer&) const;
  Tensor view(float* base, int64_t offset, int64_t rows, int64_t columns = 0) const;
  Tensor part(const Block&) const;  // of this rank, in the sum
  // Zeros at `room`, where `block` begins, but what this rank's share holds at its place.
  void continue_sum(Schedule&, int unit, std::initializer_list<Block> blocks, float* room);
  void scatter(Stream&, const Block&, float* room) const;
  float* layer_room(int layer) const;
  LayerGradients layer_views(int layer, float* base) const;

  Device& device_;
  const Ops& ops_;
  const DecoderConfig& config_;
  const Layout& layout_;
  const Share& share_;
  int stage_;
  Mesh* mesh_;
  // A tied head's, and the rows 0, 1, ... by which it is added to the embedding's.
  Buffer flat_, tied_head_, tied_rows_, share_of_sum_;
  Buffer layers_, edge_, norm_;  // stage 3
  int ready_ = kNone;            // a unit whose sum is not queued
  bool head_open_ = false;       // head() was called in this pass
};

}  // namespace tokenring
