// The referee by itself: what ranks queue, in any order, and what it says of it.
#include "comm/referee.h"

#include <random>

#include "harness.h"

using namespace tokenring;
using namespace tokenring::comm;
using std::chrono::milliseconds;

namespace {

const Referee::Time kStart{};

Referee joined(int size) {
  Referee referee(size);
  for (int r = 0; r < size; ++r) referee.joined(r, "process " + std::to_string(100 + r));
  for (int r = 0; r < size; ++r) referee.finished(r, 0);
  return referee;
}

Announcement collective(uint64_t sequence, Kind kind = Kind::barrier, int64_t count = 0) {
  return {call_of(sequence, kind, tensor(nullptr, DType::f32, {count})), {}};
}

Announcement exchange(uint64_t sequence, std::vector<Message> messages) {
  return {call_of(sequence, Kind::exchange, tensor(nullptr, DType::u8, {0})), std::move(messages)};
}

Message to(int peer, int64_t count = 5) { return {true, peer, count, static_cast<uint8_t>(DType::f32)}; }
Message from(int peer, int64_t count = 5) { return {false, peer, count, static_cast<uint8_t>(DType::f32)}; }

// The verdict is of this code and has these words.
bool says(const Referee& referee, const std::string& code, const std::string& words) {
  const auto& verdict = referee.verdict();
  const std::string text = verdict ? verdict->code + " " + verdict->reason : "nothing";
  if (verdict && verdict->code == code && verdict->reason.find(words) != std::string::npos) return true;
  std::cout << "  it said " << text << "\n";
  return false;
}

}  // namespace

TEST(referee_passes_what_all_have_queued) {
  Referee referee = joined(3);
  referee.queued(0, collective(1));
  referee.queued(0, exchange(1, {to(1), from(2)}));
  referee.queued(2, collective(1));
  CHECK(referee.passed(0) == 0 && referee.passed(2) == 0);
  referee.queued(1, collective(1));
  CHECK(referee.passed(0) == 1 && referee.passed(1) == 1 && referee.passed(2) == 1);
  referee.queued(1, exchange(1, {from(0)}));
  CHECK(referee.passed(1) == 2 && referee.passed(0) == 1);
  referee.queued(2, exchange(1, {to(0)}));
  CHECK(referee.passed(0) == 2 && referee.passed(2) == 2);
  // An empty group waits for nobody.
  referee.queued(2, exchange(2, {}));
  CHECK(referee.passed(2) == 3 && !referee.verdict());
}

TEST(referee_finds_circles) {
  // Three, each of which sends before it receives, in groups of their own.
  Referee ring = joined(3);
  for (int r = 0; r < 3; ++r) {
    CHECK(!ring.verdict());
    ring.queued(r, exchange(1, {to((r + 1) % 3)}));
    ring.queued(r, exchange(2, {from((r + 2) % 3)}));
  }
  CHECK(says(ring, "COMMUNICATOR",
             "rank 0 of 3 waits in exchange #1 for rank 1, which waits in exchange #1 for rank 2, which waits in "
             "exchange #1 for rank 0"));
  Referee group = joined(3);
  for (int r = 0; r < 3; ++r) group.queued(r, exchange(1, {to((r + 1) % 3), from((r + 2) % 3)}));
  CHECK(!group.verdict() && group.passed(2) == 1);
  // One waits in a collective for one that waits for its message.
  Referee mixed = joined(3);
  mixed.queued(0, collective(1));
  mixed.queued(2, collective(1));
  CHECK(!mixed.verdict());
  mixed.queued(1, exchange(1, {from(2)}));
  CHECK(says(mixed, "COMMUNICATOR", "rank 1 of 3 waits in exchange #1 for rank 2, which waits in barrier #1"));
}

