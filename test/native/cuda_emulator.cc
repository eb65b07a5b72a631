// The emulator's engine: fibers, their schedule, and the watch over memory. See emulator/cuda.h.
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <exception>
#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "core/failure.h"
#include "emulator/cuda.h"
#include "emulator/engine.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

// Bounds of the section of __shared__ variables, made by the linker. Weak: there may be none.
extern "C" char __start_emulated_shared[] __attribute__((weak));
extern "C" char __stop_emulated_shared[] __attribute__((weak));

namespace emulator {
namespace {

using tokenring::fail;

constexpr unsigned kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStack = 64 << 10, kGuard = 256, kMaxShared = 227 << 10;
constexpr unsigned char kUnset = 0xff;

// --- memory --------------------------------------------------------------------------------------------------------

// Who last touched two bytes. Blocks are numbered through all launches; an epoch ends at each barrier of a block.
struct Touch {
  uint32_t block = 0, epoch = 0, thread = 0;
};
constexpr uint32_t kMany = ~0u;  // as the thread of readers: several, of one block and epoch

struct Cell {
  Touch write, read;
  bool blocks_read = false;  // further blocks have read it, beside that of `read`
};

struct Region {
  char *begin, *end;
  bool shared;              // every block has its own: blocks do not race
  std::vector<Cell> cells;  // made when a kernel first comes here
  Region(char* from, char* to, bool is_shared) : begin(from), end(to), shared(is_shared) {}
};

// The region of the last access: the next is likely there too.
Region* last_region = nullptr;

// The memory that kernels may touch; the first is shared memory.
std::vector<std::unique_ptr<Region>>& regions() {
  static std::vector<std::unique_ptr<Region>> all = [] {
    std::vector<std::unique_ptr<Region>> first;
    first.push_back(std::make_unique<Region>(__start_emulated_shared, __stop_emulated_shared, true));
    return first;
  }();
  return all;
}

void check_guards(const char* kernel) {
  for (const auto& region : regions()) {
    if (region->shared) continue;
    const auto is_set = [](char c) { return static_cast<unsigned char>(c) != kUnset; };
    const char* low = std::find_if(region->begin - kGuard, region->begin, is_set);
    const char* high = std::find_if(region->end, region->end + kGuard, is_set);
    if (low == region->begin && high == region->end + kGuard) continue;
    std::fill(region->begin - kGuard, region->begin, static_cast<char>(kUnset));
    std::fill(region->end, region->end + kGuard, static_cast<char>(kUnset));
    fail("OUT_OF_BOUNDS", kernel, " stored at byte ", (low != region->begin ? low : high) - region->begin,
         " of a buffer of ", region->end - region->begin, " bytes");
  }
}

// --- fibers --------------------------------------------------------------------------------------------------------

enum class State { ready, at_barrier, at_shuffle, asleep, ended };

// Where a fiber stands. Switching is the emulator's hot path: ucontext asks the kernel for the signal mask each time.
#if defined(__x86_64__)
using Context = void*;  // its stack pointer; what a call must keep lies on the stack

extern "C" void tokenring_emulator_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.type tokenring_emulator_switch, @function
tokenring_emulator_switch:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
.size tokenring_emulator_switch, . - tokenring_emulator_switch
)");

void switch_context(Context& from, Context& to) { tokenring_emulator_switch(&from, to); }

void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // the return address of entry, which never returns; it keeps the alignment of a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}
#else
using Context = ucontext_t;

void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

struct Fiber {
  Context context{};
  char* stack = nullptr;
  bool made = false;  // waits at the top of its loop, ready for the next block
  State state = State::ended;
  const char* waits_for = "";
  std::source_location where;
  uint64_t given = 0, taken = 0;  // in a shuffle
  unsigned wanted = 0;            // the thread whose value it takes
  dim3 index;
};

constexpr uint64_t kNever = ~uint64_t{0};

// Work that happens by itself; in the order in which it was begun.
struct Event {
  uint64_t due;  // a step of the schedule
  unsigned thread;
  std::function<void()> work;
};

struct Engine {
  std::vector<Fiber> fibers;
  Context scheduler{};
  uint64_t random = 1;
  const char* kernel = nullptr;
  void (*body)(void*) = nullptr;
  void* arguments = nullptr;
  unsigned current = 0;
  uint32_t block = 0, first_block = 1, epoch = 0;
  unsigned at_barrier = 0;
  unsigned at_shuffle[kMaxThreads / kWarp] = {};
  std::vector<unsigned> ready;
  std::vector<Event> events;
  uint64_t step = 0, next_due = kNever;
  std::exception_ptr error;
};

Engine& engine() {
  static Engine one;
  return one;
}

void yield() {
  Engine& e = engine();
  switch_context(e.fibers[e.current].context, e.scheduler);
}

void fiber_loop() {
  Engine& e = engine();
  for (;;) {
    try {
      e.body(e.arguments);
    } catch (...) {
      e.error = std::current_exception();
    }
    e.fibers[e.current].state = State::ended;
    yield();
  }
}

void prepare(Fiber& fiber) {
  if (!fiber.stack) {
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) fail("LAUNCH", "no memory for the stack of an emulated thread");
    fiber.stack = static_cast<char*>(stack);
  }
  make_context(fiber.context, fiber.stack, kStack, fiber_loop);
  fiber.made = true;
}

