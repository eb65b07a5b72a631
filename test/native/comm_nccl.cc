// What is NCCL's alone: the library that is loaded, its failures and delays, ids of its own, and what its double sees
// of mistakes that the rules of comm.cc do not show.
#include "comm/nccl.h"

#include <cstdlib>
#include <mutex>

#include "comm_rig.h"
#include "cuda/stream.h"

using namespace comm_rig;

namespace {

const Way& over_nccl() { return ways()[1]; }

std::string failure_text(const std::function<void()>& work) {
  try {
    work();
  } catch (const Failure& failure) {
    return failure.code() + " " + failure.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  std::cout << "  \"" << text << "\" lacks \"" << part << "\"\n";
  return false;
}

// A plan of the double, to the end of the scope.
struct Planned {
  explicit Planned(NcclDoublePlan plan) { nccl_double().plan(&plan); }
  ~Planned() {
    nccl_double().plan(nullptr);
    nccl_double().faults();
  }
};
using What = NcclDoublePlan::What;

void one_of_each(Rank& k) {
  const Tensor x = k.zeros(100), all = k.zeros(100 * k.n);
  k.comm().all_reduce(k.stream, x, Reduction::sum);
  k.comm().all_gather(k.stream, x, all);
  k.comm().exchange(k.stream, {{Transfer::Way::send, (k.r + 1) % k.n, x},
                               {Transfer::Way::receive, (k.r + k.n - 1) % k.n, tensor(all.data, DType::f32, {100})}});
  k.stream.synchronize();
}

}  // namespace

TEST(nccl_library_is_checked_before_it_is_used) {
  CHECK(double_library().version == 22707 && nccl::version_text(double_library().version) == "2.27.7");
  CHECK(contains(double_library().file, "tokenring_nccl_double"));
  const std::string missing = failure_text([] { nccl::open("/nowhere/libnccl.so.2"); });
  CHECK(contains(missing, "INVALID_ARGUMENT NCCL could not be loaded: /nowhere/libnccl.so.2"));
  CHECK(contains(missing, "TOKENRING_NCCL"));
  CHECK(contains(failure_text([] { nccl::open("libm.so.6"); }), "libm.so.6 has no ncclGetVersion; install NCCL"));
  setenv("TOKENRING_NCCL_DOUBLE_VERSION", "21705", 1);
  CHECK(contains(failure_text([] { nccl::open(double_file()); }), "is NCCL 2.17.5; install NCCL 2.18.1 or newer"));
  unsetenv("TOKENRING_NCCL_DOUBLE_VERSION");
  check_faults();
}

// An error that NCCL reports, on one rank, is one of all, and says where.
TEST(nccl_errors_end_every_rank) {
  for (const What what : {What::refuse, What::error})
    for (const int operation : {0, 2, 3}) {
      const Planned planned({what, 1, operation, 0});
      const auto failures = run(over_nccl(), 3, one_of_each, milliseconds(10'000));
      // An error that comes by itself is of what is not known to be through, which may be the call before.
      const std::string where = operation == 0        ? "join: "
                                : what == What::error ? ""
                                : operation == 2      ? "all_gather #2: "
                                                      : "exchange #1: ";
      CHECK(all(failures, "COMMUNICATOR",
                {"NCCL failed on rank 1 of 3 in " + where, ": unhandled system error (as the test has planned)"}));
    }
}

// NCCL stands still: nobody is missing, and that is said; or one rank's GPU has not come to the call.
TEST(nccl_stalls_end_at_the_deadline) {
  for (const int operation : {0, 2, 4}) {
    // After a barrier: who has joined may call before the others have.
    const Planned planned({What::stall, 1, operation, 0});
    const auto body = [](Rank& k) {
      k.comm().barrier(k.stream);
      k.stream.synchronize();
      one_of_each(k);
    };
    const auto failures = run(over_nccl(), 3, body, milliseconds(2000));
    const std::string where = operation == 0 ? "join" : operation == 2 ? "all_reduce #2" : "exchange #1";
    CHECK(all(failures, "TIMEOUT", {"waited in " + where + " for 2 s; missing: nobody: all ranks are in it"}));
  }
  std::atomic<int> over = 0;
  const auto failures = run(
      over_nccl(), 2,
      [&](Rank& k) {
        const auto compute = k.device.stream();
        const Tensor x = k.zeros(10);
        // Rank 1's call is queued, but behind work that does not end before the others have given up.
        if (k.r == 1)
          emulator::enqueue_outside(
              cuda::device_stream(*compute).raw(), [] {}, [&] { return over > 0; }, [] {});
        k.stream.wait(*compute);
        k.comm().all_reduce(k.stream, x, Reduction::sum);
        try {
          k.stream.synchronize();
        } catch (const Failure&) {
          ++over;
          throw;
        }
      },
      milliseconds(2000));
  CHECK(all(failures, "TIMEOUT",
            {"waited in all_reduce #1 for 2 s; missing: rank 1 (all_reduce #1, which its GPU "
             "has not come to)"}));
  nccl_double().faults();
}

TEST(nccl_delays_are_waited_for) {
  for (const int operation : {0, 1, 2, 3}) {
    const Planned planned({What::late, 1, operation, 150});
    CHECK(none(run(over_nccl(), 3, one_of_each)));
    check_faults();
  }
}

// Ids of NCCL's own: no hub, so that ranks of other programs can take part. What happens is still noticed, by the
// deadline, but not who is to blame.
TEST(nccl_takes_ids_of_its_own) {
  const auto with_own_id = [](const std::function<void(Rank&)>& body, milliseconds timeout) {
    class Own final : public Transport {
     public:
      UniqueId make_id() const override {
        UniqueId id;
        double_library().GetUniqueId(&id);
        return id;
      }
      std::unique_ptr<Communicator> make(const CommunicatorOptions& options) const override {
        return over_nccl().transport.make(options);
      }
    } own;
    return run({"NCCL's id", true, own}, 2, body, timeout);
  };
  CHECK(none(with_own_id(one_of_each, milliseconds(20'000))));
  check_faults();
  const auto alone = with_own_id(
      [](Rank& k) {
        k.comm().barrier(k.stream);
        if (k.r == 0) k.comm().barrier(k.stream);
      },
      milliseconds(2000));
  CHECK(alone[1].empty());
  CHECK(all({alone[0]}, "TIMEOUT", {"rank 0 of 2 waited in barrier #2 for 2 s; NCCL does not say who is missing"}));
  {
    const Planned planned({What::error, 1, 1, 0});
    const auto failed = with_own_id(one_of_each, milliseconds(2000));
    CHECK(all({failed[1]}, "COMMUNICATOR", {"NCCL failed on rank 1 of 2 in all_reduce #1"}));
    CHECK(all({failed[0]}, "TIMEOUT", {"waited in all_reduce #1"}));
  }
}

// Without the check operations end by themselves; a disagreement comes to light a little later, but does.
TEST(nccl_without_the_check_still_finds_disagreement) {
  const auto transport = make_nccl_transport(double_library(), false);
  const Way way{"NCCL, unchecked", true, *transport};
  CHECK(none(run(way, 3, one_of_each)));
  check_faults();
  const auto failures =
      run(way, 2, [](Rank& k) { k.comm().all_reduce(k.stream, k.zeros(10), k.r ? Reduction::max : Reduction::sum); });
  CHECK(all(failures, "COMMUNICATOR", {"all_reduce(sum)", "all_reduce(max)"}));
  nccl_double().faults();
}

TEST(nccl_is_told_to_hold_the_memory_of_another_device_against_nobody) {
  // Memory of the host where the GPU's belongs: NCCL refuses, and says so on every rank.
  const auto failures = run(over_nccl(), 2, [](Rank& k) {
    std::vector<float> host(10);
    const Tensor x = k.r ? tensor(host.data(), DType::f32, {10}) : k.zeros(10);
    k.comm().all_reduce(k.stream, x, Reduction::sum);
    k.stream.synchronize();
  });
  CHECK(all(failures, "COMMUNICATOR",
            {"NCCL failed on rank 1 of 2 in all_reduce #1: invalid argument", "memory that is not the GPU's"}));
  nccl_double().faults();
}

// The double itself: what it is there to notice, it does.
TEST(nccl_double_notices_what_is_touched_too_early) {
  const auto noticed = [](const std::function<void(Rank&, Stream & other, Tensor x, Tensor y)>& wrong) {
    std::string seen;
    for (int turn = 0; turn < 20 && seen.empty(); ++turn) {
      const Planned planned({What::late, 0, 1, 3});
      run(over_nccl(), 2, [&](Rank& k) {
        const auto other = k.device.stream();
        const Tensor x = k.f32(std::vector<float>(1000, 1.0f)), y = k.zeros(1000);
        wrong(k, *other, x, y);
        other->synchronize();
      });
      seen = nccl_double().faults();
    }
    return seen;
  };
  CHECK(
      contains(noticed([](Rank& k, Stream& other, Tensor x, Tensor y) {
                 k.comm().exchange(k.stream, {{Transfer::Way::send, 1 - k.r, x}, {Transfer::Way::receive, 1 - k.r, y}});
                 other.copy_on_device(x.data, y.data, 4);  // does not wait
               }),
               "reads was written to before it was through"));
  CHECK(contains(noticed([](Rank& k, Stream& other, Tensor x, Tensor y) {
                   k.comm().all_reduce(k.stream, y, Reduction::sum);
                   other.copy_on_device(y.data, x.data, 4);
                 }),
                 "was written to before it was through"));
  // In their places the same is right.
  const Planned planned({What::late, 0, 1, 3});
  CHECK(none(run(over_nccl(), 2, [&](Rank& k) {
    const auto other = k.device.stream();
    const Tensor x = k.f32(std::vector<float>(1000, 1.0f)), y = k.zeros(1000);
    k.comm().exchange(k.stream, {{Transfer::Way::send, 1 - k.r, x}, {Transfer::Way::receive, 1 - k.r, y}});
    other->wait(k.stream);
    other->copy_on_device(x.data, y.data, 4);
    other->synchronize();
  })));
  check_faults();
}