TEST(referee_knows_who_has_gone) {
  Referee left = joined(2);
  left.gone(1, false, kStart);
  CHECK(!left.verdict());  // it may, as long as nobody needs it
  left.queued(0, collective(1));
  CHECK(says(left, "COMMUNICATOR",
             "rank 0 of 2 waits in barrier #1 for rank 1, which has left the communicator after its last call, join"));
  Referee died = joined(2);
  died.queued(0, collective(1));
  CHECK(!died.verdict());
  died.gone(1, true, kStart);
  CHECK(says(died, "COMMUNICATOR", "for rank 1, whose process 101 has died; it was last seen in its last call, join"));
  // In the middle of what all have queued: it may have done its part.
  for (const bool enough : {true, false}) {
    Referee middle = joined(2);
    for (int r = 0; r < 2; ++r) middle.queued(r, collective(1));
    middle.gone(1, true, kStart);
    middle.tick(kStart + milliseconds(500));
    CHECK(!middle.verdict());
    if (enough) middle.finished(0, 1);
    middle.tick(kStart + milliseconds(5000));
    CHECK(enough ? !middle.verdict()
                 : says(middle, "COMMUNICATOR", "whose process 101 has died; it was last seen in barrier #1"));
  }
  // NCCL's error comes first, and waits for its cause.
  Referee error = joined(2);
  for (int r = 0; r < 2; ++r) error.queued(r, collective(1));
  error.failed(0, "barrier #1: remote error", kStart);
  error.tick(kStart + milliseconds(300));
  CHECK(!error.verdict());
  error.gone(1, true, kStart + milliseconds(400));
  error.tick(kStart + milliseconds(500));
  CHECK(says(error, "COMMUNICATOR", "whose process 101 has died"));
  Referee alone = joined(2);
  alone.failed(1, "barrier #1: remote error", kStart);
  alone.tick(kStart + milliseconds(1000));
  CHECK(says(alone, "COMMUNICATOR", "NCCL failed on rank 1 of 2 in barrier #1: remote error"));
}

TEST(referee_names_who_is_missing) {
  const std::vector<double> quick(3, 0.01);
  Referee behind = joined(3);
  behind.queued(0, collective(1));
  behind.late(0, 2.5, quick);
  CHECK(says(behind, "TIMEOUT",
             "rank 0 of 3 waited in barrier #1 for 2.5 s; missing: rank 1 (its last call, join) rank 2"));
  Referee slow = joined(2);
  for (int r = 0; r < 2; ++r) slow.queued(r, collective(1));
  slow.began(0, 1);
  slow.late(0, 1, {0, 0});
  CHECK(says(slow, "TIMEOUT", "missing: rank 1 (barrier #1, which its GPU has not come to)"));
  Referee stopped = joined(2);
  for (int r = 0; r < 2; ++r) {
    stopped.queued(r, collective(1));
    stopped.began(r, 1);
  }
  stopped.late(0, 1, {0, 4.5});
  CHECK(says(stopped, "TIMEOUT", "missing: rank 1 (barrier #1, not heard of for 4.5 s)"));
  Referee never(3);
  never.joined(1, "process 7");
  never.late(1, 1, quick);
  CHECK(says(never, "TIMEOUT",
             "rank 1 of 3 waited in join for 1 s; missing: rank 0 (never joined) rank 2 (never joined)"));
}

// The same program on every rank passes whole in whatever order it is heard of; with one call changed it does not end
// without a verdict, unless what was changed comes last for the others too.
TEST(referee_of_random_programs) {
  std::mt19937 random(7);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  for (int turn = 0; turn < 300; ++turn) {
    const int size = 2 + below(4), steps = 1 + below(8);
    std::vector<std::vector<Announcement>> programs(size);
    uint64_t collectives = 0, exchanges = 0;
    for (int s = 0; s < steps; ++s) {
      const bool ring = below(2);
      const int64_t count = 1 + below(3);
      const Kind kind = below(2) ? Kind::barrier : Kind::all_reduce;
      (ring ? exchanges : collectives)++;
      for (int r = 0; r < size; ++r)
        programs[r].push_back(ring
                                  ? exchange(exchanges, {to((r + 1) % size, count), from((r + size - 1) % size, count)})
                                  : collective(collectives, kind, count));
    }
    const bool changed = below(2);
    if (changed) {
      Announcement& call = programs[below(size)][below(steps)];
      if (call.messages.empty())
        call.call.count += 1;
      else
        call.messages[0].count += 1;
    }
    Referee referee = joined(size);
    std::vector<size_t> at(size);
    for (int left = size * steps; left > 0 && !referee.verdict();) {
      const int r = below(size);
      if (at[r] == programs[r].size()) continue;
      referee.queued(r, programs[r][at[r]++]);
      --left;
    }
    CHECK(referee.verdict().has_value() == changed);
    if (!changed)
      for (int r = 0; r < size; ++r) CHECK(referee.passed(r) == static_cast<uint64_t>(steps));
  }
}
