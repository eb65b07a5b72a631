// A communicator of the double: its worker, which moves the data, and how operations get from a call to a stream, from
// the stream to the worker, and back.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "lanes.h"
#include "nccl_double.h"

namespace nccl_double {

enum Result { kSuccess, kCuda, kSystem, kInternal, kArgument, kUsage, kRemote, kInProgress };
enum Kind { kMessage, kBroadcast, kAllReduce, kReduceScatter, kAllGather };

// What the process knows.
struct State {
  NcclDoubleHooks hooks{};
  std::mutex mutex;  // of what follows
  NcclDoublePlan plan;
  std::string faults, last_error;
  std::set<void*> alive;
};
State& state();

void fault(const std::string& text);
int fail(Result result, const std::string& text);
unsigned luck(unsigned n);  // below n

// Memory of the GPU that an operation reads or writes.
struct Span {
  char* data;
  size_t bytes;
  std::vector<char> copy;  // of what is read, from its begin on; of what is written, until its end
  uint64_t sum = 0;
};

struct Comm;

struct Part {  // of a group of messages
  int peer;
  bool sends;
  Label label;
  size_t span;
};

struct Operation {
  std::shared_ptr<Comm> comm;
  Label label{};
  int number = 0;
  void* stream = nullptr;
  std::vector<Span> reads, writes;
  std::vector<Part> parts;
  std::atomic<bool> done = false;
  bool cut = false;  // it was aborted
};
using Held = std::shared_ptr<Operation>;

struct Comm : std::enable_shared_from_this<Comm> {
  int rank = 0, size = 0;
  Lanes lanes;
  std::atomic<bool> aborted = false, finalizing = false;
  std::atomic<int> error{kSuccess}, calls{0};
  std::atomic<bool> joining = true;
  uint64_t collectives = 0, operations = 0;
  std::mutex mutex;  // of what follows
  std::condition_variable changed;
  std::deque<Held> queue;
  std::vector<Held> deferred;  // called, but on no stream yet
  std::chrono::steady_clock::time_point deferred_until;
  int under_way = 0;
  std::thread worker;

  NcclDoublePlan planned(int operation) const;
  std::string name() const { return "rank " + std::to_string(rank) + " of " + std::to_string(size); }
  void work();
  void run(Operation&);
  bool move(const std::vector<Transfer>&, const Operation&);
  void wait_for_abort() {
    while (!aborted) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  void enqueue(const Held&);
};

}  // namespace nccl_double
