// The rules of the communicator, over whatever it goes (see comm_rig.h): what the collectives give, and that nobody
// hangs. Sums are of whole numbers in floats, exact in any order, as NCCL has an order of its own.
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include "comm_rig.h"
#include "core/convert.h"

using namespace comm_rig;

namespace {

// Whole numbers below 1000: sums of 64 ranks are exact.
std::vector<float> data(int rank, int64_t n) {
  std::vector<float> x = fixture::random_floats(static_cast<size_t>(n), 100 + rank, 0, 1000);
  for (float& value : x) value = std::floor(value);
  return x;
}

std::vector<float> summed(int size, int64_t n) {
  std::vector<float> sum = data(0, n);
  for (int r = 1; r < size; ++r) {
    const std::vector<float> part = data(r, n);
    for (int64_t i = 0; i < n; ++i) sum[i] += part[i];
  }
  return sum;
}

std::vector<float> same(int64_t count, double value) {
  return std::vector<float>(static_cast<size_t>(count), static_cast<float>(value));
}

// Small, of several chunks, and none.
const int64_t kCounts[] = {1, 1000, 200'003, 0};

// Runs on each way, and CHECKs that the double has nothing against it.
void on_each(const std::function<void(const Way&)>& test) {
  for (const Way& way : ways()) {
    test(way);
    check_faults();
  }
}

// The same where ranks disagree, of which the double tells too.
void on_each_wrongly(const std::function<void(const Way&)>& test) {
  for (const Way& way : ways()) {
    test(way);
    nccl_double().faults();
  }
}

}  // namespace

TEST(comm_sums_over_the_ranks) {
  on_each([](const Way& way) {
    for (int size : {1, 2, 3, 8})
      for (int64_t count : kCounts) {
        const std::vector<float> expected = summed(size, count);
        CHECK(none(run(way, size, [&](Rank& k) {
          const Tensor x = k.f32(data(k.r, count));
          k.comm().all_reduce(k.stream, x, Reduction::sum);
          CHECK(k.read(x) == expected);
        })));
      }
  });
}

// Only over shared memory: in the order of the ranks, whose bits differ from those of any other.
TEST(comm_sums_go_in_the_order_of_the_ranks) {
  const auto thirds = [](int rank) { return std::vector<float>(1000, 1.0f / static_cast<float>(3 + rank)); };
  CHECK(none(run(ways()[0], 5, [&](Rank& k) {
    std::vector<float> expected = thirds(0);
    for (int r = 1; r < 5; ++r)
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += thirds(r)[i];
    const Tensor x = k.f32(thirds(k.r));
    k.comm().all_reduce(k.stream, x, Reduction::sum);
    CHECK(fixture::same_bits(k.read(x), expected));
  })));
}

TEST(comm_reduces_scatters_gathers_and_broadcasts) {
  on_each([](const Way& way) {
    for (int size : {1, 2, 3, 8})
      for (int64_t count : kCounts) {
        const std::vector<float> total = summed(size, count * size);
        CHECK(none(run(way, size, [&](Rank& k) {
          const Tensor in = k.f32(data(k.r, count * k.n)), out = k.zeros(count), all = k.zeros(count * k.n),
                       x = k.f32(same(count, k.r));
          const auto begin = total.begin() + k.r * count;
          k.comm().reduce_scatter(k.stream, in, out, Reduction::sum);
          k.comm().all_gather(k.stream, out, all);
          k.comm().broadcast(k.stream, x, k.n - 1);
          k.comm().barrier(k.stream);
          CHECK(k.read(out) == std::vector<float>(begin, begin + count));
          CHECK(k.read(all) == total);
          CHECK(k.read(x) == same(count, k.n - 1));
        })));
      }
  });
}

TEST(comm_reduces_every_dtype) {
  on_each([](const Way& way) {
    CHECK(none(run(way, 3, [](Rank& k) {
      const Tensor integers = k.i32({k.r, -k.r, INT32_MAX});
      const Tensor high = k.f32({static_cast<float>(k.r), -1.0f}), low = k.f32({static_cast<float>(k.r), -1.0f});
      const Tensor half = k.bf16({bf16_of_f32(static_cast<float>(1 + k.r))});
      const Tensor bytes = tensor(k.i32({k.r}).data, DType::u8, {4});
      k.comm().all_reduce(k.stream, integers, Reduction::sum);
      k.comm().all_reduce(k.stream, high, Reduction::max);
      k.comm().all_reduce(k.stream, low, Reduction::min);
      k.comm().all_reduce(k.stream, half, Reduction::sum);
      k.comm().broadcast(k.stream, bytes, 2);
      CHECK(k.read<int32_t>(integers) == (std::vector<int32_t>{3, -3, INT32_MAX - 2}));
      CHECK(k.read(high) == (std::vector<float>{2, -1}));
      CHECK(k.read(low) == (std::vector<float>{0, -1}));
      CHECK(f32_of_bf16(k.read<uint16_t>(half)[0]) == 6.0f);
      CHECK(k.read<uint8_t>(bytes)[0] == 2);
    })));
  });
}

// What shared memory promises beyond NCCL.
TEST(comm_sums_bf16_in_float32_and_keeps_nan) {
  CHECK(none(run(ways()[0], 3, [](Rank& k) {
    const Tensor high = k.f32({k.r == 1 ? NAN : 0.0f}), low = k.f32({k.r == 1 ? NAN : 0.0f});
    // 1 + 2^-8 + 2^-8 rounds to 1 + 2^-7 in bf16 only if it is summed in float32.
    const Tensor half = k.bf16({bf16_of_f32(k.r == 0 ? 1.0f : 0x1p-8f)});
    k.comm().all_reduce(k.stream, high, Reduction::max);
    k.comm().all_reduce(k.stream, low, Reduction::min);
    k.comm().all_reduce(k.stream, half, Reduction::sum);
    CHECK(std::isnan(k.read(high)[0]) && std::isnan(k.read(low)[0]));
    CHECK(f32_of_bf16(k.read<uint16_t>(half)[0]) == 1.0f + 0x1p-7f);
  })));
}

// Everyone to everyone in one group, messages of all sizes, and a ring.
TEST(comm_exchanges_in_groups) {
  on_each([](const Way& way) {
    for (int size : {2, 3, 8}) {
      CHECK(none(run(way, size, [&](Rank& k) {
        const int64_t counts[] = {0, 5, 300'000};
        std::vector<Tensor> got;
        std::vector<Transfer> group;
        for (int peer = 0; peer < k.n; ++peer)
          for (int64_t count : counts) {
            if (peer == k.r) continue;
            group.push_back({Transfer::Way::send, peer, k.f32(same(count, k.r * 100 + peer))});
            got.push_back(k.zeros(count));
            group.push_back({Transfer::Way::receive, peer, got.back()});
          }
        k.comm().exchange(k.stream, group);
        size_t at = 0;
        for (int peer = 0; peer < k.n; ++peer)
          for (int64_t count : counts)
            if (peer != k.r) CHECK(k.read(got[at++]) == same(count, peer * 100 + k.r));
        // Once around the ring, everyone's number comes home.
        Tensor token = k.f32({static_cast<float>(k.r)}), next = k.zeros(1);
        for (int hop = 0; hop < k.n; ++hop) {
          k.comm().exchange(k.stream, {{Transfer::Way::send, (k.r + 1) % k.n, token},
                                       {Transfer::Way::receive, (k.r + k.n - 1) % k.n, next}});
          std::swap(token, next);
        }
        CHECK(k.read(token)[0] == static_cast<float>(k.r));
      })));
    }
  });
}

// A pair that answers in groups cut in another way is no mismatch, nor are ranks that are not part of an exchange.
TEST(comm_takes_groups_that_are_cut_differently) {
  on_each([](const Way& way) {
    CHECK(none(run(way, 3, [](Rank& k) {
      const Tensor a = k.f32(same(100'000, 1)), b = k.zeros(100'000);
      for (int turn = 0; turn < 20; ++turn) {
        if (k.r == 0) {
          k.comm().exchange(k.stream, {{Transfer::Way::receive, 1, b}});
          k.comm().exchange(k.stream, {{Transfer::Way::send, 1, a}});
        } else if (k.r == 1) {
          k.comm().exchange(k.stream, {{Transfer::Way::receive, 0, b}, {Transfer::Way::send, 0, a}});
        }
        k.comm().all_reduce(k.stream, a, Reduction::max);
      }
      CHECK(k.read(a) == same(100'000, 1));
    })));
  });
}

// Work on another stream is waited for, and waits.
TEST(comm_keeps_the_order_of_streams) {
  on_each([](const Way& way) {
    CHECK(none(run(way, 3, [](Rank& k) {
      const auto compute = k.device.stream();
      const Tensor x = k.f32(same(1000, k.r + 1)), y = k.zeros(1000), z = k.zeros(1000);
      for (int turn = 0; turn < 5; ++turn) {
        compute->copy_on_device(y.data, x.data, x.bytes());
        k.stream.wait(*compute);
        k.comm().all_reduce(k.stream, y, Reduction::sum);
        compute->wait(k.stream);
        compute->copy_on_device(z.data, y.data, y.bytes());
        k.stream.wait(*compute);
        CHECK(k.read(z) == same(1000, 6));
      }
    })));
  });
}

TEST(comm_disagreement_fails_on_every_rank) {
  on_each_wrongly([](const Way& way) {
    const auto kinds = run(way, 3, [&](Rank& k) {
      const Tensor x = k.zeros(1000);
      k.comm().barrier(k.stream);
      if (k.r == 2)
        k.comm().broadcast(k.stream, x, 0);
      else
        k.comm().all_reduce(k.stream, x, Reduction::sum);
    });
    CHECK(all(kinds, "COMMUNICATOR",
              {"collective #2", "all_reduce(sum) of 1000 x f32", "rank 2 broadcast(root 0) of 1000 x f32"}));
    const auto counts =
        run(way, 2, [&](Rank& k) { k.comm().all_reduce(k.stream, k.zeros(k.r ? 1000 : 999'999), Reduction::sum); });
    CHECK(all(counts, "COMMUNICATOR", {"rank 0 runs all_reduce(sum) of 999999 x f32, rank 1 all_reduce(sum) of 1000"}));
    const auto dtypes = run(way, 2, [&](Rank& k) {
      k.comm().all_reduce(k.stream, k.r ? k.i32(std::vector<int32_t>(1000)) : k.zeros(1000), Reduction::sum);
    });
    CHECK(all(dtypes, "COMMUNICATOR", {"1000 x f32", "1000 x i32"}));
    const auto reductions = run(
        way, 2, [&](Rank& k) { k.comm().all_reduce(k.stream, k.zeros(1000), k.r ? Reduction::max : Reduction::sum); });
    CHECK(all(reductions, "COMMUNICATOR", {"all_reduce(sum)", "all_reduce(max)"}));
    const auto roots = run(way, 2, [&](Rank& k) { k.comm().broadcast(k.stream, k.zeros(10), k.r); });
    CHECK(all(roots, "COMMUNICATOR", {"broadcast(root 0)", "broadcast(root 1)"}));
  });
}

TEST(comm_disagreement_about_messages_fails_on_every_rank) {
  on_each_wrongly([](const Way& way) {
    const auto counts = run(way, 2, [&](Rank& k) {
      k.comm().exchange(k.stream,
                        {{k.r ? Transfer::Way::send : Transfer::Way::receive, 1 - k.r, k.zeros(k.r ? 1'000'000 : 10)}});
    });
    CHECK(all(counts, "COMMUNICATOR", {"rank 1 sent 1000000 x f32", "rank 0 receives 10 x f32"}));
    for (const auto which : {Transfer::Way::receive, Transfer::Way::send}) {
      const auto collective = run(way, 2, [&](Rank& k) {
        if (k.r)
          k.comm().exchange(k.stream, {{which, 0, k.zeros(1'000'000)}});
        else
          k.comm().barrier(k.stream);
      });
      CHECK(all(collective, "COMMUNICATOR", {"barrier #1", "exchange #1", "same calls in the same order"}));
      // Two that both listen, and two that both speak, more than fits.
      const auto both = run(way, 2, [&](Rank& k) {
        k.comm().exchange(k.stream, {{which, 1 - k.r, k.zeros(1'000'000)}});
      });
      CHECK(all(both, "COMMUNICATOR", {"exchange #1", "same calls in the same order"}));
    }
  });
}

TEST(comm_waits_have_a_deadline_that_names_who_is_missing) {
  on_each_wrongly([](const Way& way) {
    // Rank 2 stays until the others have given up.
    std::atomic<int> gone = 0;
    const auto failures = run(
        way, 3,
        [&](Rank& k) {
          const Tensor y = k.zeros(10);
          k.comm().barrier(k.stream);
          k.stream.synchronize();
          if (k.r == 2) {
            while (gone < 2) std::this_thread::yield();
            k.comm().barrier(k.stream);
            return;
          }
          k.comm().all_reduce(k.stream, y, Reduction::sum);
          try {
            k.stream.synchronize();
          } catch (...) {
            ++gone;
            throw;
          }
        },
        milliseconds(3000));
    CHECK(all(failures, "TIMEOUT", {"waited in all_reduce #2 for 3 s; missing: rank 2 (its last call, barrier #1)"}));
    // A rank that never comes.
    const UniqueId id = way.transport.make_id();
    const auto comm = way.transport.make({id, 0, 2, milliseconds(50)});
    try {
      comm->join();
      CHECK(false);
    } catch (const Failure& failure) {
      CHECK(failure.code() == "TIMEOUT");
      CHECK(std::string(failure.what()).find("waited in join for 0.05 s; missing: rank 1 (never joined)") !=
            std::string::npos);
    }
  });
}

TEST(comm_leaving_and_aborting_end_the_others) {
  on_each_wrongly([](const Way& way) {
    const auto left = run(way, 3, [](Rank& k) {
      if (k.r != 1) k.comm().barrier(k.stream);
    });
    CHECK(left[1].empty());
    CHECK(all({left[0], left[2]}, "COMMUNICATOR", {"waits in barrier #1 for rank 1, which has left the communicator"}));

    const auto aborted = run(way, 3, [](Rank& k) {
      if (k.r == 1) k.comm().abort("enough");
      k.comm().barrier(k.stream);
    });
    CHECK(aborted[1].rfind("ABORTED rank 1 of 3 aborted the communicator", 0) == 0);
    CHECK(all({aborted[0], aborted[2]}, "COMMUNICATOR", {"rank 1 of 3 aborted it in join: enough"}));

    // In the middle of a wait, from another thread.
    const auto cut = run(way, 2, [](Rank& k) {
      if (k.r == 0) {
        k.comm().barrier(k.stream);
        std::thread([&] { k.comm().abort("no longer wanted"); }).join();
      }
      k.comm().barrier(k.stream);
      k.comm().barrier(k.stream);
    });
    CHECK(all({cut[0]}, "ABORTED", {"rank 0 of 2 aborted the communicator"}));
    CHECK(all({cut[1]}, "COMMUNICATOR", {"rank 0 of 2 aborted it in", "no longer wanted"}));
  });
}

// Of a group of a larger world: whoever reads of a rank is to find it.
TEST(comm_names_the_ranks_of_a_group_as_the_world_does) {
  on_each_wrongly([](const Way& way) {
    const RankNames names{5, 3, 16, {"replica group"}}, pair{6, 1, 8, {"context group"}};
    const auto run_group = [&](int size, const std::function<void(Rank&)>& body) {
      return run(way, size, body, milliseconds(2000), size == 2 ? pair : names);
    };
    const auto roots = run_group(3, [](Rank& k) { k.comm().broadcast(k.stream, k.zeros(10), k.r ? 1 : 0); });
    CHECK(all(roots, "COMMUNICATOR",
              {"the ranks of a replica group, ranks 5, 8, 11, disagree about collective #1: rank 5 runs broadcast(root "
               "5) of 10 x f32, rank ",
               " broadcast(root 8)"}));
    const auto counts = run_group(2, [](Rank& k) {
      k.comm().exchange(k.stream,
                        {{k.r ? Transfer::Way::send : Transfer::Way::receive, 1 - k.r, k.zeros(k.r ? 1'000'000 : 10)}});
    });
    CHECK(all(counts, "COMMUNICATOR", {"rank 7 sent 1000000 x f32", "but rank 6 receives 10 x f32"}));
    const auto left = run_group(4, [](Rank& k) {
      if (k.r != 1) k.comm().barrier(k.stream);
    });
    CHECK(left[1].empty());
    CHECK(all({left[0], left[2], left[3]}, "COMMUNICATOR",
              {" of its replica group, ranks 5, 8, ..., 14) waits in barrier #1 for rank 8, which has left"}));
    const auto aborted = run_group(2, [](Rank& k) {
      if (k.r == 1) k.comm().abort("enough");
      k.comm().barrier(k.stream);
    });
    CHECK(all({aborted[0]}, "COMMUNICATOR", {"rank 7 of 8 (rank 1 of its context group, ranks 6 and 7) aborted it"}));
    CHECK(all({aborted[1]}, "ABORTED", {"rank 7 of 8 (rank 1 of its context group, ranks 6 and 7) aborted the"}));
    const UniqueId id = way.transport.make_id();
    const auto comm = way.transport.make({id, 0, 2, milliseconds(50), pair});
    std::string never;
    try {
      comm->join();
    } catch (const Failure& failure) {
      never = failure.code() + " " + failure.what();
    }
    CHECK(all({never}, "TIMEOUT",
              {"rank 6 of 8 (rank 0 of its context group, ranks 6 and 7) waited in join for 0.05 s; missing: rank 7 "
               "(never joined)"}));
  });
}

// The first failure is that of every later operation.
TEST(comm_stays_broken) {
  on_each_wrongly([](const Way& way) {
    CHECK(none(run(way, 2, [&](Rank& k) {
      const Tensor x = k.zeros(10);
      for (int turn = 0; turn < 3; ++turn) {
        if (k.r)
          k.comm().barrier(k.stream);
        else
          k.comm().all_reduce(k.stream, x, Reduction::sum);
        std::string what;
        try {
          k.stream.synchronize();
        } catch (const Failure& failure) {
          what = failure.what();
        }
        CHECK(what.find("disagree about collective #1") != std::string::npos);
      }
    })));
  });
}

// Whatever this host has under the number of the process that made the id.
TEST(comm_over_shared_memory_refuses_another_host) {
  UniqueId id = shared_memory().make_id();
  id.bytes[32] ^= 1;  // of the host's number
  try {
    shared_memory().make({id, 0, 2});
    CHECK(false);
  } catch (const Failure& failure) {
    CHECK(all({failure.code() + " " + failure.what()}, "COMMUNICATOR",
              {"process " + std::to_string(getpid()), "runs on another host or in another container",
               "start all of them there, or give each a GPU (device \"cuda\")"}));
  }
}

TEST(comm_refuses_what_cannot_be) {
  on_each([](const Way& way) {
    const Transport& over = way.transport;
    const UniqueId id = over.make_id();
    CHECK_FAILS("INVALID_ARGUMENT", over.make({id, 2, 2}));
    CHECK_FAILS("INVALID_ARGUMENT", over.make({id, 0, 5000}));
    CHECK_FAILS("INVALID_ARGUMENT", over.make({id, 0, 1, milliseconds(0)}));
    CHECK_FAILS("INVALID_ARGUMENT", over.make({UniqueId{}, 0, 1}));
    // That the place is taken is said by make() or by join(). Of two that want one, one gets it.
    const auto come = [&](int rank, int size, const UniqueId& with) {
      over.make({with, rank, size, milliseconds(2000)})->join();
    };
    std::unique_ptr<Communicator> comm, spare;
    std::vector<std::thread> joining;
    std::atomic<int> refused = 0;
    std::mutex taking;
    for (int i = 0; i < 2; ++i)
      joining.emplace_back([&] {
        Communicator* mine = nullptr;
        try {
          {
            std::lock_guard lock(taking);
            auto made = over.make({id, 0, 2});
            mine = made.get();
            (comm ? spare : comm) = std::move(made);
          }
          mine->join();
        } catch (const Failure& failure) {
          if (failure.code() != "COMMUNICATOR") return;  // aborted below
          std::lock_guard lock(taking);
          if (mine == comm.get()) std::swap(comm, spare);
          ++refused;
        }
      });
    while (refused == 0) std::this_thread::yield();
    CHECK_FAILS("COMMUNICATOR", come(1, 3, id));
    CHECK_FAILS("COMMUNICATOR", come(0, 2, id));
    UniqueId other = id;
    other.bytes[8] ^= 1;  // of the nonce
    CHECK_FAILS("COMMUNICATOR", come(1, 2, other));
    Place place(way.gpu);
    const auto stream = place.device().stream();
    Rank k(place.device(), *stream, 0, 2);
    const Tensor x = k.zeros(3), y = k.zeros(3);
    CHECK_FAILS("INVALID_ARGUMENT", comm->broadcast(*stream, x, 2));
    CHECK_FAILS("INVALID_ARGUMENT", comm->all_gather(*stream, x, y));
    CHECK_FAILS("INVALID_ARGUMENT", comm->reduce_scatter(*stream, x, y, Reduction::sum));
    CHECK_FAILS("INVALID_ARGUMENT", comm->all_reduce(*stream, tensor(x.data, DType::f16, {6}), Reduction::sum));
    CHECK_FAILS("INVALID_ARGUMENT", comm->all_reduce(*stream, tensor(nullptr, DType::f32, {6}), Reduction::sum));
    CHECK_FAILS("INVALID_ARGUMENT", comm->exchange(*stream, {{Transfer::Way::send, 0, x}}));
    comm->abort("enough");
    for (std::thread& thread : joining) thread.join();
    CHECK(refused == 1);
  });
}

// Neither names nor descriptors nor threads stay behind.
TEST(comm_leaves_nothing_behind) {
  on_each([](const Way& way) {
    const auto count = [](const char* folder) {
      return std::distance(std::filesystem::directory_iterator(folder), std::filesystem::directory_iterator());
    };
    const auto once = [&] { CHECK(none(run(way, 2, [](Rank& k) { k.comm().barrier(k.stream); }))); };
    once();
    // A hub ends when it has seen the last rank go.
    const auto soon = [&](auto holds) {
      for (int i = 0; i < 5000 && !holds(); ++i) std::this_thread::sleep_for(milliseconds(1));
      return holds();
    };
    const auto files = count("/proc/self/fd"), tasks = count("/proc/self/task");
    for (int i = 0; i < 5; ++i) once();
    CHECK(soon([&] { return count("/proc/self/fd") <= files; }));
    CHECK(soon([&] { return count("/proc/self/task") <= tasks; }));
  });
}
