// The communicator over shared memory, each rank a thread: what the collectives give, and that nobody hangs.
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator.h"
#include "core/convert.h"
#include "cpu/device.h"
#include "harness.h"
#include "ops_fixture.h"

using namespace tokenring;
using std::chrono::milliseconds;

namespace {

struct Rank {
  Communicator& comm;
  Stream& stream;
  int r, n;
};

// Runs `body` on every rank of a new communicator; what each of them failed with, "" for those that did not.
std::vector<std::string> run(int size, const std::function<void(Rank)>& body,
                             milliseconds timeout = milliseconds(20000)) {
  const UniqueId id = shared_memory().make_id();
  std::vector<std::string> failures(size);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([&, r] {
      const auto stream = fixture::device().stream();
      try {
        const auto comm = shared_memory().make({id, r, size, timeout});
        const Drain drain{*stream};
        comm->join();
        body({*comm, *stream, r, size});
        stream->synchronize();
      } catch (const Failure& failure) {
        failures[r] = failure.code() + " " + failure.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return failures;
}

bool none(const std::vector<std::string>& failures) {
  for (const std::string& text : failures) {
    if (!text.empty()) std::cout << "  " << text << "\n";
    if (!text.empty()) return false;
  }
  return true;
}

// Every rank failed, with this code and these words.
bool all(const std::vector<std::string>& failures, const std::string& code, const std::vector<std::string>& words) {
  bool good = true;
  for (const std::string& text : failures) {
    bool here = text.rfind(code, 0) == 0;
    for (const std::string& word : words) here = here && text.find(word) != std::string::npos;
    if (!here) std::cout << "  \"" << text << "\"\n";
    good = good && here;
  }
  return good;
}

Tensor of(std::vector<float>& x) { return tensor(x.data(), DType::f32, {static_cast<int64_t>(x.size())}); }
Tensor of(std::vector<int32_t>& x) { return tensor(x.data(), DType::i32, {static_cast<int64_t>(x.size())}); }

std::vector<float> data(int rank, int64_t n) { return fixture::random_floats(static_cast<size_t>(n), 100 + rank); }

// The sum in the order of the ranks.
std::vector<float> summed(int size, int64_t n) {
  std::vector<float> sum = data(0, n);
  for (int r = 1; r < size; ++r) {
    const std::vector<float> part = data(r, n);
    for (int64_t i = 0; i < n; ++i) sum[i] += part[i];
  }
  return sum;
}

// Small, of several chunks, and none.
const int64_t kCounts[] = {1, 1000, 200'003, 0};

}  // namespace

TEST(comm_sums_go_in_the_order_of_the_ranks) {
  for (int size : {1, 2, 3, 8})
    for (int64_t count : kCounts) {
      const std::vector<float> expected = summed(size, count);
      CHECK(none(run(size, [&](Rank k) {
        std::vector<float> x = data(k.r, count);
        k.comm.all_reduce(k.stream, of(x), Reduction::sum);
        k.stream.synchronize();
        CHECK(fixture::same_bits(x, expected));
      })));
    }
}

TEST(comm_reduces_scatters_gathers_and_broadcasts) {
  for (int size : {1, 2, 3, 8})
    for (int64_t count : kCounts) {
      const std::vector<float> total = summed(size, count * size);
      CHECK(none(run(size, [&](Rank k) {
        std::vector<float> in = data(k.r, count * k.n), out(count), all(count * k.n), x(count, static_cast<float>(k.r));
        const auto begin = total.begin() + k.r * count;
        k.comm.reduce_scatter(k.stream, of(in), of(out), Reduction::sum);
        k.comm.all_gather(k.stream, of(out), of(all));
        k.comm.broadcast(k.stream, of(x), k.n - 1);
        k.comm.barrier(k.stream);
        k.stream.synchronize();
        CHECK(fixture::same_bits(out, {begin, begin + count}));
        CHECK(fixture::same_bits(all, total));
        CHECK(x == std::vector<float>(count, static_cast<float>(k.n - 1)));
      })));
    }
}

TEST(comm_reduces_every_dtype_and_keeps_nan) {
  CHECK(none(run(3, [](Rank k) {
    std::vector<int32_t> integers = {k.r, -k.r, INT32_MAX};
    std::vector<float> high = {static_cast<float>(k.r), k.r == 1 ? NAN : 0.0f}, low = high;
    // 1 + 2^-8 + 2^-8 rounds to 1 + 2^-7 in bf16 only if it is summed in float32.
    std::vector<uint16_t> half = {bf16_of_f32(k.r == 0 ? 1.0f : 0x1p-8f)};
    k.comm.all_reduce(k.stream, of(integers), Reduction::sum);
    k.comm.all_reduce(k.stream, of(high), Reduction::max);
    k.comm.all_reduce(k.stream, of(low), Reduction::min);
    k.comm.all_reduce(k.stream, tensor(half.data(), DType::bf16, {1}), Reduction::sum);
    k.stream.synchronize();
    CHECK(integers == (std::vector<int32_t>{3, -3, INT32_MAX - 2}));
    CHECK(high[0] == 2.0f && std::isnan(high[1]));
    CHECK(low[0] == 0.0f && std::isnan(low[1]));
    CHECK(f32_of_bf16(half[0]) == 1.0f + 0x1p-7f);
  })));
}

// Everyone to everyone in one group, messages of all sizes, and a ring.
TEST(comm_exchanges_in_groups) {
  for (int size : {2, 3, 8}) {
    CHECK(none(run(size, [&](Rank k) {
      const int64_t counts[] = {0, 5, 300'000};
      std::vector<std::vector<float>> sent, got;
      std::vector<Transfer> group;
      for (int peer = 0; peer < k.n; ++peer)
        for (int64_t count : counts)
          if (peer != k.r) {
            sent.push_back(std::vector<float>(count, static_cast<float>(k.r * 100 + peer)));
            got.emplace_back(count);
          }
      size_t at = 0;
      for (int peer = 0; peer < k.n; ++peer)
        for (size_t c = 0; c < 3 && peer != k.r; ++c, ++at) {
          group.push_back({Transfer::Way::send, peer, of(sent[at])});
          group.push_back({Transfer::Way::receive, peer, of(got[at])});
        }
      k.comm.exchange(k.stream, group);
      k.stream.synchronize();
      at = 0;
      for (int peer = 0; peer < k.n; ++peer)
        for (size_t c = 0; c < 3 && peer != k.r; ++c, ++at)
          CHECK(got[at] == std::vector<float>(counts[c], static_cast<float>(peer * 100 + k.r)));
      // Once around the ring, everyone's number comes home.
      std::vector<float> token = {static_cast<float>(k.r)}, next(1);
      for (int hop = 0; hop < k.n; ++hop) {
        k.comm.exchange(k.stream, {{Transfer::Way::send, (k.r + 1) % k.n, of(token)},
                                   {Transfer::Way::receive, (k.r + k.n - 1) % k.n, of(next)}});
        k.stream.synchronize();
        std::swap(token, next);
      }
      CHECK(token[0] == static_cast<float>(k.r));
    })));
  }
}

// A pair that answers in groups cut in another way is no mismatch, nor are ranks that are not part of an exchange.
TEST(comm_takes_groups_that_are_cut_differently) {
  CHECK(none(run(3, [](Rank k) {
    std::vector<float> a(100'000, 1.0f), b(100'000);
    for (int turn = 0; turn < 20; ++turn) {
      if (k.r == 0) {
        k.comm.exchange(k.stream, {{Transfer::Way::receive, 1, of(b)}});
        k.comm.exchange(k.stream, {{Transfer::Way::send, 1, of(a)}});
      } else if (k.r == 1) {
        k.comm.exchange(k.stream, {{Transfer::Way::receive, 0, of(b)}, {Transfer::Way::send, 0, of(a)}});
      }
      k.comm.all_reduce(k.stream, of(a), Reduction::max);
    }
    k.stream.synchronize();
  })));
}

TEST(comm_disagreement_fails_on_every_rank) {
  std::vector<std::vector<float>> x(4, std::vector<float>(1000));
  std::vector<int32_t> integers(1000);
  const auto kinds = run(3, [&](Rank k) {
    k.comm.barrier(k.stream);
    if (k.r == 2)
      k.comm.broadcast(k.stream, of(x[k.r]), 0);
    else
      k.comm.all_reduce(k.stream, of(x[k.r]), Reduction::sum);
  });
  CHECK(all(kinds, "COMMUNICATOR",
            {"collective #2", "all_reduce(sum) of 1000 x f32", "rank 2 broadcast(root 0) of 1000 x f32"}));
  const auto counts = run(2, [&](Rank k) {
    x[k.r].resize(k.r ? 1000 : 999'999);
    k.comm.all_reduce(k.stream, of(x[k.r]), Reduction::sum);
  });
  CHECK(all(counts, "COMMUNICATOR", {"rank 0 runs all_reduce(sum) of 999999 x f32, rank 1 all_reduce(sum) of 1000"}));
  const auto dtypes = run(2, [&](Rank k) {
    if (k.r)
      k.comm.all_reduce(k.stream, of(integers), Reduction::sum);
    else
      k.comm.all_reduce(k.stream, of(x[1]), Reduction::sum);
  });
  CHECK(all(dtypes, "COMMUNICATOR", {"1000 x f32", "1000 x i32"}));
  const auto reductions =
      run(2, [&](Rank k) { k.comm.all_reduce(k.stream, of(x[2 + k.r]), k.r ? Reduction::max : Reduction::sum); });
  CHECK(all(reductions, "COMMUNICATOR", {"all_reduce(sum)", "all_reduce(max)"}));
}

TEST(comm_disagreement_about_messages_fails_on_every_rank) {
  std::vector<float> small(10), large(1'000'000), more(1'000'000);
  const auto counts = run(2, [&](Rank k) {
    k.comm.exchange(k.stream, {{k.r ? Transfer::Way::send : Transfer::Way::receive, 1 - k.r, of(k.r ? large : small)}});
  });
  CHECK(all(counts, "COMMUNICATOR", {"rank 1 sent 1000000 x f32", "rank 0 receives 10 x f32"}));
  const auto collective = run(2, [&](Rank k) {
    if (k.r)
      k.comm.exchange(k.stream, {{Transfer::Way::receive, 0, of(small)}});
    else
      k.comm.barrier(k.stream);
  });
  CHECK(all(collective, "COMMUNICATOR", {"barrier #1", "exchange #1", "same calls in the same order"}));
  const auto unheard = run(2, [&](Rank k) {
    if (k.r)
      k.comm.exchange(k.stream, {{Transfer::Way::send, 0, of(large)}});
    else
      k.comm.barrier(k.stream);
  });
  CHECK(all(unheard, "COMMUNICATOR", {"barrier #1", "exchange #1"}));
  // Two that both listen, and two that both speak, more than fits.
  const auto silence = run(2, [&](Rank k) {
    k.comm.exchange(k.stream, {{Transfer::Way::receive, 1 - k.r, of(k.r ? large : more)}});
  });
  CHECK(all(silence, "COMMUNICATOR", {"waits for a message"}));
  const auto noise = run(2, [&](Rank k) { k.comm.exchange(k.stream, {{Transfer::Way::send, 1 - k.r, of(large)}}); });
  CHECK(all(noise, "COMMUNICATOR", {"sends to this rank in exchange #1"}));
}

TEST(comm_waits_have_a_deadline_that_names_who_is_missing) {
  std::vector<float> x(10);
  // Rank 2 stays until the others have given up.
  std::atomic<int> gone = 0;
  const auto failures = run(
      3,
      [&](Rank k) {
        std::vector<float> y(10);
        k.comm.barrier(k.stream);
        k.stream.synchronize();
        if (k.r == 2) {
          while (gone < 2) std::this_thread::yield();
          k.comm.barrier(k.stream);
          return;
        }
        k.comm.all_reduce(k.stream, of(y), Reduction::sum);
        try {
          k.stream.synchronize();
        } catch (...) {
          ++gone;
          throw;
        }
      },
      milliseconds(1000));
  CHECK(all(failures, "TIMEOUT", {"waited in all_reduce #2 for 1 s; missing: rank 2 (its last call, barrier #1)"}));
  // A rank that never comes.
  const UniqueId id = shared_memory().make_id();
  const auto comm = shared_memory().make({id, 0, 2, milliseconds(50)});
  try {
    comm->join();
    CHECK(false);
  } catch (const Failure& failure) {
    CHECK(failure.code() == "TIMEOUT");
    CHECK(std::string(failure.what()).find("waited in join for 0.05 s; missing: rank 1 (never joined)") !=
          std::string::npos);
  }
}

TEST(comm_leaving_and_aborting_end_the_others) {
  const auto left = run(3, [](Rank k) {
    if (k.r != 1) k.comm.barrier(k.stream);
  });
  CHECK(left[1].empty());
  CHECK(all({left[0], left[2]}, "COMMUNICATOR", {"waits in barrier #1 for rank 1, which has left the communicator"}));

  const auto aborted = run(3, [](Rank k) {
    if (k.r == 1) {
      k.comm.abort("enough");
      k.comm.barrier(k.stream);
      return;
    }
    k.comm.barrier(k.stream);
  });
  CHECK(aborted[1].rfind("ABORTED rank 1 of 3 aborted the communicator", 0) == 0);
  CHECK(all({aborted[0], aborted[2]}, "COMMUNICATOR", {"rank 1 of 3 aborted it in join: enough"}));
}

TEST(comm_refuses_what_cannot_be) {
  const UniqueId id = shared_memory().make_id();
  CHECK_FAILS("INVALID_ARGUMENT", shared_memory().make({id, 2, 2}));
  CHECK_FAILS("INVALID_ARGUMENT", shared_memory().make({id, 0, 65}));
  CHECK_FAILS("INVALID_ARGUMENT", shared_memory().make({id, 0, 1, milliseconds(0)}));
  CHECK_FAILS("INVALID_ARGUMENT", shared_memory().make({UniqueId{}, 0, 1}));
  const auto comm = shared_memory().make({id, 0, 2});
  CHECK_FAILS("COMMUNICATOR", shared_memory().make({id, 0, 2}));
  CHECK_FAILS("COMMUNICATOR", shared_memory().make({id, 1, 3}));
  UniqueId other = id;
  other.bytes[8] ^= 1;  // of the nonce
  CHECK_FAILS("COMMUNICATOR", shared_memory().make({other, 1, 2}));
  const auto stream = fixture::device().stream();
  std::vector<float> x(3), y(3);
  CHECK_FAILS("INVALID_ARGUMENT", comm->broadcast(*stream, of(x), 2));
  CHECK_FAILS("INVALID_ARGUMENT", comm->all_gather(*stream, of(x), of(y)));
  CHECK_FAILS("INVALID_ARGUMENT", comm->reduce_scatter(*stream, of(x), of(y), Reduction::sum));
  CHECK_FAILS("INVALID_ARGUMENT", comm->all_reduce(*stream, tensor(x.data(), DType::f16, {6}), Reduction::sum));
  CHECK_FAILS("INVALID_ARGUMENT", comm->all_reduce(*stream, tensor(nullptr, DType::f32, {6}), Reduction::sum));
  CHECK_FAILS("INVALID_ARGUMENT", comm->exchange(*stream, {{Transfer::Way::send, 0, of(x)}}));
}

// Neither names nor descriptors stay behind.
TEST(comm_leaves_nothing_behind) {
  const auto open_files = [] {
    size_t n = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++n;
    return n;
  };
  const auto once = [] { CHECK(none(run(2, [](Rank k) { k.comm.barrier(k.stream); }))); };
  once();
  const size_t before = open_files();
  for (int i = 0; i < 5; ++i) once();
  CHECK(open_files() == before);
}
