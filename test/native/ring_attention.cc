// Attention over ranks, each a thread, against one rank that holds everything.
#include "parallel/ring_attention.h"

#include <cmath>
#include <functional>
#include <thread>
#include <vector>

#include "harness.h"
#include "ops_fixture.h"

using namespace tokenring;

namespace {

constexpr int kHeads = 4, kKvHeads = 2, kHeadDim = 32;
constexpr int64_t kWidth = kHeads * kHeadDim, kKvWidth = kKvHeads * kHeadDim;
const AttentionHeads kShape{kHeads, kKvHeads, kHeadDim, 0.17f};

// What one rank, or all of them, know of every token.
struct Values {
  std::vector<float> q, k, v, dout, out, lse, dq, dk, dv;
};
struct Lane {
  std::vector<float> Values::*data;
  int64_t width;
};
const Lane kInputs[] = {{&Values::q, kWidth}, {&Values::k, kKvWidth}, {&Values::v, kKvWidth}, {&Values::dout, kWidth}};
const Lane kForward[] = {{&Values::out, kWidth}, {&Values::lse, kHeads}};
const Lane kGradients[] = {{&Values::dq, kWidth}, {&Values::dk, kKvWidth}, {&Values::dv, kKvWidth}};

Values random_values(int64_t tokens) {
  return {fixture::random_floats(tokens * kWidth, 1, -2, 2),
          fixture::random_floats(tokens * kKvWidth, 2, -2, 2),
          fixture::random_floats(tokens * kKvWidth, 3, -2, 2),
          fixture::random_floats(tokens * kWidth, 4),
          {},
          {},
          {},
          {},
          {}};
}

// Rows of the shards within the whole, which has the order of `pieces`. Nodes are of so many ranks.
void run(const Values& given, const std::vector<Shard>& shards, int local, Values& got) {
  const int size = static_cast<int>(shards.size());
  const Shard whole = merged(shards);
  const std::vector<Piece> parts = pieces(shards, whole);
  const int64_t total = rows_of(whole);
  for (const auto& lanes : {std::vector<Lane>(std::begin(kForward), std::end(kForward)),
                            std::vector<Lane>(std::begin(kGradients), std::end(kGradients))})
    for (const Lane& lane : lanes) (got.*lane.data).assign(total * lane.width, NAN);
  const UniqueId id = shared_memory().make_id();
  std::vector<UniqueId> of_nodes;
  for (int n = 0; n < size / local; ++n) of_nodes.push_back(shared_memory().make_id());
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([&, r] {
      fixture::Bench b;
      const auto wire = b.dev().stream();
      const std::chrono::milliseconds timeout(60'000);
      const auto comm = shared_memory().make({id, r, size, timeout});
      const auto node = shared_memory().make({of_nodes[r / local], r % local, local, timeout});
      try {
        comm->join();
        node->join();
        const RingAttention ring(b.ops(), *comm, node.get(), kShape, shards);
        const int64_t rows = ring.rows();
        const auto own = [&](const Lane& lane) {
          std::vector<float> mine(rows * lane.width);
          for (const Piece& p : parts)
            if (p.shard == r)
              std::copy_n((given.*lane.data).begin() + p.whole * lane.width, p.rows * lane.width,
                          mine.begin() + p.row * lane.width);
          return b.f32({rows, lane.width}, mine);
        };
        const Tensor q = own(kInputs[0]), k = own(kInputs[1]), v = own(kInputs[2]), dout = own(kInputs[3]);
        const Tensor out = b.f32({rows, kWidth}), lse = b.f32({rows, kHeads});
        const Tensor dq = b.f32({rows, kWidth}), dk = b.f32({rows, kKvWidth}), dv = b.f32({rows, kKvWidth});
        Streams streams{&b.stream()};
        streams[static_cast<size_t>(Track::context)] = wire.get();
        Executor executor(b.dev(), streams);
        Schedule schedule;
        const auto heads = [](const Tensor& t) { return HeadSlot{outside(t)}; };
        ring.forward(schedule, 0, heads(q), heads(k), heads(v), outside(out), outside(lse));
        ring.backward(schedule, 0, outside(dout), heads(q), heads(k), heads(v), outside(out), outside(lse), heads(dq),
                      heads(dk), heads(dv));
        executor.run(schedule);
        b.stream().synchronize();
        wire->synchronize();
        const auto put = [&](const Lane& lane, const Tensor& t) {
          const std::vector<float> mine = b.read(t);
          for (const Piece& p : parts)
            if (p.shard == r)
              std::copy_n(mine.begin() + p.row * lane.width, p.rows * lane.width,
                          (got.*lane.data).begin() + p.whole * lane.width);
        };
        put(kForward[0], out), put(kForward[1], lse);
        put(kGradients[0], dq), put(kGradients[1], dk), put(kGradients[2], dv);
      } catch (const Failure& failure) {
        comm->abort(failure.what());
        node->abort(failure.what());
        harness::report(__FILE__, __LINE__, "rank ", r, ": ", failure.what());
      }
    });
  for (std::thread& thread : threads) thread.join();
}

double relative(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, norm = 1e-30;
  for (size_t i = 0; i < b.size(); ++i) {
    if (a[i] == b[i]) continue;
    error += std::pow(double{a[i]} - b[i], 2);
  }
  for (const float x : b) norm += std::pow(double{x}, 2);
  return a.size() == b.size() ? std::sqrt(error / norm) : INFINITY;
}

// Ranges of the packed documents, `pick` ranges of 2 * size a rank: zigzag, or ragged by the seed.
std::vector<Shard> shard(const std::vector<int>& lengths, int size, uint64_t seed) {
  int total = 0;
  for (int n : lengths) total += n;
  fixture::Random random(seed);
  std::vector<Shard> shards(size);
  int start = 0;
  for (size_t d = 0; d < lengths.size(); ++d) {
    for (int at = 0; at < lengths[d];) {
      // Zigzag by the middle of the range that the token lies in; with a seed, any cut on any rank.
      const int64_t range = int64_t{start + at} * 2 * size / total;
      int end = at;
      int rank = static_cast<int>(range < size ? range : 2 * size - 1 - range);
      if (seed) {
        end = std::min(lengths[d], at + 1 + random.below(100));
        rank = random.below(size);
      } else {
        while (end < lengths[d] && int64_t{start + end} * 2 * size / total == range) ++end;
      }
      shards[rank].push_back({static_cast<int32_t>(d), at, end - at});
      at = end;
    }
    start += lengths[d];
  }
  return shards;
}

void compare(const std::vector<int>& lengths, int size, uint64_t seed) {
  const std::vector<Shard> shards = shard(lengths, size, seed);
  const Values given = random_values(rows_of(merged(shards)));
  Values alone;
  run(given, {merged(shards)}, 1, alone);
  // A ring, nodes of two and of four ranks, one node.
  for (int local = 1; local <= size; local *= 2) {
    Values got;
    run(given, shards, local, got);
    for (const Lane& lane : kForward) {
      if (local == size && size > 1) CHECK(fixture::same_bits(got.*lane.data, alone.*lane.data));
      // A merge rounds each number once or twice more, in float32.
      CHECK_NEAR(relative(got.*lane.data, alone.*lane.data), 0.0, 1e-6, size, " ranks, nodes of ", local, ", seed ",
                 seed);
    }
    if (local == size && size > 1) CHECK(fixture::same_bits(got.dq, alone.dq));
    for (const Lane& lane : kGradients)
      CHECK_NEAR(relative(got.*lane.data, alone.*lane.data), 0.0, 1e-5, size, " ranks, nodes of ", local, ", seed ",
                 seed);
  }
}

}  // namespace

TEST(ring_attention_is_that_of_one_rank) {
  for (const int size : {1, 2, 4, 8}) {
    compare({700}, size, 0);
    compare({3, 1, 200, 64, 130, 5, 1, 1, 90}, size, 0);
    compare({300, 77}, size, 5 + size);
    // More ranks than tokens: some hold nothing.
    compare({3, 2}, size, 0);
  }
}

TEST(ring_attention_gives_the_same_bits_again) {
  const std::vector<Shard> shards = shard({200, 61}, 4, 9);
  const Values given = random_values(261);
  for (const int local : {1, 2, 4}) {
    Values first, second;
    run(given, shards, local, first);
    run(given, shards, local, second);
    for (const Lane& lane : kForward) CHECK(fixture::same_bits(first.*lane.data, second.*lane.data));
    for (const Lane& lane : kGradients) CHECK(fixture::same_bits(first.*lane.data, second.*lane.data));
  }
}

TEST(ring_attention_refuses_shards_that_cannot_be) {
  CHECK_FAILS("INVALID_ARGUMENT", check_shards({{{0, 0, 10}}, {{0, 9, 3}}}));
  CHECK_FAILS("INVALID_ARGUMENT", check_shards({{{0, -1, 10}}}));
  CHECK_FAILS("INVALID_ARGUMENT", check_shards({{{0, 5, -1}}}));
  CHECK_FAILS("INVALID_ARGUMENT", check_shards({{{0, 2'000'000'000, 2'000'000'000}}}));
  check_shards({{{0, 0, 10}, {1, 0, 10}}, {{0, 10, 3}, {0, 40, 0}}, {}});
  const auto comm = [](int rank, int size) { return shared_memory().make({shared_memory().make_id(), rank, size}); };
  const auto two = comm(0, 2), six = comm(1, 6), four = comm(1, 4), first = comm(0, 2);
  const Ops& ops = fixture::device().ops();
  CHECK_FAILS("INVALID_ARGUMENT", RingAttention(ops, *two, nullptr, kShape, {{{0, 0, 4}}}));
  // Nodes that do not divide the ranks, and a place on the node that is not the rank's.
  CHECK_FAILS("INVALID_ARGUMENT", RingAttention(ops, *six, four.get(), kShape, std::vector<Shard>(6)));
  CHECK_FAILS("INVALID_ARGUMENT", RingAttention(ops, *six, first.get(), kShape, std::vector<Shard>(6)));
}
