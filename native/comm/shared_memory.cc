#include "comm/shared_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <sstream>
#include <thread>

#include "comm/reduce.h"
#include "core/failure.h"

namespace tokenring::comm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSpin = std::chrono::microseconds(20);
constexpr int64_t kLookMilliseconds = 100;  // how often a waiting rank looks whether the others still live
// Up to this many bytes from all ranks together, every rank reduces all of it: one step instead of two.
constexpr int64_t kSmall = 64 << 10;

// What RankState::doing holds.
struct Activity {
  uint64_t number;
  Kind kind;
  bool inside;
  uint64_t pack() const { return number << 16 | static_cast<uint64_t>(kind) << 1 | (inside ? 1 : 0); }
  static Activity unpack(uint64_t bits) { return {bits >> 16, static_cast<Kind>(bits >> 1 & 0x7F), (bits & 1) != 0}; }
  std::string text() const { return comm::name_of(kind, number); }
};

int64_t chunks(size_t bytes) { return std::max<int64_t>(1, static_cast<int64_t>((bytes + kChunk - 1) / kChunk)); }

}  // namespace

// --- joining and leaving -------------------------------------------------------------------------------

SharedMemory::SharedMemory(const CommunicatorOptions& options)
    : id_(options.id),
      rank_(options.rank),
      size_(options.size),
      timeout_(options.timeout),
      names_(options.names),
      region_(options.id, options.size),
      me_(region_.rank(options.rank)) {
  Presence absent = Presence::absent;
  if (!me_.presence.compare_exchange_strong(absent, Presence::coming)) {
    fail("COMMUNICATOR", "rank ", rank_, " of this communicator is taken already; give every rank its own number");
  }
  me_.process = static_cast<int32_t>(getpid());
  me_.started = process_start(me_.process);
  me_.doing = Activity{0, Kind::join, true}.pack();
  me_.presence = Presence::joined;
  ++region_.head().joined;
  ring_others();
}

SharedMemory::~SharedMemory() {
  me_.presence = Presence::left;
  ring_others();
}

void SharedMemory::join() {
  std::lock_guard lock(running_);
  wait_for([this] {
    Ranks missing = 0;
    for (int r = 0; r < size_; ++r)
      if (region_.rank(r).presence < Presence::joined) missing |= Ranks{1} << r;
    return missing;
  });
  close_region(id_);
  me_.doing = Activity{0, Kind::join, false}.pack();
}

// --- operations ----------------------------------------------------------------------------------------

void SharedMemory::queue(Stream& stream, Kind kind, std::function<void(uint64_t)> body) {
  stream.call([this, kind, body = std::move(body)] {
    std::lock_guard lock(running_);
    if (region_.head().broken) throw_broken();
    const uint64_t number = kind == Kind::exchange ? ++exchanges_ : ++collectives_;
    me_.doing = Activity{number, kind, true}.pack();
    body(number);
    me_.doing = Activity{number, kind, false}.pack();
  });
}

std::byte* SharedMemory::begin_step() { return region_.outbox(rank_, ++step_); }

void SharedMemory::finish_step(const Call& say) {
  me_.say[step_ % 2] = say;
  me_.step = step_;
  ring_others();
  wait_for([this] {
    Ranks missing = 0;
    for (int r = 0; r < size_; ++r)
      if (region_.rank(r).step < step_) missing |= Ranks{1} << r;
    return missing;
  });
  for (int r = 0; r < size_; ++r) {
    const Call& other = region_.rank(r).say[step_ % 2];
    if (other == say) continue;
    const bool below = r < rank_;
    break_all("COMMUNICATOR", disagreement(below ? other : say, std::min(r, rank_), below ? say : other,
                                           std::max(r, rank_), size_, names_));
  }
}

void SharedMemory::barrier(Stream& stream) {
  queue(stream, Kind::barrier, [this](uint64_t number) {
    begin_step();
    finish_step(call_of(number, Kind::barrier, tensor(nullptr, DType::u8, {0})));
  });
}

void SharedMemory::broadcast(Stream& stream, Tensor x, int root) {
  check_broadcast(x, root, size_);
  queue(stream, Kind::broadcast, [=, this](uint64_t number) {
    auto* data = static_cast<std::byte*>(x.data);
    size_t at = 0;
    do {
      const size_t n = std::min(kChunk, x.bytes() - at);
      std::byte* own = begin_step();
      if (rank_ == root && n > 0) std::memcpy(own, data + at, n);
      finish_step(call_of(number, Kind::broadcast, x, root));
      if (rank_ != root && n > 0) std::memcpy(data + at, read(root), n);
      at += n;
    } while (at < x.bytes());
  });
}

