// The emulator's runtime: see emulator/runtime.h.
#include "emulator/runtime.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "core/convert.h"
#include "emulator/engine.h"
#include "emulator/ptx.h"

namespace emulator {

struct World;

namespace {

using namespace tokenring::cuda;
using tokenring::fail;

constexpr int kLaunchFailure = 719, kInvalidValue = 1;

// Threads take turns: the engine's fibers and the kernels' shared memory are the same for all GPUs.
std::mutex machine;

struct Entry {
  std::function<bool()> ready;  // null = always
  std::function<void()> work;
  enum class Kind { device, event, host, outside } kind = Kind::device;
};

struct Stream {
  World* world;
  std::deque<Entry> queue;
  bool busy = false;  // runs work of the host
};

struct Event {
  World* world;
  std::shared_ptr<std::atomic<bool>> done;  // of the last record; null = there is none
};

}  // namespace

struct World {
  size_t memory_bytes = 0, held = 0;
  std::map<void*, std::pair<std::unique_ptr<Memory>, size_t>> memory;
  std::set<Stream*> streams;
  std::string fault;
  DeviceFacts facts{};
  RuntimeCounts counts;
};

namespace {

// The GPU of the thread, and that of threads without one of their own.
thread_local World* world = nullptr;
World* world_of_all = nullptr;

// Takes a turn, on the GPU of a stream or an event.
class Turn {
 public:
  Turn() : lock_(machine), before_(world) {
    if (!world) world = world_of_all;
  }
  explicit Turn(World* of) : Turn() { world = of; }
  ~Turn() { world = before_; }

