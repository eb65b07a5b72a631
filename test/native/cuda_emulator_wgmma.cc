// The emulator's tensor cores. See emulator/ptx.h.
#include <cstring>

#include "emulator/async.h"

namespace emulator {
namespace {

constexpr int kRows = 64, kDepth = 16, kMaxColumns = 256, kThreads = 128;

// A descriptor of an operand in shared memory.
struct Operand {
  uint32_t start, leading, stride;
};

Operand decode(uint64_t d) {
  const auto field = [&](int shift) { return static_cast<uint32_t>(d >> shift & 0x3fff) << 4; };
  const Operand o{field(0), field(16), field(32)};
  if (d >> 62 != 1 || (d >> 49 & 7) != 0 || o.start % 1024 / 128 != 0)
    fault("LAUNCH", "a descriptor ", d, " without the 128-byte swizzle, or of a tile that is not aligned to it");
  return o;
}

// The bytes of dynamic shared memory that an operand lies in: `rows` along M or N.
std::pair<uint32_t, uint32_t> extent(const Operand& o, int rows, bool n_major) {
  const uint32_t begin = o.start & ~127u;
  const uint32_t end = n_major ? begin + static_cast<uint32_t>((rows + 63) / 64 - 1) * o.leading + o.stride + 1024
                               : begin + static_cast<uint32_t>(rows / 8 - 1) * o.stride + 1024;
  if (begin < kSharedBase || end > kSharedBase + async().bytes)
    fault("OUT_OF_BOUNDS", "an operand at bytes ", begin - kSharedBase, " to ", end - kSharedBase, " of ",
          async().bytes, " of shared memory");
  return {begin - kSharedBase, end - kSharedBase};
}

float to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Eight elements of a 128-byte line of the asynchronous view.
void read_eight(uint32_t address, float (&out)[8]) {
  uint16_t bits[8];
  std::memcpy(bits, async().view + (address ^ (address >> 3 & 0x70)) - kSharedBase, sizeof(bits));
  for (int i = 0; i < 8; ++i) out[i] = to_float(bits[i]);
}

int row_of(int thread) { return 16 * (thread / 32) + thread % 32 / 4; }

void load_a(const Step& s, float (&a)[kRows][kDepth]) {
  if (s.from_registers) {
    for (int t = 0; t < kThreads; ++t)
      for (int i = 0; i < 4; ++i)
        for (int e = 0; e < 2; ++e)
          a[row_of(t) + 8 * (i % 2)][8 * (i / 2) + 2 * (t % 4) + e] =
              to_float(static_cast<uint16_t>(s.registers[static_cast<size_t>(t)][i] >> (16 * e)));
    return;
  }
  const Operand o = decode(s.a);
  for (int m = 0; m < kRows; ++m)
    for (int half = 0; half < 2; ++half) {
      float x[8];
      read_eight(o.start + static_cast<uint32_t>(m / 8) * o.stride + static_cast<uint32_t>(m % 8 * 128 + half * 16), x);
      std::memcpy(&a[m][half * 8], x, sizeof(x));
    }
}

void load_b(const Step& s, float (&b)[kDepth][kMaxColumns]) {
  const Operand o = decode(s.b);
  float x[8];
  if (s.n_major) {
    for (int k = 0; k < kDepth; ++k)
      for (int n = 0; n < s.n; n += 8) {
        read_eight(o.start + static_cast<uint32_t>(n / 64) * o.leading + static_cast<uint32_t>(n % 64 * 2) +
                       static_cast<uint32_t>(k / 8) * o.stride + static_cast<uint32_t>(k % 8 * 128),
                   x);
        std::memcpy(&b[k][n], x, sizeof(x));
      }
    return;
  }
  for (int n = 0; n < s.n; ++n)
    for (int half = 0; half < 2; ++half) {
      read_eight(o.start + static_cast<uint32_t>(n / 8) * o.stride + static_cast<uint32_t>(n % 8 * 128 + half * 16), x);
      for (int i = 0; i < 8; ++i) b[half * 8 + i][n] = x[i];
    }
}

void execute(Step& s) {
  static float a[kRows][kDepth], b[kDepth][kMaxColumns], c[kMaxColumns];
  load_a(s, a);
  load_b(s, b);
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < s.n; ++n) c[n] = a[m][0] * b[0][n];
    for (int k = 1; k < kDepth; ++k)
      for (int n = 0; n < s.n; ++n) c[n] += a[m][k] * b[k][n];
    // The four threads that hold the row.
    for (int quad = 0; quad < 4; ++quad) {
      float* d = s.d[static_cast<size_t>(32 * (m / 16) + 4 * (m % 8) + quad)] + 2 * (m % 16 / 8);
      for (int i = 0; i < s.n / 8; ++i)
        for (int e = 0; e < 2; ++e) d[4 * i + e] = (s.accumulate ? d[4 * i + e] : 0.0f) + c[8 * i + 2 * quad + e];
    }
  }
  s.done = true;
}

