// Ranks in processes of their own, one of which is killed, stopped or slow at each kind of operation, over whatever the
// communicator goes over: none hangs, none goes on as if nothing had been.
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <map>

#include "comm/call.h"
#include "comm_rig.h"
#include "cpu/device.h"

using namespace comm_rig;

namespace {

// A child, and what it says before it ends.
class Process {
 public:
  explicit Process(const std::function<std::string()>& work) {
    int ends[2];
    if (pipe(ends) != 0) fail("INTERNAL", "no pipe");
    std::cout.flush();
    const pid_t parent = getpid();
    id_ = fork();
    if (id_ == 0) {
      // It does not outlive the test.
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      close(ends[0]);
      const std::string said = work();
      [[maybe_unused]] const ssize_t n = write(ends[1], said.data(), said.size());
      _exit(0);
    }
    close(ends[1]);
    out_ = ends[0];
  }
  ~Process() {
    if (id_ > 0) kill(id_, SIGKILL), waitpid(id_, nullptr, 0);
    close(out_);
  }
  Process(const Process&) = delete;

  // All that it says until it ends; "hangs" if it does not within the time.
  std::string wait(milliseconds most) {
    const auto deadline = std::chrono::steady_clock::now() + most;
    std::string said;
    for (;;) {
      const auto left = std::chrono::duration_cast<milliseconds>(deadline - std::chrono::steady_clock::now()).count();
      pollfd fd{out_, POLLIN, 0};
      if (left <= 0 || poll(&fd, 1, static_cast<int>(left)) <= 0) return "hangs after \"" + said + "\"";
      char text[4096];
      const ssize_t n = read(out_, text, sizeof(text));
      if (n <= 0) return said;
      said.append(text, static_cast<size_t>(n));
    }
  }
  pid_t id() const { return id_; }

