// The emulator's shared memory, barriers and copy engine. See emulator/ptx.h.
#include <algorithm>
#include <cstring>

#include "emulator/async.h"

namespace emulator {
namespace {

using tokenring::cuda::TensorMap;

constexpr size_t kCapacity = 228 << 10;
constexpr uint64_t kMapMark = 0x746d6170656d756cull;

// What encode_tiled() puts into a TensorMap.
struct Box {
  uint64_t mark;
  const unsigned char* address;
  uint64_t sizes[4], strides[3];
  uint32_t box[4];
};
static_assert(sizeof(Box) <= sizeof(TensorMap));

MemoryBarrier& barrier_at(const void* b) {
  const uint32_t at = offset_of(b, 8, 8, "a barrier");
  const auto found = async().barriers.find(at);
  if (found == async().barriers.end()) fault("BARRIER", "nobody made the barrier at byte ", at, " of shared memory");
  return found->second;
}

void wake_all(std::vector<unsigned>& waiting) {
  for (unsigned thread : waiting) wake(thread);
  waiting.clear();
}

// Ends the phase if everything is in.
void settle(MemoryBarrier& b) {
  if (b.pending != 0) return;
  if (b.bytes < 0) fault("BARRIER", "copies bring ", -b.bytes, " bytes more than the phase expects");
  if (b.bytes > 0) return;
  b.pending = b.arrivals;
  b.parity ^= 1;
  wake_all(b.waiting);
}

void arrive(MemoryBarrier& b, Where where) {
  if (b.pending == 0) fault("BARRIER", "arrives at line ", where.line(), " where the phase has all its arrivals");
  --b.pending;
  settle(b);
}

// Writes both views, as a copy's end publishes it to threads too.
void deliver(uint32_t to, const void* from, size_t bytes) {
  Async& a = async();
  if (from) {
    std::memcpy(a.memory + to, from, bytes);
    std::memcpy(a.view + to, from, bytes);
  } else {
    std::memset(a.memory + to, 0, bytes);
    std::memset(a.view + to, 0, bytes);
  }
}

// A copy into shared memory: `work` does it some time later.
void begin_copy(uint32_t to, uint32_t bytes, void* b, std::function<void()> work) {
  const MemoryBarrier& barrier = barrier_at(b);
  if (!barrier.fenced) fault("FENCE", "a copy to a barrier that was made without fence_barrier_init()");
  check_flights(to, to + bytes, true, "a copy into");
  const uint64_t id = async().next_flight++;
  begin_flight(id, to, to + bytes, true, "a copy into them");
  later([=] {
    work();
    end_flight(id);
    MemoryBarrier& now = barrier_at(b);
    now.bytes -= bytes;
    settle(now);
  });
}

}  // namespace

Async& async() {
  static Async one;
  return one;
}

uint32_t offset_of(const void* p, size_t bytes, size_t alignment, const char* what) {
  const Async& a = async();
  const auto* at = static_cast<const unsigned char*>(p);
  if (at < a.memory || at + bytes > a.memory + a.bytes)
    fault("OUT_OF_BOUNDS", what, " of ", bytes, " bytes at byte ", at - a.memory, " of ", a.bytes, " of shared memory");
  if ((at - a.memory) % static_cast<ptrdiff_t>(alignment))
    fault("MISALIGNED", what, " at byte ", at - a.memory, " of shared memory, no multiple of ", alignment);
  return static_cast<uint32_t>(at - a.memory);
}

void check_flights(uint32_t begin, uint32_t end, bool writes, const char* what) {
  for (const Flight& f : async().flights)
    if (begin < f.end && f.begin < end && (writes || f.writes))
      fault("RACE", what, " bytes ", begin, " to ", end, " of shared memory while ", f.what, ", ", f.begin, " to ",
            f.end, ", may be in flight");
}

void begin_flight(uint64_t id, uint32_t begin, uint32_t end, bool writes, const char* what) {
  async().flights.push_back({id, begin, end, writes, what});
}

void end_flight(uint64_t id) {
  std::erase_if(async().flights, [=](const Flight& f) { return f.id == id; });
}

// --- a block -------------------------------------------------------------------------------------------------------

void begin_block_async(unsigned threads, size_t shared_bytes) {
  Async& a = async();
  for (unsigned char** view : {&a.memory, &a.view}) {
    if (!*view) *view = static_cast<unsigned char*>(::operator new (kCapacity, std::align_val_t{kSharedBase}));
    std::memset(*view, 0xff, shared_bytes);
  }
  a.bytes = shared_bytes;
  a.flights.clear();
  a.barriers.clear();
  a.named.fill({});
  a.warpgroups.assign((threads + 127) / 128, {});
  a.threads.assign(threads, {});
}

void end_block_async() {
  Async& a = async();
  if (!a.flights.empty())
    fault("RACE", "the block ends while ", a.flights[0].what, ", bytes ", a.flights[0].begin, " to ", a.flights[0].end,
          " of shared memory, may be in flight");
  // A block of a kernel with launch bounds is given this many registers a thread; setmaxnreg shares them out anew.
  const int given = static_cast<int>(65536 / a.threads.size() / 8 * 8);
  int64_t taken = 0;
  for (const Thread& thread : a.threads) taken += thread.registers ? thread.registers : given;
  if (taken > given * static_cast<int64_t>(a.threads.size()))
    fault("LAUNCH", "claims ", taken, " registers; the block waits for ever for more than ", given * a.threads.size());
}

void* dynamic_shared(size_t bytes) {
  if (bytes > async().bytes)
    fault("LAUNCH", "uses ", bytes, " bytes of dynamic shared memory; the launch gives ", async().bytes);
  return async().memory;
}

uint32_t shared_address(const void* p) { return offset_of(p, 1, 1, "an operand") + kSharedBase; }

bool access_dynamic(const void* address, size_t bytes, bool is_store) {
  Async& a = async();
  const auto* p = static_cast<const unsigned char*>(address);
  if (!a.memory || p < a.memory || p >= a.memory + kCapacity) return false;
  const uint32_t at = offset_of(p, bytes, bytes, is_store ? "a store" : "a load");
  check_flights(at, at + static_cast<uint32_t>(bytes), is_store, is_store ? "stores" : "loads");
  if (is_store) {
    auto& ranges = me().unpublished;
    if (!ranges.empty() && ranges.back().second == at)
      ranges.back().second = at + static_cast<uint32_t>(bytes);
    else
      ranges.emplace_back(at, at + static_cast<uint32_t>(bytes));
  }
  return true;
}

void fence_async() {
  for (const auto& [begin, end] : me().unpublished)
    std::memcpy(async().view + begin, async().memory + begin, end - begin);
  me().unpublished.clear();
}

void store_matrices(void* row, const uint32_t (&m)[4], bool transposed, Where where) {
  offset_of(row, 16, 16, "a row of a matrix");
  const unsigned lane = this_lane();
  const auto put = [&](uint64_t address, const void* value, size_t bytes) {
    void* to = reinterpret_cast<void*>(address);
    access_dynamic(to, bytes, true);
    std::memcpy(to, value, bytes);
  };
  const auto row_of = [&](unsigned of_lane) {
    return exchange(reinterpret_cast<uint64_t>(row), of_lane, 0xffffffffu, where);
  };
  for (unsigned i = 0; i < 4; ++i) {
    if (!transposed) {
      put(row_of(8 * i + lane / 4) + lane % 4 * 4, &m[i], 4);
      continue;
    }
    for (unsigned e = 0; e < 2; ++e) {
      const uint16_t value = static_cast<uint16_t>(m[i] >> (16 * e));
      put(row_of(8 * i + lane % 4 * 2 + e) + lane / 4 * 2, &value, 2);
    }
  }
}

void set_registers(int count, Where where) {
  if (count < 24 || count > 256 || count % 8)
    fault("LAUNCH", "asks at line ", where.line(), " for ", count,
          " registers; it takes multiples of 8 from 24 to 256");
  me().registers = count;
}

// --- barriers ------------------------------------------------------------------------------------------------------

void barrier_init(void* b, uint32_t arrivals) {
  const uint32_t at = offset_of(b, 8, 8, "a barrier");
  if (arrivals == 0) fault("BARRIER", "a barrier of no arrivals");
  async().barriers[at] = {arrivals, arrivals, 0, 0, false, this_thread(), {}};
}

void fence_barrier_init() {
  for (auto& [at, b] : async().barriers)
    if (b.maker == this_thread()) b.fenced = true;
}

void barrier_arrive(void* b, Where where) { arrive(barrier_at(b), where); }

void barrier_arrive_expect(void* b, uint32_t bytes, Where where) {
  MemoryBarrier& barrier = barrier_at(b);
  barrier.bytes += bytes;
  arrive(barrier, where);
}

void barrier_wait(void* b, uint32_t parity, Where where) {
  while (barrier_at(b).parity == parity) {
    barrier_at(b).waiting.push_back(this_thread());
    sleep("a barrier in memory", where);
  }
}

void named_arrive(int id, int threads, Where where) {
  if (id < 1 || id > 15 || threads <= 0 || threads % 32)
    fault("LAUNCH", "barrier ", id, " for ", threads, " threads at line ", where.line(),
          "; it takes 1 to 15 and whole warps");
  NamedBarrier& b = async().named[static_cast<size_t>(id)];
  if (b.here && b.threads != threads)
    fault("BARRIER", "comes to barrier ", id, " for ", threads, " threads at line ", where.line(), ", others came for ",
          b.threads);
  b.threads = threads;
  if (++b.here < threads) return;
  b.here = 0;
  wake_all(b.waiting);
}

void named_sync(int id, int threads, Where where) {
  // Before it arrives: the last to arrive wakes all that wait, itself too.
  if (id >= 1 && id <= 15) async().named[static_cast<size_t>(id)].waiting.push_back(this_thread());
  named_arrive(id, threads, where);
  sleep("a barrier by number", where);
}

// --- copies --------------------------------------------------------------------------------------------------------

int encode_tiled(TensorMap* map, int element, uint32_t rank, void* address, const uint64_t* sizes,
                 const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides, int interleave,
                 int swizzle, int l2_promotion, int out_of_bounds_fill) {
  using namespace tokenring::cuda::driver;
  constexpr int kInvalidValue = 1;
  const auto aligned = [](uint64_t bytes) { return bytes % 16 == 0; };
  bool right = reinterpret_cast<uintptr_t>(map) % alignof(TensorMap) == 0 && element == kBf16Element && rank == 4 &&
               aligned(reinterpret_cast<uintptr_t>(address)) && interleave == kNoInterleave && swizzle == kSwizzle128 &&
               l2_promotion <= kL2Promotion256 && out_of_bounds_fill == kFillWithZeros && box[0] * 2 == 128;
  for (uint32_t i = 0; right && i < rank; ++i)
    right = sizes[i] > 0 && sizes[i] <= uint64_t{1} << 32 && box[i] > 0 && box[i] <= 256 && element_strides[i] == 1 &&
            (i == 0 || (aligned(strides[i - 1]) && strides[i - 1] < uint64_t{1} << 40));
  if (!right) return kInvalidValue;
  Box made{kMapMark, static_cast<const unsigned char*>(address), {}, {}, {}};
  std::copy(sizes, sizes + 4, made.sizes);
  std::copy(strides, strides + 3, made.strides);
  std::copy(box, box + 4, made.box);
  std::memcpy(map->opaque, &made, sizeof(made));
  return 0;
}

void copy_box(void* to, const TensorMap* map, void* b, const int (&at)[4]) {
  Box m;
  std::memcpy(&m, map->opaque, sizeof(m));
  if (m.mark != kMapMark) fault("LAUNCH", "a copy by a tensor map that was not encoded");
  const uint32_t rows = m.box[1] * m.box[2] * m.box[3], bytes = rows * 128;
  const uint32_t first = offset_of(to, bytes, tokenring::cuda::kPanel * 16, "a copy");
  const std::array<int, 4> from{at[0], at[1], at[2], at[3]};
  begin_copy(first, bytes, b, [=] {
    for (uint32_t i = 0; i < rows; ++i) {
      const int64_t c[] = {from[0], from[1] + int64_t{i % m.box[1]}, from[2] + int64_t{i / m.box[1] % m.box[2]},
                           from[3] + int64_t{i / m.box[1] / m.box[2]}};
      const unsigned char* source = m.address;
      bool inside = true;
      for (int j = 0; j < 4; ++j) {
        inside = inside && c[j] >= 0 && static_cast<uint64_t>(c[j]) < m.sizes[j];
        source += c[j] * static_cast<int64_t>(j == 0 ? 2 : m.strides[j - 1]);
      }
      if (inside) check_global(source, 128, "copies from ");
      const uint32_t line = first + i * 128;
      for (uint32_t chunk = 0; chunk < 8; ++chunk)
        deliver(line + ((chunk ^ (line >> 7 & 7)) << 4), inside ? source + chunk * 16 : nullptr, 16);
    }
  });
}

void copy_bytes(void* to, const void* from, uint32_t bytes, void* b) {
  const uint32_t first = offset_of(to, bytes, 16, "a copy");
  if (bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    fault("MISALIGNED", "copies ", bytes, " bytes from ", from, "; sizes and addresses are multiples of 16");
  check_global(from, bytes, "copies from ");
  begin_copy(first, bytes, b, [=] { deliver(first, from, bytes); });
}

void bulk_add(float* to, const float* from, uint32_t bytes) {
  const uint32_t first = offset_of(from, bytes, 16, "a bulk addition");
  if (bytes % 16 || reinterpret_cast<uintptr_t>(to) % 16)
    fault("MISALIGNED", "adds ", bytes, " bytes to ", to, "; sizes and addresses are multiples of 16");
  check_global(to, bytes, "adds to ");
  check_flights(first, first + bytes, false, "a bulk addition of");
  const uint64_t id = async().next_flight++;
  begin_flight(id, first, first + bytes, false, "a bulk addition of them");
  const auto done = std::make_shared<bool>(false);
  me().bulk.push_back({id, done});
  later([=, owner = this_thread()] {
    for (uint32_t i = 0; i < bytes / 4; ++i) {
      float x;
      std::memcpy(&x, async().view + first + i * 4, 4);
      to[i] += x;
    }
    *done = true;
    if (std::exchange(async().threads[owner].waits_for_bulk, false)) wake(owner);
  });
}

void bulk_commit() { me().bulk_groups.push_back(std::exchange(me().bulk, {})); }

void bulk_wait_read(unsigned left, Where where) {
  auto& groups = me().bulk_groups;
  for (; groups.size() > left; groups.erase(groups.begin()))
    for (const Addition& addition : groups.front()) {
      while (!*addition.done) {
        me().waits_for_bulk = true;
        sleep("its bulk additions", where);
      }
      end_flight(addition.flight);
    }
}

}  // namespace emulator