void SharedMemory::all_gather(Stream& stream, Tensor in, Tensor out) {
  check_all_gather(in, out, size_);
  queue(stream, Kind::all_gather, [=, this](uint64_t number) {
    const auto* from = static_cast<const std::byte*>(in.data);
    auto* to = static_cast<std::byte*>(out.data);
    size_t at = 0;
    do {
      const size_t n = std::min(kChunk, in.bytes() - at);
      std::byte* own = begin_step();
      if (n > 0) std::memcpy(own, from + at, n);
      finish_step(call_of(number, Kind::all_gather, in));
      for (int r = 0; r < size_ && n > 0; ++r) std::memcpy(to + static_cast<size_t>(r) * in.bytes() + at, read(r), n);
      at += n;
    } while (at < in.bytes());
  });
}

void SharedMemory::reduce_scatter(Stream& stream, Tensor in, Tensor out, Reduction how) {
  check_reduce_scatter(in, out, size_);
  queue(stream, Kind::reduce_scatter, [=, this](uint64_t number) {
    const int64_t each = static_cast<int64_t>(size_of(in.dtype)), count = out.elements();
    const int64_t most = static_cast<int64_t>(kChunk) / size_ / each;  // elements of one part in a step
    const auto* from = static_cast<const std::byte*>(in.data);
    auto* to = static_cast<std::byte*>(out.data);
    int64_t at = 0;
    do {
      const int64_t n = std::min(most, count - at);
      std::byte* own = begin_step();
      for (int r = 0; r < size_ && n > 0; ++r)
        std::memcpy(own + r * n * each, from + (r * count + at) * each, n * each);
      finish_step(call_of(number, Kind::reduce_scatter, out, 0, how));
      if (n > 0) {
        reduce(
            how, in.dtype, size_, [&](int r) { return read(r) + rank_ * n * each; }, n, to + at * each);
      }
      at += n;
    } while (at < count);
  });
}

void SharedMemory::all_reduce(Stream& stream, Tensor x, Reduction how) {
  check_all_reduce(x);
  queue(stream, Kind::all_reduce,
        [=, this](uint64_t number) { all_reduce_now(call_of(number, Kind::all_reduce, x, 0, how), x, how); });
}

void SharedMemory::all_reduce_now(const Call& say, Tensor x, Reduction how) {
  const int64_t each = static_cast<int64_t>(size_of(x.dtype)), count = x.elements();
  const int64_t most = static_cast<int64_t>(kChunk) / each;
  auto* data = static_cast<std::byte*>(x.data);
  int64_t at = 0;
  do {
    const int64_t n = std::min(most, count - at);
    std::byte* own = begin_step();
    if (n > 0) std::memcpy(own, data + at * each, n * each);
    finish_step(say);
    if (n * each * size_ <= kSmall) {
      if (n > 0)
        reduce(
            how, x.dtype, size_, [&](int r) { return read(r); }, n, data + at * each);
    } else {
      // Rank r reduces part r, then all take the parts from their owners.
      const auto begin = [&](int r) { return n * r / size_; };
      const int64_t mine = begin(rank_), parts = begin(rank_ + 1) - mine;
      reduce(
          how, x.dtype, size_, [&](int r) { return read(r) + mine * each; }, parts, data + (at + mine) * each);
      own = begin_step();
      std::memcpy(own, data + (at + mine) * each, parts * each);
      finish_step(say);
      for (int r = 0; r < size_; ++r)
        if (r != rank_) std::memcpy(data + (at + begin(r)) * each, read(r), (begin(r + 1) - begin(r)) * each);
    }
    at += n;
  } while (at < count);
}

void SharedMemory::exchange(Stream& stream, std::vector<Transfer> group) {
  check_exchange(group, rank_, size_);
  queue(stream, Kind::exchange, [this, group = std::move(group)](uint64_t) { exchange_now(group); });
}

