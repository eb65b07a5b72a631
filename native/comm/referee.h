// Who is where: follows what each rank of a communicator has queued, and tells when they disagree, when one waits for
// another that will not come, and whom a rank is missing. NCCL itself knows none of that. No threads, no sockets: the
// hub (comm/hub.h) tells it what happens.
//
// A collective passes when it is next on all ranks; an exchange when each of its messages has met its counterpart in a
// group that is next on the peer. Nothing is buffered: a send waits for its receive, as it may in NCCL. A rank whose
// next operation has not passed waits for others. A circle of ranks that wait for each other will never end, and a rank
// that has gone will not come.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/call.h"

namespace tokenring::comm {

struct Message {
  bool sends;
  int32_t peer;
  int64_t count;
  uint8_t dtype;
};

// An operation of one rank. Messages of an exchange.
struct Announcement {
  Call call;
  std::vector<Message> messages;
};

// Why the communicator is broken: the Failure of all ranks.
struct Verdict {
  std::string code, reason;
};

class Referee {
 public:
  using Time = std::chrono::steady_clock::time_point;
  explicit Referee(int size, const RankNames& = {});

  // What ranks do. Operations of a rank count from 1; 0 is joining. After a verdict nothing changes any more.
  void joined(int rank, const std::string& process);
  void queued(int rank, Announcement);
  void began(int rank, uint64_t op);
  void finished(int rank, uint64_t op);
  // It said goodbye, or was lost without.
  void gone(int rank, bool lost, Time now);
  void aborted(int rank, const std::string& why);
  // NCCL failed there: "all_reduce #1: remote error". Who is to blame may be learnt a little later: see tick().
  void failed(int rank, const std::string& error, Time now);
  // It has waited too long. `silent`: for how many seconds nothing was heard of each rank.
  void late(int rank, double seconds, const std::vector<double>& silent);
  void tick(Time now);

  int size() const { return static_cast<int>(ranks_.size()); }
  bool has_joined(int rank) const { return ranks_[rank].here; }
  bool all_joined() const;
  // How many operations of the rank have passed.
  uint64_t passed(int rank) const { return ranks_[rank].passed; }
  const std::optional<Verdict>& verdict() const { return verdict_; }

 private:
  struct Operation : Announcement {
    size_t unmet = 0;  // messages, once it is next
  };
  struct Rank {
    bool here = false, gone = false, lost = false, entered = false;
    std::string process;
    std::deque<Operation> operations;  // that have not passed, or not finished
    uint64_t first = 1;                // the number of the first of them
    uint64_t queued = 0, passed = 0, begun = 0, finished = 0;
    bool joining = true;
    std::string last = "join";
    Time gone_at{};
  };
  struct Posted {
    int rank;
    Message message;
    std::string call;
  };
  // Of messages from one rank to another: those that wait for their counterpart, of one side.
  using Lane = std::deque<Posted>;

  Operation* next(int rank);  // the first that has not passed
  void advance();
  bool pass_collective();
  bool enter(int rank);
  void meet(int from, int to);
  void pass(int rank);
  void trim(int rank);
  std::vector<int> needs(int rank);
  void look_for_ends();
  void in_vain(int rank, const std::string& operation, int other);
  bool look_for_circle(int rank, std::vector<int>& path, std::vector<char>& seen);
  bool looks_lost(int rank, int other);
  // Ranks that take part in a rank's oldest unfinished operation but have not come to it on their GPU.
  std::vector<int> behind(int rank);
  std::string activity(int rank, bool of_itself = false) const;
  std::string here(int rank) const { return name_of_rank(rank, size(), names_); }
  std::string name(int rank) const { return "rank " + std::to_string(number_of(rank, names_)); }
  std::string end_of(int rank) const;
  void decide(const char* code, std::string reason);

  const RankNames names_;
  std::vector<Rank> ranks_;
  std::map<std::pair<int, int>, std::pair<Lane, Lane>> lanes_;  // sends, receives
  std::vector<int> changed_;                                    // ranks to look at
  int gone_ = 0;
  std::optional<Verdict> verdict_;
  struct Error {
    int rank;
    std::string text;
    Time at;
  };
  std::optional<Error> error_;
};

}  // namespace tokenring::comm
