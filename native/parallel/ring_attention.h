// Attention of documents whose tokens lie on several ranks.
//
//  - ring: keys and values go from rank to rank; each rank attends to what has arrived and merges it (float32), while
//    the next ones are on the way. Backward, the gradients of keys and values follow them one hop behind and come home
//    after the last. Memory: two blocks of keys and values (and two of gradients).
//  - all_gather: all keys and values on every rank, in the order of the documents, then one attention. Out, lse and dq
//    have the bits of one rank that holds everything; dk and dv are summed over the ranks, in their order.
//
// Liu, Zaharia, Abbeel 2023 (ring attention); the merge is the online softmax of Milakov, Gimelshein 2018.
#pragma once

#include <vector>

#include "comm/communicator.h"
#include "core/ops.h"
#include "parallel/shard.h"

namespace tokenring {

enum class ContextSchedule { ring, all_gather };

class RingAttention {
 public:
  // shards: of all ranks, the same on every rank. `ops` and `communicator` outlive what is queued.
  // Failure INVALID_ARGUMENT unless there is one shard a rank, see check_shards(), and the device can do the heads.
  RingAttention(const Ops& ops, Communicator& communicator, AttentionHeads heads, std::vector<Shard> shards,
                ContextSchedule schedule);

  int64_t rows() const { return rows_of(shards_[rank_]); }
  size_t forward_workspace() const;
  size_t backward_workspace() const;

  // f32: q, out [rows, heads * head_dim], k, v [rows, kv_heads * head_dim], lse [rows, heads]; all but q, k and v are
  // overwritten. Queued on two streams; both must be synchronised before the memory goes.
  void forward(Stream& compute, Stream& wire, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
               Tensor workspace) const;
  // out and lse are forward()'s; dq, dk, dv are overwritten.
  void backward(Stream& compute, Stream& wire, Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                Tensor dq, Tensor dk, Tensor dv, Tensor workspace) const;

 private:
  struct Block {
    Tensor k, v;
  };
  Block block(std::byte* memory, int64_t rows) const;  // takes 2 * block_bytes()
  size_t block_bytes() const;                          // of one rank's keys, padded to the largest shard
  int owner(int step) const { return (rank_ - step + size_) % size_; }
  void pass(Stream& wire, const Block& give, const Block& take) const;
  void gather(Stream& wire, Tensor own, std::byte* parts, Tensor whole) const;
  void scatter_sum(Stream& compute, Stream& wire, Tensor whole, std::byte* parts, std::byte* own, Tensor out) const;

  const Ops& ops_;
  Communicator& communicator_;
  AttentionHeads heads_;
  std::vector<Shard> shards_;
  ContextSchedule schedule_;
  int rank_, size_;
  int64_t most_ = 0;                               // rows of the largest shard
  std::vector<std::vector<AttentionTile>> tiles_;  // ring: by step
  Shard whole_;                                    // all_gather
  std::vector<Piece> pieces_;
};

}  // namespace tokenring
