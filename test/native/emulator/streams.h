// What the parts of the emulator's runtime share: a GPU, its streams and events, and who may touch them.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime.h"

namespace emulator {

// cudaError_t
constexpr int kInvalidValue = 1, kIllegalState = 401, kLaunchFailure = 719;

struct Entry {
  std::function<bool()> ready;  // null = always
  std::function<void()> work;
  enum class Kind { device, event, host, outside } kind = Kind::device;
};

// What is captured for a graph: nodes, and after which others each comes.
struct Node {
  Entry entry;
  std::vector<size_t> after;
};
struct StreamOf;
struct Capture {
  StreamOf* origin;
  std::vector<Node> nodes;
  std::set<StreamOf*> streams;
  bool broken = false;  // by what a capture does not take
  bool ended = false;
};

struct StreamOf {
  World* world;
  uint64_t number;  // in which they were made
  std::deque<Entry> queue;
  bool busy = false;                 // runs work of the host
  std::shared_ptr<Capture> capture;  // that it takes part in
  std::vector<size_t> tail;          // nodes of it that what comes next comes after
};

struct EventOf {
  World* world;
  std::shared_ptr<std::atomic<bool>> done;  // of the last record; null = there is none
  std::shared_ptr<Capture> capture;         // that the last record was part of
  std::vector<size_t> tail;
};

struct World {
  size_t memory_bytes = 0, held = 0;
  std::map<void*, std::pair<std::unique_ptr<Memory>, size_t>> memory;
  std::set<StreamOf*> streams;
  uint64_t streams_made = 0;
  Order order = Order::drawn;
  std::string fault;
  tokenring::cuda::DeviceFacts facts{};
  RuntimeCounts counts;
};

// The GPU of the thread, and that of threads without one of their own.
extern thread_local World* world;
extern World* world_of_all;

// Takes a turn, on the GPU of a stream or an event. Threads take turns: the engine's fibers and the kernels' shared
// memory are the same for all GPUs.
extern std::mutex machine;
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

inline World* world_of(tokenring::cuda::CudaStream stream) { return reinterpret_cast<StreamOf*>(stream)->world; }
inline World* world_of(tokenring::cuda::CudaEvent event) { return reinterpret_cast<EventOf*>(event)->world; }
// Failure LAUNCH if there is no such stream.
StreamOf& stream_of(tokenring::cuda::CudaStream stream);

inline int status() { return world->fault.empty() ? 0 : kLaunchFailure; }
int push(StreamOf& stream, Entry entry);

// --- graphs: cuda_emulator_graphs.cc ---------------------------------------------------------------------------------
// Each returns a cudaError_t.

// Of a call that this thread makes: not while it captures, which it breaks.
int forbidden();
// Of a call that has no place in the capture of the stream, if there is one.
int forbidden(StreamOf& stream);
// Of a look at an event that was recorded in a capture.
int captured_event(const EventOf& event);
int captured(StreamOf& stream, Entry entry);
int capture_wait(StreamOf& stream, EventOf& event);
int capture_begin(tokenring::cuda::CudaStream stream);
int capture_end(tokenring::cuda::CudaStream stream, tokenring::cuda::CudaGraph* graph);
int graph_launch(tokenring::cuda::CudaGraph graph, tokenring::cuda::CudaStream stream);
int graph_destroy(tokenring::cuda::CudaGraph graph);

// cuda_emulator_gemm.cc
tokenring::cuda::lt::Library make_library();

}  // namespace emulator