 private:
  std::lock_guard<std::mutex> lock_;
  World* before_;
};

World* world_of(CudaStream stream) { return reinterpret_cast<Stream*>(stream)->world; }
World* world_of(CudaEvent event) { return reinterpret_cast<Event*>(event)->world; }

Stream& stream_of(CudaStream stream) {
  auto* found = reinterpret_cast<Stream*>(stream);
  if (!world->streams.contains(found)) fail("LAUNCH", "work on a stream that is not there");
  return *found;
}

// The next entry of a stream. False if it has none, or waits. `by_itself`: without a thread of the host that could run
// its work.
bool step(Stream& stream, bool by_itself) {
  if (stream.busy || stream.queue.empty()) return false;
  Entry& first = stream.queue.front();
  const bool dead = !world->fault.empty();
  if (dead && first.kind == Entry::Kind::outside) first.ready = nullptr;
  if ((by_itself && first.kind == Entry::Kind::host) || (first.ready && !first.ready())) return false;
  Entry entry = std::move(first);
  stream.queue.pop_front();
  // After a fault a GPU does nothing more; only events pass, so that nobody waits.
  if (dead && entry.kind != Entry::Kind::event) return true;
  if (entry.kind == Entry::Kind::host) {
    // It may wait for what other threads do.
    stream.busy = true;
    machine.unlock();
    entry.work();
    machine.lock();
    stream.busy = false;
    return true;
  }
  try {
    entry.work();
  } catch (const tokenring::Failure& failure) {
    world->fault = failure.code() + ": " + failure.what();
  }
  return true;
}

// An entry of any stream that can go on.
bool step_any(bool by_itself = false) {
  std::vector<Stream*> order(world->streams.begin(), world->streams.end());
  while (!order.empty()) {
    std::swap(order[draw(order.size())], order.back());
    if (step(*order.back(), by_itself)) return true;
    order.pop_back();
  }
  return false;
}

// Gives the others a turn if something outside of this GPU may let it go on: another GPU, or the host.
bool wait_outside() {
  for (const Stream* stream : world->streams)
    if (stream->busy || (!stream->queue.empty() && stream->queue.front().kind == Entry::Kind::outside)) {
      machine.unlock();
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      machine.lock();
      return true;
    }
  return false;
}

void finish(Stream& stream) {
  while (!stream.queue.empty() || stream.busy) {
    if (step_any() || wait_outside()) continue;
    world->fault = "DEADLOCK: a stream waits for an event for ever";
    stream.queue.clear();
  }
}

int status() { return world->fault.empty() ? 0 : kLaunchFailure; }

int push(Stream& stream, Entry entry) {
  stream.queue.push_back(std::move(entry));
  // At once, soon, or when somebody waits.
  if (const unsigned luck = draw(4); luck < 2)
    for (unsigned i = 0; i <= luck * draw(8); ++i) step_any();
  return status();
}

// As cudaFree, it waits for all that is queued.
int release(void* data) {
  const Turn turn;
  while (step_any() || wait_outside()) {
  }
  const auto at = world->memory.find(data);
  if (at == world->memory.end()) return kInvalidValue;
  world->held -= at->second.second;
  world->memory.erase(at);
  return status();
}

Runtime make_runtime() {
  return {
      .open = [](int, DeviceFacts* facts) -> int {
        const Turn turn;
        *facts = world->facts;
        return 0;
      },
      .memory = [](size_t* free, size_t* total) -> int {
        const Turn turn;
        *free = world->memory_bytes - world->held;
        *total = world->memory_bytes;
        return 0;
      },
      .allocate = [](void** data, size_t bytes) -> int {
        const Turn turn;
        if (bytes > world->memory_bytes - world->held) return kCudaOutOfMemory;
        ++world->counts.allocations;
        auto memory = std::make_unique<Memory>(bytes);
        *data = memory->data();
        world->held += bytes;
        world->memory[*data] = {std::move(memory), bytes};
        return status();
      },
      .free = release,
      // A kernel or copy reaches it as device memory; it takes none.
      .allocate_host = [](void** data, size_t bytes) -> int {
        const Turn turn;
        auto memory = std::make_unique<Memory>(bytes);
        *data = memory->data();
        world->memory[*data] = {std::move(memory), 0};
        return status();
      },
      .free_host = release,
      .stream_create = [](CudaStream* stream) -> int {
        const Turn turn;
        auto* made = new Stream{world, {}};
        world->streams.insert(made);
        *stream = reinterpret_cast<CudaStream>(made);
        return status();
      },
      .stream_destroy = [](CudaStream stream) -> int {
        const Turn turn(world_of(stream));
        Stream& dead = stream_of(stream);
        finish(dead);
        world->streams.erase(&dead);
        delete &dead;
        return status();
      },
      .stream_synchronize = [](CudaStream stream) -> int {
        const Turn turn(world_of(stream));
        finish(stream_of(stream));
        return status();
      },
      .stream_wait = [](CudaStream stream, CudaEvent event) -> int {
        const Turn turn(world_of(stream));
        // What was recorded last, now: a later record is another matter.
        const auto done = reinterpret_cast<Event*>(event)->done;
        if (!done) return status();
        return push(stream_of(stream), {[done] { return done->load(); }, [] {}});
      },
      .event_create = [](CudaEvent* event) -> int {
        const Turn turn;
        *event = reinterpret_cast<CudaEvent>(new Event{world, nullptr});
        return status();
      },
      .event_destroy = [](CudaEvent event) -> int {
        const Turn turn(world_of(event));
        delete reinterpret_cast<Event*>(event);
        return status();
      },
      .event_record = [](CudaEvent event, CudaStream stream) -> int {
        const Turn turn(world_of(stream));
        const auto done = reinterpret_cast<Event*>(event)->done = std::make_shared<std::atomic<bool>>(false);
        return push(stream_of(stream), {nullptr, [done] { *done = true; }, Entry::Kind::event});
      },
      // Who looks again and again sees the GPU go on by itself.
      .event_query = [](CudaEvent event) -> int {
        const Turn turn(world_of(event));
        for (unsigned i = draw(8); i > 0; --i) step_any(true);
        const auto& done = reinterpret_cast<Event*>(event)->done;
        return !done || *done ? status() : kCudaNotReady;
      },
      .copy = [](void* to, const void* from, size_t bytes, CudaStream stream) -> int {
        const Turn turn(world_of(stream));
        try {
          in_device_memory(to, bytes);
          if (in_device_memory(from, bytes))
            return push(stream_of(stream), {nullptr, [=] { std::memmove(to, from, bytes); }});
        } catch (const tokenring::Failure& failure) {
          world->fault = failure.code() + ": a copy of " + failure.what();
          return kInvalidValue;
        }
        const auto* host = static_cast<const char*>(from);
        return push(stream_of(stream),
                    {nullptr, [to, held = std::string(host, bytes)] { std::memcpy(to, held.data(), held.size()); }});
      },
      .fill = [](void* to, int byte, size_t bytes, CudaStream stream) -> int {
        const Turn turn(world_of(stream));
        try {
          if (!in_device_memory(to, bytes)) return kInvalidValue;
        } catch (const tokenring::Failure& failure) {
          world->fault = failure.code() + ": a fill of " + failure.what();
          return kInvalidValue;
        }
        return push(stream_of(stream), {nullptr, [=] { std::memset(to, byte, bytes); }});
      },
      .call = [](CudaStream stream, void (*function)(void*), void* argument) -> int {
        const Turn turn(world_of(stream));
        return push(stream_of(stream), {nullptr, [=] { function(argument); }, Entry::Kind::host});
      },
      .last_error = []() -> int {
        const Turn turn;
        return status();
      },
      .error_text = [](int code) -> const char* {
        const Turn turn;
        static thread_local std::string text;
        const std::string fault = world ? world->fault : "";
        text = code == kLaunchFailure ? "cudaErrorLaunchFailure (" + fault + ")"
                                      : "cudaError " + std::to_string(code) + " (" + fault + ")";
        return text.c_str();
      },
  };
}

// --- cuBLASLt --------------------------------------------------------------------------------------------------------

struct MatrixOf {
  int type;
  int64_t rows, columns, leading;
};
struct OperationOf {
  int compute, scale;
  int32_t transpose[2] = {0, 0};
};
struct PreferenceOf {
  std::map<int, uint64_t> values;
};

template <class T>
T* cast(lt::Opaque* p) {
  return reinterpret_cast<T*>(p);
}
template <class T>
int give(lt::Opaque** to, T* made) {
  *to = reinterpret_cast<lt::Opaque*>(made);
  return 0;
}
template <class T>
int destroy(lt::Opaque* p) {
  delete cast<T>(p);
  return 0;
}

// Rows and columns of an operand after its transposition.
std::pair<int64_t, int64_t> shape(const MatrixOf& m, bool transposed) {
  return transposed ? std::pair{m.columns, m.rows} : std::pair{m.rows, m.columns};
}

bool goes_together(const OperationOf& op, const MatrixOf& a, const MatrixOf& b, const MatrixOf& c) {
  const auto [m, k] = shape(a, op.transpose[0]);
  const auto [k2, n] = shape(b, op.transpose[1]);
  const auto right = [](const MatrixOf& x) { return x.leading >= x.rows && x.rows > 0 && x.columns > 0; };
  return op.compute == lt::kCompute32 && op.scale == lt::kFloat32 && a.type == lt::kBf16 && b.type == lt::kBf16 &&
         (c.type == lt::kBf16 || c.type == lt::kFloat32) && k == k2 && c.rows == m && c.columns == n && right(a) &&
         right(b) && right(c);
}

size_t bytes_of(const MatrixOf& x) {
  const int64_t elements = (x.columns - 1) * x.leading + x.rows;
  return static_cast<size_t>(elements) * (x.type == lt::kBf16 ? 2 : 4);
}

double element(const MatrixOf& x, const void* data, int64_t row, int64_t column) {
  const int64_t at = column * x.leading + row;
  if (x.type == lt::kFloat32) return static_cast<const float*>(data)[at];
  return tokenring::f32_of_bf16(static_cast<const uint16_t*>(data)[at]);
}

void multiply(const OperationOf& op, const MatrixOf& a, const void* a_data, const MatrixOf& b, const void* b_data,
              const MatrixOf& c, void* c_data, float beta) {
  const auto [m, k] = shape(a, op.transpose[0]);
  const int64_t n = c.columns;
  // Both with the sum's index running fastest.
  std::vector<double> left(static_cast<size_t>(m * k)), right(static_cast<size_t>(n * k));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t p = 0; p < k; ++p)
      left[i * k + p] = op.transpose[0] ? element(a, a_data, p, i) : element(a, a_data, i, p);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t p = 0; p < k; ++p)
      right[j * k + p] = op.transpose[1] ? element(b, b_data, j, p) : element(b, b_data, p, j);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += left[i * k + p] * right[j * k + p];
      if (beta != 0) sum += static_cast<double>(beta) * element(c, c_data, i, j);
      const int64_t at = j * c.leading + i;
      if (c.type == lt::kFloat32)
        static_cast<float*>(c_data)[at] = static_cast<float>(sum);
      else
        static_cast<uint16_t*>(c_data)[at] = tokenring::bf16_of_f32(static_cast<float>(sum));
    }
}