bool same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// Nobody can go on though not all have ended.
[[noreturn]] void stuck(Engine& e, unsigned threads) {
  const auto first = std::find_if(e.fibers.begin(), e.fibers.begin() + threads,
                                  [](const Fiber& f) { return f.state != State::ended; });
  const auto count = [&](State state) {
    return std::count_if(e.fibers.begin(), e.fibers.begin() + threads,
                         [&](const Fiber& f) { return f.state == state; });
  };
  e.current = static_cast<unsigned>(first - e.fibers.begin());
  const bool asleep = count(State::asleep) > 0;
  fault(asleep ? "DEADLOCK" : "DIVERGENCE", "waits at ", first->where.file_name(), ":", first->where.line(), " for ",
        first->state == State::asleep ? first->waits_for : "other threads", " for ever: of ", threads, " threads ",
        count(State::at_barrier), " wait at barriers, ", count(State::at_shuffle), " at shuffles, ",
        count(State::asleep), " for something in memory, ", count(State::ended), " have ended");
}

// One event: one that is due or, if no thread can go on, the one that is due next; of those that never are, the
// youngest, so that an old one stays out as long as nobody waits for it. False if there is none.
bool run_event(Engine& e) {
  size_t chosen = 0;
  for (size_t i = 1; i < e.events.size(); ++i)
    if (e.events[i].due <= e.events[chosen].due) chosen = i;
  Event event;
  if (!e.events.empty() && (e.ready.empty() || e.events[chosen].due <= e.step)) {
    event = std::move(e.events[chosen]);
    e.events.erase(e.events.begin() + static_cast<ptrdiff_t>(chosen));
  }
  e.next_due = kNever;
  for (const Event& other : e.events) e.next_due = std::min(e.next_due, other.due);
  if (!event.work) return false;
  e.current = event.thread;
  event.work();
  return true;
}

void run_block(Engine& e, unsigned threads, size_t shared_bytes) {
  ++e.block;
  e.epoch = 0;
  e.at_barrier = 0;
  std::fill(std::begin(e.at_shuffle), std::end(e.at_shuffle), 0);
  std::fill(__start_emulated_shared, __stop_emulated_shared, static_cast<char>(kUnset));
  e.events.clear();
  e.step = 0;
  e.next_due = kNever;
  begin_block_async(threads, shared_bytes);
  e.ready.clear();
  for (unsigned i = 0; i < threads; ++i) wake(i);
  unsigned ended = 0;
  while (ended < threads) {
    if ((++e.step >= e.next_due || e.ready.empty()) && run_event(e)) continue;
    if (e.ready.empty()) stuck(e, threads);
    std::swap(e.ready[draw(e.ready.size())], e.ready.back());
    e.current = e.ready.back();
    e.ready.pop_back();
    Fiber& fiber = e.fibers[e.current];
    threadIdx = fiber.index;
    fiber.state = State::ready;
    switch_context(e.scheduler, fiber.context);
    if (fiber.state == State::ended) ++ended;
    if (e.error) std::rethrow_exception(std::exchange(e.error, nullptr));
  }
  end_block_async();
}

}  // namespace