void SharedMemory::exchange_now(const std::vector<Transfer>& group) {
  // The messages of one direction between this rank and a peer, and how far the first of them is.
  struct Lane {
    int peer;
    bool sends;
    Mailbox& box;
    std::deque<Tensor> messages;
    int64_t chunk = 0;
  };
  std::deque<Lane> lanes;
  for (const Transfer& transfer : group) {
    const bool sends = transfer.way == Transfer::Way::send;
    auto lane = std::find_if(lanes.begin(), lanes.end(),
                             [&](const Lane& l) { return l.peer == transfer.peer && l.sends == sends; });
    if (lane == lanes.end()) {
      Mailbox& box = sends ? region_.mailbox(rank_, transfer.peer) : region_.mailbox(transfer.peer, rank_);
      lanes.push_back({transfer.peer, sends, box, {}});
      lane = lanes.end() - 1;
    }
    lane->messages.push_back(transfer.tensor);
  }
  // What is sent is promised before anything is wanted: see lost(). A peer that waits elsewhere may learn from it that
  // it waits in vain.
  for (const bool sends : {true, false}) {
    for (Lane& lane : lanes) {
      if (lane.sends != sends) continue;
      uint64_t more = 0;
      for (const Tensor& message : lane.messages) more += static_cast<uint64_t>(chunks(message.bytes()));
      (sends ? lane.box.goal : lane.box.wanted) += more;
      ring(region_.rank(lane.peer));
    }
  }
  const auto ready = [](const Lane& lane) {
    if (lane.messages.empty()) return false;
    const uint64_t pushed = lane.box.pushed, taken = lane.box.taken;
    return lane.sends ? pushed - taken < kSlots : taken < pushed;
  };
  // One chunk of the first message; true if it was its last.
  const auto move = [&](Lane& lane) {
    const Tensor& message = lane.messages.front();
    const size_t at = static_cast<size_t>(lane.chunk) * kChunk, n = std::min(kChunk, message.bytes() - at);
    auto* data = static_cast<std::byte*>(message.data) + at;
    const uint64_t number = lane.sends ? lane.box.pushed : lane.box.taken;
    Mailbox::Slot& slot = lane.box.slots[number % kSlots];
    if (lane.sends) {
      slot = {message.elements(), static_cast<uint8_t>(message.dtype)};
      if (n > 0) std::memcpy(region_.slot(rank_, lane.peer, number), data, n);
      lane.box.pushed = number + 1;
    } else {
      if (slot.count != message.elements() || slot.dtype != static_cast<uint8_t>(message.dtype)) {
        std::ostringstream text;
        text << name(lane.peer) << " sent " << slot.count << " x " << tokenring::name_of(static_cast<DType>(slot.dtype))
             << " in " << activity(lane.peer) << ", but " << name(rank_) << " receives " << message.elements() << " x "
             << tokenring::name_of(message.dtype) << " from it in " << activity(rank_)
             << "; both must name the same count and dtype";
        break_all("COMMUNICATOR", text.str());
      }
      if (n > 0) std::memcpy(data, region_.slot(lane.peer, rank_, number), n);
      lane.box.taken = number + 1;
    }
    ring(region_.rank(lane.peer));
    return ++lane.chunk == chunks(message.bytes());
  };
  for (;;) {
    Ranks open = 0;
    bool moved = false;
    for (Lane& lane : lanes) {
      while (ready(lane)) {
        moved = true;
        if (!move(lane)) continue;
        lane.messages.pop_front();
        lane.chunk = 0;
      }
      if (!lane.messages.empty()) open |= Ranks{1} << lane.peer;
    }
    if (!open) return;
    if (moved) continue;
    wait_for([&] { return std::any_of(lanes.begin(), lanes.end(), ready) ? 0 : open; });
  }
}

// --- waiting -------------------------------------------------------------------------------------------

void SharedMemory::wait_for(const std::function<Ranks()>& missing) {
  const auto start = Clock::now(), deadline = start + timeout_;
  do {
    if (!missing()) return;
    std::this_thread::yield();
  } while (Clock::now() - start < kSpin);
  struct Awake {
    RankState& rank;
    ~Awake() { rank.asleep = 0; }
  } awake{me_};
  auto looked = start;
  for (;;) {
    const uint32_t bell = me_.bell;
    me_.asleep = 1;
    const Ranks lacking = missing();
    if (!lacking) return;
    if (region_.head().broken) throw_broken();
    const auto now = Clock::now();
    const bool look = now - looked >= std::chrono::milliseconds(kLookMilliseconds);
    if (look) looked = now;
    for (int r = 0; r < size_; ++r) {
      if (!(lacking >> r & 1)) continue;
      const std::string why = lost(r, look);
      // What the rank did before it was lost may have been enough.
      if (!why.empty() && (missing() >> r & 1)) {
        break_all("COMMUNICATOR", here() + " waits in " + activity(rank_) + " for " + name(r) + why);
      }
    }
    if (now >= deadline) {
      std::ostringstream text;
      text << here() << " waited in " << activity(rank_) << " for " << timeout_.count() / 1000.0 << " s; missing:";
      for (int r = 0; r < size_; ++r)
        if (lacking >> r & 1) text << " " << name(r) << " (" << activity(r) << ")";
      text << "; look at those ranks, or give a longer timeout";
      break_all("TIMEOUT", text.str());
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - now).count() + 1;
    sleep_on(me_.bell, bell, std::min<int64_t>(left, kLookMilliseconds));
  }
}

