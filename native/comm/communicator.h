// Ranks that compute together: collectives, and messages between two of them, in the order of a stream.
//
// Rules that every implementation keeps:
//  - an operation is queued on the stream it is given and returns at once; shapes are checked before it is queued;
//  - all ranks make the same collectives in the same order, and the calls of one communicator go to one stream at a
//    time. Ranks that disagree (kind, count, dtype, reduction, root) all end with a Failure, none hangs;
//  - sums go in an order that timing does not change, and all ranks get the same bits. Over shared memory it is that of
//    the ranks; NCCL has its own (comm/nccl.h);
//  - every wait has a deadline. After a Failure the communicator is broken, on all ranks, and every later operation
//    fails with the cause of the first.
// Failure codes: COMMUNICATOR (a rank disagreed, left, died or aborted), TIMEOUT, ABORTED (by this rank).
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/tensor.h"

namespace tokenring {

// What the ranks of one communicator have in common before they have met: one of them makes it, the program hands it
// to the others. As large as NCCL's.
struct UniqueId {
  std::array<uint8_t, 128> bytes{};
};

enum class Reduction : uint8_t { sum, max, min };

// One message of a group. Messages between two ranks arrive in the order in which they were sent.
struct Transfer {
  enum class Way : uint8_t { send, receive } way;
  int peer;
  Tensor tensor;
};

class Communicator {
 public:
  virtual ~Communicator() = default;  // leaves: whoever waits for this rank from then on fails
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Blocks until all ranks are there; abort() ends it. Once, before anything else.
  virtual void join() = 0;

  // x of `root` to all.
  virtual void broadcast(Stream&, Tensor x, int root) = 0;
  // In place. f32, bf16 (shared memory sums it in float32) or i32.
  virtual void all_reduce(Stream&, Tensor x, Reduction) = 0;
  // `in` holds size() parts of out's size; out becomes the reduction of everybody's part number rank().
  virtual void reduce_scatter(Stream&, Tensor in, Tensor out, Reduction) = 0;
  // `out` holds size() parts of in's size: rank 0's, rank 1's and so on.
  virtual void all_gather(Stream&, Tensor in, Tensor out) = 0;
  // Sends and receives that make progress together, so that rings and pairs cannot lock each other. Every send needs
  // its receive, with the same count and dtype, in a group of the peer, and may wait for it: two ranks that both send
  // and then receive do so in one group.
  virtual void exchange(Stream&, std::vector<Transfer> group) = 0;
  // Passed by nobody before all have come.
  virtual void barrier(Stream&) = 0;

  // From any thread, at once: ends what runs here, and breaks the communicator for all ranks.
  virtual void abort(const std::string& why) noexcept = 0;
};

// What messages call the ranks of a communicator that holds some of a larger world: those of a mesh's groups. Its rank
// r is rank first + r * stride of a world of so many; world = 0: its ranks have no other numbers. Travels between
// ranks.
struct RankNames {
  int32_t first = 0, stride = 1, world = 0;
  std::array<char, 20> group{};  // "context group"
};

// A rank's place in a communicator.
struct CommunicatorOptions {
  UniqueId id;
  int rank = 0, size = 1;
  std::chrono::milliseconds timeout{600'000};  // of every wait, that for the other ranks to join included
  RankNames names{};                           // the same on all ranks

  void check(int most_ranks) const;  // Failure INVALID_ARGUMENT that names the field
};

// What makes communicators, whatever they go over.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual UniqueId make_id() const = 0;
  // Takes the place, and waits for nobody: join() does. Failure INVALID_ARGUMENT for a rank outside the size or an id
  // of something else, COMMUNICATOR (here or from join()) if the place is taken or the ranks disagree about the size.
  virtual std::unique_ptr<Communicator> make(const CommunicatorOptions&) const = 0;
};

// Of CPU ranks, threads or processes of one user on one host, over shared memory that vanishes with the last of them,
// however they end. The process that makes an id keeps its memory open until all ranks have joined; it need not be a
// rank.
const Transport& shared_memory();

constexpr int kMaxSharedMemoryRanks = 64;

}  // namespace tokenring
