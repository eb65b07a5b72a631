#include "comm/referee.h"

#include <algorithm>
#include <cstdio>
#include <sstream>

namespace tokenring::comm {
namespace {

// How long what was lost may still turn out to have been enough, and an error of NCCL to have a name.
constexpr std::chrono::milliseconds kGrace{1000};
constexpr double kSilent = 1.0;  // seconds, of ten heartbeats

bool is_exchange(const Announcement& operation) { return static_cast<Kind>(operation.call.kind) == Kind::exchange; }

// Whether one of its messages is to or from the rank.
bool meets(const Announcement& exchange, int rank) {
  return std::any_of(exchange.messages.begin(), exchange.messages.end(),
                     [&](const Message& message) { return message.peer == rank; });
}

std::string in_seconds(double seconds) {
  std::ostringstream text;
  text << seconds << " s";
  return text.str();
}

}  // namespace

Referee::Referee(int size, const RankNames& names) : names_(names), ranks_(size) {}

void Referee::decide(const char* code, std::string reason) {
  if (!verdict_) verdict_ = Verdict{code, std::move(reason)};
}

bool Referee::all_joined() const {
  return std::all_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return rank.here; });
}

// --- what ranks do -----------------------------------------------------------------------------------------

void Referee::joined(int rank, const std::string& process) {
  ranks_[rank].here = true;
  ranks_[rank].process = process;
  changed_.assign(1, rank);
  look_for_ends();
}

void Referee::queued(int rank, Announcement what) {
  Rank& r = ranks_[rank];
  ++r.queued;
  r.last = comm::name_of(what.call);
  r.operations.push_back({std::move(what)});
  changed_.assign(1, rank);
  advance();
}

void Referee::began(int rank, uint64_t op) { ranks_[rank].begun = std::max(ranks_[rank].begun, op); }

void Referee::finished(int rank, uint64_t op) {
  Rank& r = ranks_[rank];
  r.joining = false;
  r.begun = std::max(r.begun, op);
  r.finished = std::max(r.finished, op);
  trim(rank);
}

void Referee::gone(int rank, bool lost, Time now) {
  Rank& r = ranks_[rank];
  if (r.gone) return;
  r.gone = true;
  r.lost = lost;
  r.gone_at = now;
  ++gone_;
  for (changed_.clear(); static_cast<int>(changed_.size()) < size();)
    changed_.push_back(static_cast<int>(changed_.size()));
  look_for_ends();
}

void Referee::aborted(int rank, const std::string& why) {
  decide("COMMUNICATOR", here(rank) + " aborted it in " + activity(rank, true) + ": " + why);
}

void Referee::failed(int rank, const std::string& error, Time now) {
  if (!error_) error_ = Error{rank, error, now};
}

void Referee::late(int rank, double seconds, const std::vector<double>& silent) {
  std::vector<std::pair<int, std::string>> missing;
  const bool joining = ranks_[rank].joining;
  for (int r = 0; r < size(); ++r)
    if (joining && !ranks_[r].here) missing.push_back({r, activity(r)});
  if (!joining) {
    for (const int r : needs(rank)) missing.push_back({r, activity(r)});
    if (missing.empty())
      for (const int r : behind(rank)) missing.push_back({r, activity(r) + ", which its GPU has not come to"});
  }
  if (missing.empty())
    for (int r = 0; r < size(); ++r)
      if (r != rank && silent[r] >= kSilent)
        missing.push_back({r, activity(r) + ", not heard of for " + in_seconds(silent[r])});
  std::ostringstream text;
  text << here(rank) << " waited in " << activity(rank, true) << " for " << in_seconds(seconds) << "; missing:";
  for (const auto& [r, what] : missing) text << " " << name(r) << " (" << what << ")";
  if (missing.empty())
    text << " nobody: all ranks are in it and NCCL does not go on; look at the network, and at what NCCL_DEBUG=INFO "
            "says";
  else
    text << "; look at those ranks, or give a longer timeout";
  decide("TIMEOUT", text.str());
}