std::string SharedMemory::lost(int r, bool look) const {
  const RankState& other = region_.rank(r);
  if (other.presence == Presence::left) return ", which has left the communicator after " + activity(r);
  if (look && other.presence == Presence::joined && other.process != me_.process &&
      process_start(other.process) != other.started) {
    return ", whose process " + std::to_string(other.process) + " has died; it was last seen in " + activity(r);
  }
  // Whether the rank can go no further without this one. These counts only grow, and this rank's own stay as they are
  // while it waits, so what holds once holds on. The order of the reads matters: what the rank promised before it got
  // stuck is seen below.
  const Mailbox &to = region_.mailbox(rank_, r), &from = region_.mailbox(r, rank_);
  const bool ahead = other.step > me_.step;             // in a collective that this rank has not entered
  const bool wants = to.wanted > to.goal;               // a message that this rank has not promised
  const bool sends = from.goal > from.wanted + kSlots;  // more than fits without this rank
  // And whether this one needs more of it: always in a collective; in an exchange, beyond what it has promised.
  const bool exchanging = Activity::unpack(me_.doing).kind == Kind::exchange;
  const bool owes = from.wanted > from.goal || to.goal > to.wanted + kSlots;
  if ((ahead || wants || sends) && (owes || !exchanging)) {
    const char* what = ahead ? "is" : wants ? "waits for a message of this rank" : "sends to this rank";
    return std::string(", which ") + what + " in " + activity(r) +
           "; all ranks must make the same calls in the same order";
  }
  return "";
}

std::string SharedMemory::activity(int r) const {
  const RankState& rank = region_.rank(r);
  if (rank.presence < Presence::joined) return "never joined";
  const Activity now = Activity::unpack(rank.doing);
  if (r == rank_ || now.inside) return now.text();
  return "its last call, " + now.text();
}

void SharedMemory::ring_others() {
  for (int r = 0; r < size_; ++r)
    if (r != rank_) ring(region_.rank(r));
}

// --- the end -------------------------------------------------------------------------------------------

void SharedMemory::mark_broken(const char* code, const std::string& reason) noexcept {
  Head& head = region_.head();
  uint32_t whole = 0;
  if (head.broken.compare_exchange_strong(whole, 1)) {
    std::strncpy(head.code, code, sizeof(head.code) - 1);
    std::strncpy(head.reason, reason.c_str(), sizeof(head.reason) - 1);
    head.broken = 2;
  }
  for (int r = 0; r < size_; ++r) ring(region_.rank(r));
}

void SharedMemory::break_all(const char* code, const std::string& reason) {
  mark_broken(code, reason);
  throw_broken();
}

void SharedMemory::throw_broken() const {
  if (aborted_) fail("ABORTED", here() + " aborted the communicator; make a new one");
  const Head& head = region_.head();
  for (int i = 0; i < 1000 && head.broken != 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  if (head.broken != 2) fail("COMMUNICATOR", "the communicator is broken, and the rank that broke it has died");
  throw Failure(head.code, std::string("the communicator is broken: ") + head.reason);
}

void SharedMemory::abort(const std::string& why) noexcept {
  uint32_t broken = region_.head().broken;
  if (broken == 0) aborted_ = true;
  mark_broken("COMMUNICATOR", here() + " aborted it in " + activity(rank_) + ": " + why);
}

}  // namespace tokenring::comm

namespace tokenring {

namespace {

class SharedMemoryTransport final : public Transport {
 public:
  UniqueId make_id() const override { return comm::open_region(); }
  std::unique_ptr<Communicator> make(const CommunicatorOptions& options) const override {
    options.check(kMaxSharedMemoryRanks);
    return std::make_unique<comm::SharedMemory>(options);
  }
};

}  // namespace

const Transport& shared_memory() {
  static const SharedMemoryTransport transport;
  return transport;
}

}  // namespace tokenring