lt::Library make_library() {
  return {
      .GetVersion = []() -> size_t { return 130000; },
      .Create = [](lt::Handle* handle) { return give(handle, new int(0)); },
      .MatmulDescCreate =
          [](lt::Operation* op, int compute, int scale) {
            return give(op, new OperationOf{compute, scale});
          },
      .MatmulDescDestroy = [](lt::Operation op) { return destroy<OperationOf>(op); },
      .MatmulDescSetAttribute = [](lt::Operation op, int attribute, const void* value, size_t bytes) -> int {
        if (bytes != 4 || (attribute != lt::kTransposeA && attribute != lt::kTransposeB)) return 7;
        std::memcpy(&cast<OperationOf>(op)->transpose[attribute - lt::kTransposeA], value, 4);
        return 0;
      },
      .MatrixLayoutCreate =
          [](lt::Layout* layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
            return give(layout, new MatrixOf{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), leading});
          },
      .MatrixLayoutDestroy = [](lt::Layout layout) { return destroy<MatrixOf>(layout); },
      .MatmulPreferenceCreate = [](lt::Preference* preference) { return give(preference, new PreferenceOf); },
      .MatmulPreferenceDestroy = [](lt::Preference preference) { return destroy<PreferenceOf>(preference); },
      .MatmulPreferenceSetAttribute = [](lt::Preference preference, int attribute, const void* value,
                                         size_t bytes) -> int {
        if (bytes != (attribute == lt::kWorkspaceBytes ? 8u : 4u)) return 7;
        std::memcpy(&cast<PreferenceOf>(preference)->values[attribute], value, bytes);
        return 0;
      },
      // The algorithm holds what was promised of the operands: their alignment and the workspace.
      .MatmulAlgoGetHeuristic = [](lt::Handle, lt::Operation op, lt::Layout a, lt::Layout b, lt::Layout c, lt::Layout d,
                                   lt::Preference preference, int, lt::Heuristic* results, int* found) -> int {
        if (c != d ||
            !goes_together(*cast<OperationOf>(op), *cast<MatrixOf>(a), *cast<MatrixOf>(b), *cast<MatrixOf>(c)))
          return 15;
        std::map<int, uint64_t>& wishes = cast<PreferenceOf>(preference)->values;
        *results = {};
        for (int i = 0; i < 3; ++i) results->algorithm.data[i] = wishes[lt::kAlignmentA + i];
        results->workspace = results->algorithm.data[3] = wishes[lt::kWorkspaceBytes];
        *found = 1;
        return 0;
      },
      .Matmul = [](lt::Handle, lt::Operation op, const void* alpha, const void* a, lt::Layout of_a, const void* b,
                   lt::Layout of_b, const void* beta, const void* c, lt::Layout of_c, void* d, lt::Layout of_d,
                   const lt::Algorithm* algorithm, void* workspace, size_t bytes, CudaStream stream) -> int {
        const OperationOf operation = *cast<OperationOf>(op);
        const MatrixOf ma = *cast<MatrixOf>(of_a), mb = *cast<MatrixOf>(of_b), mc = *cast<MatrixOf>(of_c);
        const auto aligned = [&](const void* p, int i) {
          return algorithm->data[i] > 0 && reinterpret_cast<uintptr_t>(p) % algorithm->data[i] == 0;
        };
        if (*static_cast<const float*>(alpha) != 1.0f || c != d || of_c != of_d || !aligned(a, 0) || !aligned(b, 1) ||
            !aligned(d, 2) || bytes < algorithm->data[3] || !goes_together(operation, ma, mb, mc))
          return 7;
        const Turn turn(world_of(stream));
        ++world->counts.products;
        try {
          if (!in_device_memory(a, bytes_of(ma)) || !in_device_memory(b, bytes_of(mb)) ||
              !in_device_memory(d, bytes_of(mc)) || !in_device_memory(workspace, bytes))
            return 7;
        } catch (const tokenring::Failure& failure) {
          world->fault = failure.code() + ": a product of " + failure.what();
          return 7;
        }
        const float scale = *static_cast<const float*>(beta);
        push(stream_of(stream), {nullptr, [=] { multiply(operation, ma, a, mb, b, mc, d, scale); }});
        return 0;
      },
  };
}

}  // namespace

