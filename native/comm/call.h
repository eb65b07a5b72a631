// What a rank says about an operation: what the ranks are compared by, and what messages call it. And what can be said
// against an operation before it is queued.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace tokenring::comm {

enum class Kind : uint8_t { join, broadcast, all_reduce, reduce_scatter, all_gather, barrier, exchange };

// All ranks must say the same of a collective. Of an exchange only kind and sequence count.
struct Call {
  uint64_t sequence;  // from 1; collectives and exchanges count apart
  uint8_t kind, dtype, reduction;
  uint16_t root;
  int64_t count;
  bool operator==(const Call&) const = default;
};

Call call_of(uint64_t sequence, Kind, const Tensor&, int root = 0, Reduction = Reduction::sum);
// "all_reduce #2"; "join"
std::string name_of(Kind, uint64_t sequence);
inline std::string name_of(const Call& call) { return name_of(static_cast<Kind>(call.kind), call.sequence); }
// A rank's number in the world: what messages call it by, so that whoever reads them knows where to look.
inline int number_of(int rank, const RankNames& names) {
  return names.world ? names.first + rank * names.stride : rank;
}
// "all_reduce(sum) of 1000 x f32"
std::string text_of(const Call&, const RankNames& = {});
// "rank 1 of 3"; of a group "rank 5 of 8 (rank 1 of its context group, ranks 4 to 7)"
std::string name_of_rank(int rank, int size, const RankNames& = {});
// What ranks that called different things fail with.
std::string disagreement(const Call& of_lower, int lower, const Call& of_higher, int higher, int size,
                         const RankNames& = {});

// Failure INVALID_ARGUMENT for what cannot be, whatever the other ranks do.
void check_broadcast(const Tensor& x, int root, int size);
void check_all_reduce(const Tensor& x);
void check_reduce_scatter(const Tensor& in, const Tensor& out, int size);
void check_all_gather(const Tensor& in, const Tensor& out, int size);
void check_exchange(const std::vector<Transfer>& group, int rank, int size);

}  // namespace tokenring::comm
