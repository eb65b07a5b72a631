// The weights in the form that the backend computes with, made of float32 masters of which a rank may hold only its
// share.
//
//  - Not sharded: one copy of every matrix, made of the masters; vectors and the embedding are the masters themselves.
//  - Stage 1: the same copies on every rank, made of what the ranks gather after each change.
//  - Stage 3: room for two layers and one edge (the embedding, then the head). A layer is gathered while the one before
//    it computes; in a backward pass one gather serves recomputation and gradients.
//
// What is gathered is the master's float32 rows, or, where the backend computes with plain rows, its share of them
// rounded: half the bytes.
//
// Where the masters lie in the host's memory, vectors and embedding are copied too, the latter rounded, unless it is
// the tied head's copy.
#pragma once

#include <vector>

#include "core/device.h"
#include "core/seams.h"
#include "model/layout.h"
#include "parallel/mesh.h"

namespace tokenring {

class Weights {
 public:
  // master: this rank's share, f32 [share.elements]. All arguments outlive it. mesh: may be null at stage 0. on_host:
  // whose memory the master is; Failure INVALID_ARGUMENT where the backend has no plain rows.
  Weights(Device&, const DecoderConfig&, const Layout&, const Share&, Tensor master, int stage, Mesh* mesh,
          bool on_host);

  // As ParamSource has them.
  Tensor acquire_embedding(Schedule&);
  LayerWeights acquire(Schedule&, int layer);
  HeadWeights acquire_head(Schedule&);

  // Takes the masters as they are now; with `rounded`, after round() was given all of them. Collective at stage 1.
  void publish(Stream&, bool rounded);
  // Plain rows: masters from number `offset` on.
  void round(Stream&, int64_t offset, Tensor masters) const;

 private:
  // Where a layer's copies are.
  struct Room {
    Weight qkv, o, gate_up, down;
    Tensor rows;     // of all of them, where the backend takes plain rows
    Tensor vectors;  // f32
  };
  Buffer make(int64_t elements, DType) const;
  void round_into(Stream&, int64_t offset, Tensor masters, int64_t begin, int64_t elements, void* to) const;
  Room& room(int layer) { return rooms_[static_cast<size_t>(layer) % rooms_.size()]; }

  // A block of which every rank has its part at share.own(block) of `from`.
  void gather(Stream&, const Block&, const void* from, DType, void* to) const;
  // The block as float32: gathered into `to`, if the rank does not have it.
  const float* whole(Stream&, const Block&, const Buffer& to) const;
  void prepare(Stream&, const float* master, const Weight& to) const;
  void fill_table(Stream&, const Block&);
  void fill_layer(Stream&, int layer);
  void fill_head(Stream&, bool in_table);  // in_table: its rows are there

  // Stage 3. Units: the embedding, the layers, the head.
  static constexpr int kEmbedding = -1, kNone = -2;
  int head_unit() const { return static_cast<int>(layout_.layers.size()); }
  void enter(Schedule&, int unit);
  bool held(int unit) const;
  void fetch(Schedule&, int unit);

  Device& device_;
  const Ops& ops_;
  const DecoderConfig& config_;
  const Layout& layout_;
  const Share& share_;
  Tensor master_;
  int stage_;
  Mesh* mesh_;
  bool on_host_;  // the masters
  bool apart_;    // from what is computed with, vectors and embedding too
  bool plain_;    // plain rows are gathered, or copied from the host

  std::vector<Room> rooms_;  // of all layers, or of two
  Weight head_;
  Tensor final_norm_;  // f32
  Buffer copies_, rows_, vectors_, norm_;
  Buffer rounded_;  // plain, sharded: this rank's share
  Buffer table_;    // the embedding, where it is apart; at stage 3 also the head's rows
  Buffer head_rows_;
  Buffer staging_;  // float32 rows on their way into a copy
  Buffer vector_;   // this rank's part of a block of vectors, on its way from the host to the others

  // What the rooms will hold when the entries so far have run.
  std::vector<int> holds_;
  const Block* in_table_ = nullptr;
  bool head_held_ = false;
  int last_ = kNone;
};

}  // namespace tokenring
