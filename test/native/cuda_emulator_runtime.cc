// The emulator's runtime: see emulator/runtime.h.
#include "emulator/runtime.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "emulator/engine.h"
#include "emulator/ptx.h"
#include "emulator/streams.h"

namespace emulator {

thread_local World* world = nullptr;
World* world_of_all = nullptr;
std::mutex machine;

StreamOf& stream_of(tokenring::cuda::CudaStream stream) {
  auto* found = reinterpret_cast<StreamOf*>(stream);
  if (!world->streams.contains(found)) tokenring::fail("LAUNCH", "work on a stream that is not there");
  return *found;
}

namespace {

using namespace tokenring::cuda;
using tokenring::fail;

// The next entry of a stream. False if it has none, or waits. `by_itself`: without a thread of the host that could run
// its work.
bool step(StreamOf& stream, bool by_itself) {
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
  std::vector<StreamOf*> order(world->streams.begin(), world->streams.end());
  if (world->order != Order::drawn) {
    std::sort(order.begin(), order.end(), [](const StreamOf* a, const StreamOf* b) {
      return world->order == Order::oldest_first ? a->number < b->number : a->number > b->number;
    });
    return std::any_of(order.begin(), order.end(), [&](StreamOf* stream) { return step(*stream, by_itself); });
  }
  while (!order.empty()) {
    std::swap(order[draw(order.size())], order.back());
    if (step(*order.back(), by_itself)) return true;
    order.pop_back();
  }
  return false;
}

// Gives the others a turn if something outside of this GPU may let it go on: another GPU, or the host.
bool wait_outside() {
  for (const StreamOf* stream : world->streams)
    if (stream->busy || (!stream->queue.empty() && stream->queue.front().kind == Entry::Kind::outside)) {
      machine.unlock();
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      machine.lock();
      return true;
    }
  return false;
}

void finish(StreamOf& stream) {
  while (!stream.queue.empty() || stream.busy) {
    if (step_any() || wait_outside()) continue;
    world->fault = "DEADLOCK: a stream waits for an event for ever";
    stream.queue.clear();
  }
}

}  // namespace

int push(StreamOf& stream, Entry entry) {
  if (stream.capture) return captured(stream, std::move(entry));
  stream.queue.push_back(std::move(entry));
  if (world->order != Order::drawn) return status();
  // At once, soon, or when somebody waits.
  if (const unsigned luck = draw(4); luck < 2)
    for (unsigned i = 0; i <= luck * draw(8); ++i) step_any();
  return status();
}

namespace {

// As cudaFree, it waits for all that is queued.
int release(void* data) {
  const Turn turn;
  if (const int code = forbidden()) return code;
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
        if (const int code = forbidden()) return code;
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
        if (const int code = forbidden()) return code;
        auto memory = std::make_unique<Memory>(bytes);
        *data = memory->data();
        world->memory[*data] = {std::move(memory), 0};
        return status();
      },
      .free_host = release,
      .stream_create = [](CudaStream* stream) -> int {
        const Turn turn;
        auto* made = new StreamOf{world, world->streams_made++, {}, false, nullptr, {}};
        world->streams.insert(made);
        *stream = reinterpret_cast<CudaStream>(made);
        return status();
      },
      .stream_destroy = [](CudaStream stream) -> int {
        const Turn turn(world_of(stream));
        StreamOf& dead = stream_of(stream);
        if (const int code = forbidden(dead)) return code;
        finish(dead);
        world->streams.erase(&dead);
        delete &dead;
        return status();
      },
      .stream_synchronize = [](CudaStream stream) -> int {
        const Turn turn(world_of(stream));
        if (const int code = forbidden(stream_of(stream))) return code;
        finish(stream_of(stream));
        return status();
      },
      .stream_wait = [](CudaStream stream, CudaEvent event) -> int {
        const Turn turn(world_of(stream));
        EventOf& of = *reinterpret_cast<EventOf*>(event);
        if (stream_of(stream).capture || of.capture) return capture_wait(stream_of(stream), of);
        // What was recorded last, now: a later record is another matter.
        const auto done = of.done;
        if (!done) return status();
        return push(stream_of(stream), {[done] { return done->load(); }, [] {}});
      },
      .event_create = [](CudaEvent* event) -> int {
        const Turn turn;
        *event = reinterpret_cast<CudaEvent>(new EventOf{world, nullptr, nullptr, {}});
        return status();
      },
      .event_destroy = [](CudaEvent event) -> int {
        const Turn turn(world_of(event));
        delete reinterpret_cast<EventOf*>(event);
        return status();
      },
      .event_record = [](CudaEvent event, CudaStream stream) -> int {
        const Turn turn(world_of(stream));
        EventOf& of = *reinterpret_cast<EventOf*>(event);
        of.capture = stream_of(stream).capture;
        of.tail = stream_of(stream).tail;
        if (of.capture) return status();
        const auto done = of.done = std::make_shared<std::atomic<bool>>(false);
        return push(stream_of(stream), {nullptr, [done] { *done = true; }, Entry::Kind::event});
      },
      // Who looks again and again sees the GPU go on by itself.
      .event_query = [](CudaEvent event) -> int {
        const Turn turn(world_of(event));
        if (const int code = captured_event(*reinterpret_cast<EventOf*>(event))) return code;
        for (unsigned i = draw(8); i > 0; --i) step_any(true);
        const auto& done = reinterpret_cast<EventOf*>(event)->done;
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
        // A graph would read it when it is launched, as it is then.
        if (const int code = forbidden(stream_of(stream))) return code;
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
      .capture_begin = capture_begin,
      .capture_end = capture_end,
      .graph_launch = graph_launch,
      .graph_destroy = graph_destroy,
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
  if (const int code = forbidden(stream_of(on))) return code;
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
          if (!in_device_memory(address, bytes)) return false;
          // NCCL sends what lies on GPUs: pinned memory of the host takes nothing of theirs.
          const auto after = world->memory.upper_bound(const_cast<void*>(address));
          return after == world->memory.begin() || std::prev(after)->second.second > 0;
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

void Emulation::order(Order order) { world_->order = order; }

RuntimeCounts Emulation::counts() {
  const Turn turn;
  return world->counts;
}

}  // namespace emulator
