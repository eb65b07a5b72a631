// Attention of documents whose tokens lie on several ranks, as entries of a Schedule.
//
// The ranks of a context group stand in nodes of as many consecutive ranks each. Keys and values are gathered within a
// node, in the order of the documents; from node to node they go in a ring. Each rank attends to what its node has
// gathered and merges it (float32), while the next ones are on the way. Between nodes a rank sends the shard of one
// rank, to the rank of its own place on the next node, which gathers it there: so every shard enters a node once, and
// as many links carry a node's shards as it has ranks. Backward, the gradients of keys and values are summed within the
// node to the rank of their shard's place, follow the keys one hop behind, are added to what has arrived, and come home
// after the last.
//
//  - Nodes of one rank: a ring. Memory: three blocks of keys and values (and three of gradients).
//  - One node: an all-gather, and one attention. Out, lse and dq have the bits of one rank that holds everything; dk
//    and dv are summed over the ranks, in their order.
//  - Nodes of L ranks, N of them: N - 1 hops in place of N L - 1. Memory: three shards of keys and values and three
//    times as many as a node has, and of gradients as much again.
//
// Liu, Zaharia, Abbeel 2023 (ring attention); the merge is the online softmax of Milakov, Gimelshein 2018.
#pragma once

#include <vector>

#include "comm/communicator.h"
#include "core/ops.h"
#include "core/schedule.h"
#include "parallel/shard.h"

namespace tokenring {

// Heads within the rows of a slot [rows, ...]: from element `first` of each row on.
struct HeadSlot {
  Slot slot;
  int64_t first = 0;
  HeadRows at(const Frame&) const;
};

class RingAttention {
 public:
  // shards: of all ranks of `context`, the same on every rank. node: the ranks of this rank's node, consecutive ones of
  // `context`; null where that is this rank alone; `context` itself where there is one node, if it is of one rank, too.
  // `ops` and communicators outlive what is queued, this object the run of the schedules. Failure INVALID_ARGUMENT
  // unless there is one shard a rank, see check_shards(), the nodes are alike, and the device can do the heads.
  RingAttention(const Ops& ops, Communicator& context, Communicator* node, AttentionHeads heads,
                std::vector<Shard> shards);

  int64_t rows() const { return rounds_[0].carried; }

  // q, k and v, all f32 or all of the activations' dtype, and out, f32 or of theirs, hold rows() rows of their heads,
  // lse f32 [rows, heads]; out and lse are overwritten. Keys and values travel as they are. What goes to other ranks
  // goes on Track::context; when the entries end, compute is behind all of it.
  void forward(Schedule&, int layer, HeadSlot q, HeadSlot k, HeadSlot v, Slot out, Slot lse) const;
  // out and lse are forward()'s, dout of out's dtype. dq (f32), dk and dv (f32 or of the keys' dtype) are overwritten,
  // and so are the whole rows that hold dq, which on the CPU lie as far apart as those of q. What the ranks find of dk
  // and dv travels and is summed in f32.
  void backward(Schedule&, int layer, Slot dout, HeadSlot q, HeadSlot k, HeadSlot v, Slot out, Slot lse, HeadSlot dq,
                HeadSlot dk, HeadSlot dv) const;

 private:
  // In round t this node attends to what the node t places before it holds.
  struct Round {
    int64_t carried = 0;  // rows of the shard that this rank has of it
    int64_t rows = 0;     // of all that the node gathers
    int64_t pairs = 0;
    std::vector<Piece> pieces;  // from the shards in the order of the node's ranks to the order of the documents
    std::vector<AttentionTile> tiles;
  };
  // Keys and values of the rounds: own and received shards, and what the node has gathered of them.
  struct Keys {
    Slot own, received[2], parts, whole[2];
  };

  bool gathers() const { return node_ != nullptr; }
  int rounds() const { return static_cast<int>(rounds_.size()); }
  int64_t kv_width() const { return int64_t{heads_.kv_heads} * heads_.head_dim; }
  // Keys and values (or their gradients) of some rows, side by side.
  Slot block(Schedule& s, DType dtype, int64_t rows) const { return s.slot(dtype, {rows, 2 * kv_width()}); }
  Slot shard_block(Schedule& s, DType dtype) const { return block(s, dtype, gathers() ? most_ : rows()); }
  HeadSlot keys(Slot block) const { return {block, 0}; }
  HeadSlot values(Slot block) const { return {block, kv_width()}; }
  // What this rank has of a round's shards, and all that is attended to in it.
  Slot carried(const Keys&, int round) const;
  Slot attended(const Keys&, int round) const;

  // Entries.
  Keys begin(Schedule&, int layer, HeadSlot k, HeadSlot v) const;
  void release(Schedule&, const Keys&) const;
  void copy(Schedule&, Track, int layer, HeadSlot from, HeadSlot to, int64_t width, bool add = false) const;
  void unpack(Schedule&, int layer, Slot from, HeadSlot dk, HeadSlot dv) const;
  void zero(Schedule&, int layer, Slot) const;
  void arrive(Schedule&, int layer) const;  // compute waits for what was sent so far
  // To the next node goes `give`, from the one before comes `take`, at once.
  void pass(Schedule&, int layer, std::vector<Slot> give, std::vector<Slot> take) const;
  void gather(Schedule&, int layer, const Keys&, int round) const;
  // The way back: the rows of this rank's shard of the round, summed over the node.
  void scatter_sum(Schedule&, int layer, int round, Slot whole, Slot parts, Slot own) const;
  void attend(Schedule&, int layer, HeadSlot q, Slot keys_and_values, int round, Slot out, Slot lse) const;
  struct Backward {
    Slot dout, lse, delta;
    HeadSlot q, dq;
  };
  void attend_backward(Schedule&, int layer, const Backward&, Slot keys_and_values, int round, Slot gradient) const;

  const Ops& ops_;
  Communicator& context_;
  Communicator* node_;
  AttentionHeads heads_;
  int rank_, size_, local_;  // local_: ranks of a node
  std::vector<Round> rounds_;
  int64_t most_ = 0;    // rows of the largest shard
  int64_t widest_ = 0;  // and of the largest node
  bool padded_ = false;
};

}  // namespace tokenring