void Referee::tick(Time now) {
  if (verdict_) return;
  for (int other = 0; other < size(); ++other) {
    // An error of NCCL's is taken for the end of the rank that has gone.
    if (!ranks_[other].gone || (!error_ && now - ranks_[other].gone_at < kGrace)) continue;
    for (int r = 0; r < size() && !verdict_; ++r)
      if (looks_lost(r, other)) in_vain(r, comm::name_of(ranks_[r].operations.front().call), other);
  }
  if (!error_ || now - error_->at < kGrace || verdict_) return;
  decide("COMMUNICATOR", "NCCL failed on " + here(error_->rank) + " in " + error_->text);
}

// --- how far they are --------------------------------------------------------------------------------------

Referee::Operation* Referee::next(int rank) {
  Rank& r = ranks_[rank];
  const uint64_t at = r.passed + 1 - r.first;
  return at < r.operations.size() ? &r.operations[at] : nullptr;
}

void Referee::trim(int rank) {
  Rank& r = ranks_[rank];
  while (!r.operations.empty() && r.first <= std::min(r.passed, r.finished)) {
    r.operations.pop_front();
    ++r.first;
  }
}

void Referee::pass(int rank) {
  ++ranks_[rank].passed;
  ranks_[rank].entered = false;
  changed_.push_back(rank);
  trim(rank);
}

void Referee::advance() {
  for (bool moved = true; moved && !verdict_;) {
    moved = false;
    for (int r = 0; r < size() && !verdict_; ++r) moved = enter(r) || moved;
    moved = (!verdict_ && pass_collective()) || moved;
  }
  look_for_ends();
}

// Posts the messages of an exchange that has become next.
bool Referee::enter(int rank) {
  Operation* operation = next(rank);
  if (!operation || !is_exchange(*operation) || ranks_[rank].entered) return false;
  ranks_[rank].entered = true;
  operation->unmet = operation->messages.size();
  if (operation->messages.empty()) {
    pass(rank);
    return true;
  }
  // Copies: a message that meets its counterpart may let the operation pass.
  const std::vector<Message> messages = operation->messages;
  const std::string call = comm::name_of(operation->call);
  for (const Message& message : messages) {
    auto& [sends, receives] =
        lanes_[message.sends ? std::pair{rank, int{message.peer}} : std::pair{int{message.peer}, rank}];
    (message.sends ? sends : receives).push_back({rank, message, call});
  }
  for (const Message& message : messages) {
    if (message.sends)
      meet(rank, message.peer);
    else
      meet(message.peer, rank);
    if (verdict_) return true;
  }
  return true;
}

void Referee::meet(int from, int to) {
  auto& [sends, receives] = lanes_[{from, to}];
  while (!sends.empty() && !receives.empty()) {
    const Posted sent = sends.front(), received = receives.front();
    sends.pop_front();
    receives.pop_front();
    if (sent.message.count != received.message.count || sent.message.dtype != received.message.dtype) {
      std::ostringstream text;
      text << name(from) << " sent " << sent.message.count << " x "
           << tokenring::name_of(static_cast<DType>(sent.message.dtype)) << " in " << sent.call << ", but " << name(to)
           << " receives " << received.message.count << " x "
           << tokenring::name_of(static_cast<DType>(received.message.dtype)) << " from it in " << received.call
           << "; both must name the same count and dtype";
      return decide("COMMUNICATOR", text.str());
    }
    for (const int rank : {from, to})
      if (--next(rank)->unmet == 0) pass(rank);
  }
}

// One collective that is next on all ranks.
bool Referee::pass_collective() {
  int first = -1;
  size_t there = 0;
  for (int r = 0; r < size(); ++r) {
    const Operation* operation = next(r);
    if (!operation || is_exchange(*operation)) continue;
    ++there;
    if (first < 0) first = r;
    const Operation* of_first = next(first);
    if (of_first->call == operation->call) continue;
    decide("COMMUNICATOR", disagreement(of_first->call, first, operation->call, r, size(), names_));
    return false;
  }
  if (there < ranks_.size()) return false;
  for (int r = 0; r < size(); ++r) pass(r);
  return true;
}

// --- who waits for whom ------------------------------------------------------------------------------------

