// The memory that the ranks of one host share: who is there, what they have published, and where their data lies.
//
// It is an anonymous file (memfd): it has no name that could stay behind, and ends with the last process that holds
// it. The unique id says which process opened it and as what descriptor; the others open it through /proc.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "comm/call.h"
#include "comm/communicator.h"

namespace tokenring::comm {

constexpr size_t kChunk = size_t{256} << 10;  // bytes of one outbox, and of one slot of a mailbox
constexpr uint64_t kSlots = 2;

enum class Presence : uint32_t { absent, coming, joined, left };

struct alignas(64) RankState {
  std::atomic<Presence> presence;
  int32_t process;
  uint64_t started;              // start time of the process: numbers of processes are used again
  std::atomic<uint64_t> doing;   // what it runs or ran last, for messages: see Activity in shared_memory.cc
  std::atomic<uint64_t> step;    // steps published, over all collectives
  std::atomic<uint32_t> bell;    // a futex: changes when something happened that the rank may wait for
  std::atomic<uint32_t> asleep;  // whether somebody must ring
  alignas(64) Call say[2];       // of the steps of even and of odd number
};

// Data on the way from one rank to another, a message in chunks. Counts are of chunks and only grow.
struct alignas(64) Mailbox {
  // Written by the sender; `goal` is where `pushed` will be when its group is through.
  std::atomic<uint64_t> pushed, goal;
  // Written by the receiver, in the same way.
  alignas(64) std::atomic<uint64_t> taken, wanted;
  struct Slot {
    int64_t count;  // of the whole message
    uint8_t dtype;
  } slots[kSlots];
};

struct Head {
  uint64_t magic;
  uint8_t nonce[16];
  std::atomic<int32_t> size;     // 0 until the first rank has come
  std::atomic<int32_t> joined;   // ranks that have come
  std::atomic<uint32_t> broken;  // 0 no, 1 being written, 2 yes
  char code[32], reason[2000];   // of the Failure, once broken
};

// A mapping of the region. Movable, not copyable.
class Region {
 public:
  // Failure COMMUNICATOR if the id's process or its memory is gone, or another size was said before.
  Region(const UniqueId& id, int size);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  Head& head() const { return *reinterpret_cast<Head*>(base_); }
  RankState& rank(int r) const;
  // Two of each rank, for steps of even and of odd number: while a step is read, the next one is written.
  std::byte* outbox(int rank, uint64_t step) const;
  Mailbox& mailbox(int from, int to) const;
  std::byte* slot(int from, int to, uint64_t chunk) const;

 private:
  std::byte* base_ = nullptr;
  size_t bytes_ = 0;
  int size_;
};

// Opens the memory of a new communicator and keeps it open for those who come.
UniqueId open_region();
// Gives this process's share in an id back once all ranks have joined.
void close_region(const UniqueId& id);

// When a process was started, in ticks of the kernel's clock; 0 when it is gone or only waits to be reaped.
uint64_t process_start(int32_t process);

// Sleeps while `bell` is `seen`, at most so long.
void sleep_on(std::atomic<uint32_t>& bell, uint32_t seen, int64_t milliseconds);
// Wakes the rank if it sleeps. What it waits for was stored before, sequentially consistent.
void ring(RankState& rank);

}  // namespace tokenring::comm
