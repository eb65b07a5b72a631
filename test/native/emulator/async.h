// The state of a block that copies and products see: two views of dynamic shared memory, and what is in flight on it.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine.h"
#include "ptx.h"

namespace emulator {

// Bytes of shared memory that a copy or product reads or writes, from when it is begun until a thread knows its end.
struct Flight {
  uint64_t id;
  uint32_t begin, end;
  bool writes;
  const char* what;
};

struct MemoryBarrier {
  uint32_t arrivals, pending, parity;
  int64_t bytes;
  bool fenced;
  unsigned maker;
  std::vector<unsigned> waiting;
};

struct NamedBarrier {
  int threads = 0, here = 0;
  std::vector<unsigned> waiting;
};

// One wgmma of a warpgroup.
struct Step {
  int n;
  bool n_major, accumulate, from_registers;
  uint64_t a, b;
  uint64_t flight = 0;
  unsigned here = 0, waited = 0;  // threads
  bool done = false, retired = false;
  std::array<float*, 128> d;
  std::array<const uint32_t*, 128> registers;
};

struct Warpgroup {
  std::deque<Step> steps;
  size_t first = 0;  // the index of steps.front()
  std::vector<unsigned> waiting;
};

// A bulk addition: it is in flight until its thread has waited for it.
struct Addition {
  uint64_t flight;
  std::shared_ptr<bool> done;
};

struct Thread {
  std::vector<std::pair<uint32_t, uint32_t>> unpublished;  // stored since the last fence_async()
  int registers = 0;
  bool fenced = false;            // wgmma_fence() since the last group
  size_t issued = 0, waited = 0;  // steps
  std::vector<size_t> groups;     // `issued` at each wgmma_commit()
  std::vector<Addition> bulk;     // of the group that is open
  std::vector<std::vector<Addition>> bulk_groups;
  bool waits_for_bulk = false;
};

struct Async {
  unsigned char *memory = nullptr, *view = nullptr;  // what threads see, and what copies and products see
  size_t bytes = 0;
  uint64_t next_flight = 1;
  std::vector<Flight> flights;
  std::map<uint32_t, MemoryBarrier> barriers;
  std::array<NamedBarrier, 16> named;
  std::vector<Warpgroup> warpgroups;
  std::vector<Thread> threads;
};

Async& async();

inline Thread& me() { return async().threads[this_thread()]; }

// Where dynamic shared memory begins in the address space of shared memory.
constexpr uint32_t kSharedBase = 1024;

// The offset in dynamic shared memory of `bytes` bytes there, at a multiple of `alignment`, or a fault.
uint32_t offset_of(const void* p, size_t bytes, size_t alignment, const char* what);

// Faults if something in flight conflicts.
void check_flights(uint32_t begin, uint32_t end, bool writes, const char* what);
void begin_flight(uint64_t id, uint32_t begin, uint32_t end, bool writes, const char* what);
void end_flight(uint64_t id);

}  // namespace emulator