void enqueue(void* stream, std::function<void()> work) {
  const auto on = static_cast<CudaStream>(stream);
  const Turn turn(world_of(on));
  ++world->counts.launches;
  push(stream_of(on), {nullptr, std::move(work)});
}

int enqueue_outside(void* stream, std::function<void()> begin, std::function<bool()> done, std::function<void()> end) {
  const auto on = static_cast<CudaStream>(stream);
  const Turn turn(world_of(on));
  push(stream_of(on), {nullptr, std::move(begin)});
  return push(stream_of(on), {std::move(done), std::move(end), Entry::Kind::outside});
}

NcclDoubleHooks nccl_hooks() {
  return {
      .enqueue = [](void* stream, void (*begin)(void*), int (*done)(void*), void (*end)(void*), void* op) -> int {
        return enqueue_outside(
            stream, [=] { begin(op); }, [=] { return done(op) != 0; }, [=] { end(op); });
      },
      .on_device = [](const void* address, size_t bytes) -> int {
        const Turn turn;
        try {
          return in_device_memory(address, bytes);
        } catch (const tokenring::Failure&) {
          return false;
        }
      },
  };
}

Emulation::Emulation(uint64_t first_seed, size_t memory_bytes, bool for_all_threads)
    : runtime(make_runtime()), lt(make_library()), facts{"an emulated H100", 4, 9, 0, 13000, 13000, memory_bytes} {
  if (world || (for_all_threads && world_of_all)) fail("LAUNCH", "there is an emulated GPU already");
  world_ = new World{};
  world_->memory_bytes = memory_bytes;
  world_->facts = facts;
  (for_all_threads ? world_of_all : world) = world_;
  const Turn turn;
  seed(first_seed);
}

Emulation::~Emulation() {
  (world == world_ ? world : world_of_all) = nullptr;
  const Turn turn;
  delete world_;
}

std::unique_ptr<tokenring::Device> Emulation::device(bool deterministic) {
  static const Kernels kernels = TOKENRING_KERNEL_TABLE;
  world_->facts = facts;
  return make_device({&runtime, &kernels, &lt, encode_tiled}, deterministic);
}

RuntimeCounts Emulation::counts() {
  const Turn turn;
  return world->counts;
}

}  // namespace emulator