void begin_step(Step& s) {
  s.flight = async().next_flight++;
  const auto reads = [&](uint64_t descriptor, int rows, bool n_major) {
    const auto [begin, end] = extent(decode(descriptor), rows, n_major);
    check_flights(begin, end, false, "a product reads");
    begin_flight(s.flight, begin, end, false, "a product that reads them");
  };
  if (!s.from_registers) reads(s.a, kRows, false);
  reads(s.b, s.n, s.n_major);
}

void issue(const Step& given, float* d, const uint32_t* registers, Where where) {
  Thread& thread = me();
  Warpgroup& group = async().warpgroups[this_thread() / kThreads];
  if (!thread.fenced) fault("FENCE", "the product at line ", where.line(), " follows no wgmma_fence()");
  if (given.n % 8 || given.n < 8 || given.n > kMaxColumns) fault("LAUNCH", "a product of ", given.n, " columns");
  const size_t index = thread.issued++;
  if (index == group.first + group.steps.size()) {
    group.steps.push_back(given);
    begin_step(group.steps.back());
  }
  Step& s = group.steps[index - group.first];
  if (s.n != given.n || s.n_major != given.n_major || s.accumulate != given.accumulate || s.a != given.a ||
      s.b != given.b || s.from_registers != given.from_registers)
    fault("DIVERGENCE", "the product at line ", where.line(), " is not that of the other threads of its warpgroup");
  s.d[this_thread() % kThreads] = d;
  s.registers[this_thread() % kThreads] = registers;
  if (++s.here < kThreads) return;
  later([&group, index] {
    for (size_t i = group.first; i <= index; ++i) {
      Step& step = group.steps[i - group.first];
      if (!step.done) execute(step);
    }
    for (unsigned waiting : group.waiting) wake(waiting);
    group.waiting.clear();
  });
}

}  // namespace

void wgmma_fence() { me().fenced = true; }

void wgmma_commit() {
  me().groups.push_back(me().issued);
  me().fenced = false;
}

void wgmma_wait(unsigned left, Where where) {
  Thread& thread = me();
  Warpgroup& group = async().warpgroups[this_thread() / kThreads];
  if (thread.groups.size() <= left) return;
  const size_t end = thread.groups[thread.groups.size() - 1 - left];
  thread.groups.erase(thread.groups.begin(), thread.groups.end() - left);
  // Steps before group.first have been waited for by all threads, this one too.
  for (size_t i = thread.waited; i < end; ++i)
    while (!group.steps[i - group.first].done) {
      group.waiting.push_back(this_thread());
      sleep("products", where);
    }
  for (; thread.waited < end; ++thread.waited) {
    Step& s = group.steps[thread.waited - group.first];
    if (!std::exchange(s.retired, true)) end_flight(s.flight);
    ++s.waited;
  }
  while (!group.steps.empty() && group.steps.front().waited == kThreads) {
    group.steps.pop_front();
    ++group.first;
  }
}

void wgmma(int n, bool n_major, float* d, uint64_t a, uint64_t b, bool accumulate, Where where) {
  issue({.n = n,
         .n_major = n_major,
         .accumulate = accumulate,
         .from_registers = false,
         .a = a,
         .b = b,
         .d = {},
         .registers = {}},
        d, nullptr, where);
}

void wgmma(int n, bool n_major, float* d, const uint32_t* a, uint64_t b, bool accumulate, Where where) {
  issue({.n = n,
         .n_major = n_major,
         .accumulate = accumulate,
         .from_registers = true,
         .a = 0,
         .b = b,
         .d = {},
         .registers = {}},
        d, a, where);
}

}  // namespace emulator