std::vector<int> Referee::needs(int rank) {
  std::vector<int> those;
  const Operation* mine = next(rank);
  if (!mine) return those;
  if (is_exchange(*mine)) {
    for (int peer = 0; peer < size(); ++peer) {
      const auto waits = [&](const std::pair<int, int>& lane, bool sends) {
        const auto at = lanes_.find(lane);
        if (at == lanes_.end()) return false;
        return !(sends ? at->second.first : at->second.second).empty();
      };
      if (waits({rank, peer}, true) || waits({peer, rank}, false)) those.push_back(peer);
    }
    return those;
  }
  for (int r = 0; r < size(); ++r) {
    const Operation* other = next(r);
    if (!other || is_exchange(*other)) those.push_back(r);
  }
  return those;
}

// Of ranks whose next operation is another than before: only they can have come to wait in vain.
void Referee::look_for_ends() {
  if (verdict_) return;
  for (const int r : changed_) {
    if (gone_ == 0) break;
    if (ranks_[r].gone) continue;
    std::vector<int> waits_for = needs(r);
    for (int other = 0; other < size(); ++other)
      if (ranks_[r].here && ranks_[r].joining && ranks_[other].joining) waits_for.push_back(other);
    for (const int other : waits_for)
      if (ranks_[other].gone) return in_vain(r, next(r) ? comm::name_of(next(r)->call) : "join", other);
  }
  std::vector<char> seen(ranks_.size());
  for (const int r : changed_) {
    std::vector<int> path;
    if (look_for_circle(r, path, seen)) return;
  }
}

void Referee::in_vain(int rank, const std::string& operation, int other) {
  decide("COMMUNICATOR", here(rank) + " waits in " + operation + " for " + name(other) + end_of(other));
}

bool Referee::look_for_circle(int rank, std::vector<int>& path, std::vector<char>& seen) {
  const auto at = std::find(path.begin(), path.end(), rank);
  if (at != path.end()) {
    path.erase(path.begin(), at);
    std::rotate(path.begin(), std::min_element(path.begin(), path.end()), path.end());
    std::ostringstream text;
    text << here(path[0]) << " waits in " << comm::name_of(next(path[0])->call);
    for (size_t i = 1; i < path.size(); ++i)
      text << " for " << name(path[i]) << ", which waits in " << comm::name_of(next(path[i])->call);
    text << " for " << name(path[0])
         << "; all ranks must make the same calls in the same order, and sends that answer "
            "each other belong into one group";
    decide("COMMUNICATOR", text.str());
    return true;
  }
  if (seen[rank] || !next(rank)) return false;
  path.push_back(rank);
  for (const int other : needs(rank))
    if (look_for_circle(other, path, seen)) return true;
  path.pop_back();
  seen[rank] = true;
  return false;
}

// Whether `rank` is in an operation that all have queued, and that `other` left unfinished.
bool Referee::looks_lost(int rank, int other) {
  const Rank &r = ranks_[rank], &o = ranks_[other];
  if (r.gone || r.operations.empty() || r.finished >= r.passed || o.operations.empty()) return false;
  const Operation& mine = r.operations.front();
  if (!is_exchange(mine))
    return std::any_of(o.operations.begin(), o.operations.end(),
                       [&](const Operation& theirs) { return theirs.call == mine.call; });
  return meets(mine, other);
}

std::vector<int> Referee::behind(int rank) {
  std::vector<int> those;
  const Rank& r = ranks_[rank];
  if (r.finished == r.queued) return those;
  const Operation& mine = r.operations[r.finished + 1 - r.first];
  for (int other = 0; other < size(); ++other) {
    if (other == rank) continue;
    const Rank& o = ranks_[other];
    uint64_t op = o.first;
    for (const Operation& theirs : o.operations) {
      const bool same = is_exchange(mine) ? is_exchange(theirs) && meets(mine, other) : theirs.call == mine.call;
      if (same && op > o.begun) {
        those.push_back(other);
        break;
      }
      ++op;
    }
  }
  return those;
}

std::string Referee::activity(int rank, bool of_itself) const {
  const Rank& r = ranks_[rank];
  if (!r.here) return "never joined";
  if (r.joining) return "join";
  if (r.finished < r.queued) return comm::name_of(r.operations[r.finished + 1 - r.first].call);
  return of_itself ? r.last : "its last call, " + r.last;
}

std::string Referee::end_of(int rank) const {
  const Rank& r = ranks_[rank];
  if (!r.lost) return ", which has left the communicator after " + activity(rank);
  return ", whose " + r.process + " has died; it was last seen in " + activity(rank);
}

}  // namespace tokenring::comm
