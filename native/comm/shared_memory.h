// The communicator of CPU ranks over a Region.
//
// A collective goes in steps of at most kChunk bytes a rank: each rank writes into its outbox, publishes the step,
// waits until all have published it, and reads from the outboxes of the others. Outboxes alternate, so one wait a step
// is enough: who publishes step s has read all of step s - 1, and nobody writes over step s - 1 before everyone
// published s. Messages between two ranks go through a mailbox of their own, in chunks too.
//
// What all have published is monotone, so a rank can tell for certain that another one will never come: see the
// checks in wait_for().
#pragma once

#include <functional>
#include <mutex>

#include "comm/call.h"
#include "comm/communicator.h"
#include "comm/region.h"

namespace tokenring::comm {

class SharedMemory final : public Communicator {
 public:
  explicit SharedMemory(const CommunicatorOptions&);
  ~SharedMemory() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void join() override;
  void broadcast(Stream&, Tensor x, int root) override;
  void all_reduce(Stream&, Tensor x, Reduction) override;
  void reduce_scatter(Stream&, Tensor in, Tensor out, Reduction) override;
  void all_gather(Stream&, Tensor in, Tensor out) override;
  void exchange(Stream&, std::vector<Transfer> group) override;
  void barrier(Stream&) override;
  void abort(const std::string& why) noexcept override;

 private:
  using Ranks = uint64_t;  // one bit a rank

  // Queues an operation, numbered when it runs: collectives and exchanges count apart.
  void queue(Stream&, Kind, std::function<void(uint64_t number)>);

  // The steps of a collective.
  std::byte* begin_step();  // where this rank's data of the step goes
  void finish_step(const Call&);
  const std::byte* read(int rank) const { return region_.outbox(rank, step_); }
  void all_reduce_now(const Call&, Tensor, Reduction);
  void exchange_now(const std::vector<Transfer>&);

  // Waits until `missing` is 0; fails when one of those it names can no longer come, or at the deadline.
  void wait_for(const std::function<Ranks()>& missing);
  // Why rank r, for which this one waits, will never come; empty if it still may. `look`: ask the system too.
  std::string lost(int r, bool look) const;

  // What a rank was last seen doing, for messages.
  std::string activity(int r) const;
  std::string here() const { return name_of_rank(rank_, size_, names_); }
  // "rank 5": by its number in the world.
  std::string name(int r) const { return "rank " + std::to_string(number_of(r, names_)); }

  // Makes the communicator useless for all ranks; the first cause stays.
  void mark_broken(const char* code, const std::string& reason) noexcept;
  [[noreturn]] void break_all(const char* code, const std::string& reason);
  [[noreturn]] void throw_broken() const;
  void ring_others();

  const UniqueId id_;
  const int rank_, size_;
  const std::chrono::milliseconds timeout_;
  const RankNames names_;
  Region region_;
  RankState& me_;
  std::mutex running_;
  std::atomic<bool> aborted_ = false;
  uint64_t collectives_ = 0, exchanges_ = 0, step_ = 0;
};

}  // namespace tokenring::comm