 private:
  pid_t id_ = 0;
  int out_ = -1;
};

const char* const kKinds[] = {"barrier", "broadcast", "all_reduce", "reduce_scatter", "all_gather", "exchange"};

void operate(Rank& k, const std::string& kind) {
  const Tensor part = k.f32(std::vector<float>(1000, 1.0f)), whole = k.zeros(1000 * k.n);
  if (kind == "barrier") k.comm().barrier(k.stream);
  if (kind == "broadcast") k.comm().broadcast(k.stream, whole, 1);
  if (kind == "all_reduce") k.comm().all_reduce(k.stream, part, Reduction::sum);
  if (kind == "reduce_scatter") k.comm().reduce_scatter(k.stream, whole, part, Reduction::sum);
  if (kind == "all_gather") k.comm().all_gather(k.stream, part, whole);
  if (kind == "exchange") {
    // Everyone with everyone.
    std::vector<Transfer> group;
    for (int peer = 0; peer < k.n; ++peer) {
      if (peer == k.r) continue;
      group.push_back({Transfer::Way::send, peer, part});
      group.push_back(
          {Transfer::Way::receive, peer, tensor(static_cast<float*>(whole.data) + 1000 * peer, DType::f32, {1000})});
    }
    k.comm().exchange(k.stream, std::move(group));
  }
  k.stream.synchronize();
}

enum class Fate { killed, killed_inside, stopped, stopped_inside, slow };

// What a rank does: one call that all make, then the one that rank 1 does not come to, or not out of, or late.
std::string live(const Way& way, const UniqueId& id, int rank, int size, const std::string& kind, Fate fate,
                 milliseconds timeout, const RankNames& names = {}) {
  try {
    // The threads of devices that the parent has made are not here.
    const auto cpu = make_cpu_device(1);
    Place place(way.gpu, static_cast<uint64_t>(rank) + 1);
    Device& device = way.gpu ? place.device() : *cpu;
    const auto stream = device.stream();
    Rank k(device, *stream, rank, size);
    const Drain drain{*stream};
    k.communicator = way.transport.make({id, rank, size, timeout, names});
    k.communicator->join();
    k.comm().barrier(*stream);
    stream->synchronize();
    const bool inside = fate == Fate::killed_inside || fate == Fate::stopped_inside;
    const int signal = fate == Fate::killed || fate == Fate::killed_inside ? SIGKILL : SIGSTOP;
    if (rank == 1 && inside) {
      // The operation takes so long that the end comes in the middle of it.
      const NcclDoublePlan plan{NcclDoublePlan::What::stall, 1, 2, 0};
      nccl_double().plan(&plan);
      std::thread([signal] {
        std::this_thread::sleep_for(milliseconds(100));
        raise(signal);
      }).detach();
    } else if (rank == 1) {
      if (fate == Fate::slow)
        std::this_thread::sleep_for(milliseconds(300));
      else
        raise(signal);
    }
    operate(k, kind);
    k.comm().barrier(*stream);
    stream->synchronize();
    k.communicator.reset();
    return "through";
  } catch (const Failure& failure) {
    return failure.code() + " " + failure.what();
  }
}

constexpr int kSize = 3;

// `names`: of a group of a larger world, whose ranks messages call by their numbers there. `of`: how they go on.
void check_fates(const Way& way, const std::vector<Fate>& fates, const RankNames& names = {},
                 const std::string& of = "of 3") {
  const std::string missing = "rank " + std::to_string(comm::number_of(1, names));
  for (const Fate fate : fates) {
    const bool stops = fate == Fate::stopped || fate == Fate::stopped_inside;
    const milliseconds timeout(stops ? 5000 : 30'000);
    // All kinds at once: most of the time they wait.
    std::map<std::string, std::vector<std::unique_ptr<Process>>> ranks;
    for (const std::string kind : kKinds) {
      const UniqueId id = way.transport.make_id();
      for (int r = 0; r < kSize; ++r)
        ranks[kind].push_back(
            std::make_unique<Process>([&, r] { return live(way, id, r, kSize, kind, fate, timeout, names); }));
    }
    for (const auto& [kind, processes] : ranks) {
      const std::string call = kind + (kind == "exchange" ? " #1" : " #2");
      for (const int r : {0, 2}) {
        const std::string said = processes[r]->wait(milliseconds(25'000));
        const auto has = [&, &kind = kind](const std::string& part) {
          if (said.find(part) == std::string::npos)
            harness::report(__FILE__, __LINE__, way.name, ", ", kind, ", fate ", static_cast<int>(fate), ", rank ", r,
                            " said \"", said, "\", not \"", part, "\"");
        };
        if (fate == Fate::slow) {
          has("through");
        } else if (stops) {
          has("TIMEOUT");
          has(of + " waited in " + call + " for 5 s; missing: " + missing + " (");
        } else {
          has("COMMUNICATOR");
          has(of + " waits in " + call + " for " + missing + ", whose process " + std::to_string(processes[1]->id()) +
              " has died");
        }
      }
    }
  }
}

}  // namespace

TEST(comm_processes_shared_memory_misses_who_is_killed_stopped_or_slow) {
  check_fates(ways()[0], {Fate::killed, Fate::stopped, Fate::slow});
}

TEST(comm_processes_nccl_misses_who_is_killed_stopped_or_slow) {
  check_fates(ways()[1], {Fate::killed, Fate::killed_inside, Fate::stopped, Fate::stopped_inside, Fate::slow});
}

// Of a context group: by their numbers among all ranks, at which a person can look them up.
TEST(comm_processes_miss_ranks_of_a_group_by_their_numbers_in_the_world) {
  const RankNames names{4, 1, 8, {"context group"}};
  for (const Way& way : ways())
    check_fates(way, {Fate::killed, Fate::stopped}, names, "of its context group, ranks 4 to 6)");
}

// Who keeps the list of the ranks dies.
TEST(comm_processes_nccl_misses_the_process_of_its_id) {
  const Way& way = ways()[1];
  int ends[2];
  CHECK(pipe(ends) == 0);
  Process keeper([&] {
    const UniqueId id = way.transport.make_id();
    [[maybe_unused]] const ssize_t n = write(ends[1], id.bytes.data(), id.bytes.size());
    return live(way, id, 1, 3, "barrier", Fate::killed, milliseconds(20'000));
  });
  UniqueId id;
  CHECK(read(ends[0], id.bytes.data(), id.bytes.size()) == static_cast<ssize_t>(id.bytes.size()));
  close(ends[0]);
  close(ends[1]);
  const auto other = [&](int r) {
    return std::make_unique<Process>(
        [&, r] { return live(way, id, r, 3, "barrier", Fate::killed, milliseconds(20'000)); });
  };
  const auto first = other(0), last = other(2);
  for (Process* process : {first.get(), last.get()}) {
    const std::string said = process->wait(milliseconds(25'000));
    CHECK(said.find("COMMUNICATOR the communicator is broken: the process that made the unique id has ended") == 0);
    if (said.find("COMMUNICATOR") != 0) std::cout << "  " << said << "\n";
  }
  // And whoever comes later.
  Process late([&] { return live(way, id, 2, 3, "barrier", Fate::killed, milliseconds(20'000)); });
  CHECK(late.wait(milliseconds(25'000)).find("COMMUNICATOR nobody answers for this unique id") == 0);
}