// splitmix64
unsigned draw(size_t n) {
  uint64_t z = (engine().random += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<unsigned>((z ^ (z >> 31)) % n);
}

unsigned this_thread() { return engine().current; }

void sleep(const char* what, std::source_location where) {
  Fiber& me = engine().fibers[engine().current];
  me.where = where;
  me.waits_for = what;
  me.state = State::asleep;
  yield();
}

void wake(unsigned thread) {
  Engine& e = engine();
  e.fibers[thread].state = State::ready;
  e.ready.push_back(thread);
}

void later(std::function<void()> work) {
  Engine& e = engine();
  const uint64_t threads = blockDim.x;
  uint64_t due = e.step;
  switch (draw(4)) {
    case 0:
      break;
    case 1:
      due += draw(threads);
      break;
    case 2:
      due += draw(16 * threads);
      break;
    default:
      due = kNever;
  }
  e.events.push_back({due, e.current, std::move(work)});
  e.next_due = std::min(e.next_due, due);
}

std::string place() {
  const Engine& e = engine();
  std::ostringstream text;
  text << e.kernel << ", block (" << blockIdx.x << ", " << blockIdx.y << "), thread " << e.current;
  return text.str();
}

void seed(uint64_t value) { engine().random = value; }

Memory::Memory(size_t bytes) {
  const size_t size = (bytes + 2 * kGuard + 255) / 256 * 256;
  char* raw = static_cast<char*>(::operator new (size, std::align_val_t{256}));
  std::memset(raw, kUnset, size);
  data_ = raw + kGuard;
  regions().push_back(std::make_unique<Region>(raw + kGuard, raw + kGuard + bytes, false));
}

Memory::~Memory() {
  auto& all = regions();
  last_region = nullptr;
  all.erase(std::find_if(all.begin() + 1, all.end(), [&](const auto& region) { return region->begin == data_; }));
  ::operator delete (static_cast<char*>(data_) - kGuard, std::align_val_t{256});
}

namespace {

Region& region_of(const void* address, size_t bytes, const char* verb) {
  const char* p = static_cast<const char*>(address);
  if (last_region && p >= last_region->begin && p + bytes <= last_region->end) return *last_region;
  for (const auto& one : regions())
    if (p >= one->begin && p + bytes <= one->end) return *(last_region = one.get());
  for (const auto& one : regions())
    if (p + bytes > one->begin - kGuard && p < one->end + kGuard && !one->shared)
      fault("OUT_OF_BOUNDS", verb, bytes, " bytes at byte ", p - one->begin, " of a buffer of ", one->end - one->begin,
            " bytes");
  fault("OUT_OF_BOUNDS", verb, bytes, " bytes at ", address, ", far from any buffer");
}

}  // namespace

bool in_device_memory(const void* address, size_t bytes) {
  const char* p = static_cast<const char*>(address);
  for (const auto& one : regions()) {
    if (one->shared || p + bytes <= one->begin || p >= one->end) continue;
    if (p < one->begin || p + bytes > one->end)
      fail("OUT_OF_BOUNDS", bytes, " bytes at byte ", p - one->begin, " of a buffer of ", one->end - one->begin,
           " bytes");
    return true;
  }
  return false;
}

void check_global(const void* address, size_t bytes, const char* verb) { region_of(address, bytes, verb); }

void access(const void* address, size_t bytes, bool is_store) {
  if (access_dynamic(address, bytes, is_store)) return;
  const char* p = static_cast<const char*>(address);
  const char* verb = is_store ? "stores " : "loads ";
  Region* const region = &region_of(address, bytes, verb);
  if (reinterpret_cast<uintptr_t>(p) % bytes)
    fault("MISALIGNED", verb, bytes, " bytes at byte ", p - region->begin, " of a buffer");
  if (region->cells.empty()) region->cells.resize(static_cast<size_t>(region->end - region->begin + 1) / 2);
  const Engine& e = engine();
  const Touch now{e.block, e.epoch, e.current};
  // Touches of earlier launches are over, and shared memory of other blocks is not this one.
  const auto counts = [&](const Touch& t) { return region->shared ? t.block == e.block : t.block >= e.first_block; };
  const auto clashes = [&](const Touch& t) {
    return counts(t) && (t.block != e.block || (t.epoch == e.epoch && t.thread != e.current));
  };
  for (size_t i = static_cast<size_t>(p - region->begin) / 2, n = i + (bytes + 1) / 2; i < n; ++i) {
    auto& [write, read, blocks_read] = region->cells[i];
    if (!counts(read)) blocks_read = false;
    if (clashes(write) || (is_store && (blocks_read || clashes(read))))
      fault("RACE", verb, bytes, " bytes at byte ", p - region->begin,
            region->shared ? " of shared memory" : " of a buffer", " that another thread ",
            clashes(write) ? "stored" : "loaded", " with no barrier between");
    if (is_store) {
      write = now;
    } else if (!counts(read) || (read.block == e.block && read.epoch != e.epoch)) {
      read = now;
    } else if (read.block != e.block) {
      read = now;
      blocks_read = true;
    } else if (read.thread != e.current) {
      read.thread = kMany;
    }
  }
}

void barrier(std::source_location where) {
  Engine& e = engine();
  Fiber& me = e.fibers[e.current];
  me.where = where;
  me.state = State::at_barrier;
  const unsigned threads = blockDim.x;
  if (++e.at_barrier == threads) {
    for (unsigned i = 0; i < threads; ++i)
      if (!same_place(e.fibers[i].where, where))
        fault("DIVERGENCE", "waits at the barrier of line ", where.line(), ", thread ", i, " at that of line ",
              e.fibers[i].where.line());
    e.at_barrier = 0;
    ++e.epoch;
    for (unsigned i = 0; i < threads; ++i) wake(i);
  }
  yield();
}

unsigned this_lane() { return engine().current % kWarp; }

uint64_t exchange(uint64_t bits, unsigned lane, unsigned mask, std::source_location where) {
  Engine& e = engine();
  if (mask != 0xffffffffu) fault("LAUNCH", "a shuffle of part of a warp is not emulated");
  const unsigned warp = e.current / kWarp, first = warp * kWarp;
  Fiber& me = e.fibers[e.current];
  me.where = where;
  me.given = bits;
  me.wanted = first + lane;
  me.state = State::at_shuffle;
  if (++e.at_shuffle[warp] == kWarp) {
    for (unsigned i = first; i < first + kWarp; ++i)
      if (!same_place(e.fibers[i].where, where))
        fault("DIVERGENCE", "waits at the shuffle of line ", where.line(), ", thread ", i, " at that of line ",
              e.fibers[i].where.line());
    e.at_shuffle[warp] = 0;
    for (unsigned i = first; i < first + kWarp; ++i) {
      e.fibers[i].taken = e.fibers[e.fibers[i].wanted].given;
      wake(i);
    }
  }
  yield();
  return me.taken;
}

void run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* arguments) {
  Engine& e = engine();
  if (grid.x == 0 || grid.y == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z != 1)
    fail("LAUNCH", kernel, ": a grid of ", grid.x, " x ", grid.y, " x ", grid.z, " blocks");
  if (block.x == 0 || block.x > kMaxThreads || block.x % kWarp || block.y != 1 || block.z != 1)
    fail("LAUNCH", kernel, ": a block of ", block.x, " x ", block.y, " x ", block.z,
         " threads; whole warps in one dimension are emulated");
  if (shared_bytes > kMaxShared)
    fail("LAUNCH", kernel, ": ", shared_bytes, " bytes of dynamic shared memory; a block may have ", kMaxShared);
  e.kernel = kernel;
  e.body = body;
  e.arguments = arguments;
  e.first_block = e.block + 1;
  gridDim = grid;
  blockDim = block;
  if (e.fibers.empty()) e.fibers.resize(kMaxThreads);
  for (unsigned i = 0; i < block.x; ++i) {
    if (!e.fibers[i].made) prepare(e.fibers[i]);
    e.fibers[i].index = dim3(i, 0, 0);
  }
  std::vector<unsigned> order(static_cast<size_t>(grid.x) * grid.y);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw(i)]);
  try {
    for (unsigned i : order) {
      blockIdx = dim3(i % grid.x, i / grid.x, 0);
      run_block(e, block.x, shared_bytes);
    }
  } catch (...) {
    // Fibers of the failed block stand in the middle of their kernels.
    for (Fiber& fiber : e.fibers) fiber.made = false;
    throw;
  }
  check_guards(kernel);
}

}  // namespace emulator
