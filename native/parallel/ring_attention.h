// Attention of documents whose tokens lie on several ranks, as entries of a Schedule.
//
//  - ring: keys and values go from rank to rank; each rank attends to what has arrived and merges it (float32), while
//    the next ones are on the way. Backward, the gradients of keys and values follow them one hop behind, are added to
//    what has arrived, and come home after the last. Memory: three blocks of keys and values (and three of gradients).
//  - all_gather: all keys and values on every rank, in the order of the documents, then one attention. Out, lse and dq
//    have the bits of one rank that holds everything; dk and dv are summed over the ranks, in their order.
//
// Liu, Zaharia, Abbeel 2023 (ring attention); the merge is the online softmax of Milakov, Gimelshein 2018.
#pragma once

#include <vector>

#include "comm/communicator.h"
#include "core/ops.h"
#include "core/schedule.h"
#include "parallel/shard.h"

namespace tokenring {

enum class ContextSchedule { ring, all_gather };

// Heads within the rows of a slot [rows, ...]: from element `first` of each row on.
struct HeadSlot {
  Slot slot;
  int64_t first = 0;
  HeadRows at(const Frame&) const;
};

class RingAttention {
 public:
  // shards: of all ranks, the same on every rank. `ops` and `communicator` outlive what is queued, this object the run
  // of the schedules. Failure INVALID_ARGUMENT unless there is one shard a rank, see check_shards(), and the device can
  // do the heads.
  RingAttention(const Ops& ops, Communicator& communicator, AttentionHeads heads, std::vector<Shard> shards,
                ContextSchedule schedule);

  int64_t rows() const { return rows_of(shards_[rank_]); }

  // f32: q, k, v and out hold rows() rows of their heads, lse [rows, heads]; out and lse are overwritten. What goes to
  // other ranks goes on Track::context; when the entries end, compute is behind all of it.
  void forward(Schedule&, int layer, HeadSlot q, HeadSlot k, HeadSlot v, Slot out, Slot lse) const;
  // out and lse are forward()'s. dq, dk, dv are overwritten, and so are the whole rows that hold dq; rows of dq lie as
  // far apart as those of q.
  void backward(Schedule&, int layer, Slot dout, HeadSlot q, HeadSlot k, HeadSlot v, Slot out, Slot lse, HeadSlot dq,
                HeadSlot dk, HeadSlot dv) const;

 private:
  int owner(int step) const { return (rank_ - step + size_) % size_; }
  int64_t rows_at(int step) const { return rows_of(shards_[owner(step)]); }
  int64_t kv_width() const { return int64_t{heads_.kv_heads} * heads_.head_dim; }
  // Keys and values (or their gradients) of some rows, side by side.
  Slot block(Schedule& s, int64_t rows) const { return s.slot(DType::f32, {rows, 2 * kv_width()}); }
  HeadSlot keys(Slot block) const { return {block, 0}; }
  HeadSlot values(Slot block) const { return {block, kv_width()}; }

  // Entries.
  void copy(Schedule&, int layer, HeadSlot from, HeadSlot to, int64_t width, bool add = false) const;
  void pack(Schedule&, int layer, HeadSlot k, HeadSlot v, Slot to) const;
  void unpack(Schedule&, int layer, Slot from, HeadSlot dk, HeadSlot dv) const;
  void zero(Schedule&, int layer, Slot) const;
  void arrive(Schedule&, int layer) const;  // compute waits for what was sent so far
  // To the next rank goes `give`, from the one before comes `take`, at once.
  void pass(Schedule&, int layer, std::vector<Slot> give, std::vector<Slot> take) const;
  void gather(Schedule&, int layer, Slot own, Slot parts, Slot whole) const;
  void scatter_sum(Schedule&, int layer, Slot whole, Slot parts, Slot own) const;
  void attend(Schedule&, int layer, HeadSlot q, HeadSlot k, HeadSlot v, int step, bool merge, Slot out, Slot lse) const;
  struct Backward {
    Slot dout, lse, delta;
    HeadSlot q, dq;
  };
  void attend_backward(Schedule&, int layer, const Backward&, HeadSlot k, HeadSlot v, int step, HeadSlot dk,
                       HeadSlot dv) const;

  const Ops& ops_;
  Communicator& communicator_;
  AttentionHeads heads_;
  std::vector<Shard> shards_;
  ContextSchedule schedule_;
  int rank_, size_;
  int64_t most_ = 0;                               // rows of the largest shard
  std::vector<std::vector<AttentionTile>> tiles_;  // ring: by step
  std::vector<int64_t> pairs_;                     // of each of them
  Shard whole_;                                    // all_gather
  std::vector<Piece> pieces_;
};

}  // namespace tokenring
