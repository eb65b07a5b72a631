// The emulator's graphs: what a stream is given while it captures becomes a graph of nodes, and a launch of it queues
// them, with the arguments that they were given, in an order that their edges allow and the seed draws. See
// emulator/runtime.h.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "core/failure.h"
#include "emulator/engine.h"
#include "emulator/ptx.h"
#include "emulator/streams.h"

namespace emulator {
namespace {

using namespace tokenring::cuda;

// cudaErrorStreamCapture...
constexpr int kUnsupported = 900, kInvalidated = 901, kUnjoined = 904, kIsolation = 905, kOfCapture = 907;

// Of this thread.
thread_local std::shared_ptr<Capture> capturing;

struct GraphOf {
  World* world;
  std::vector<Node> nodes;
  size_t bytes() const { return nodes.size() * kGraphNodeBytes; }
};

void join(std::vector<size_t>& tail, const std::vector<size_t>& others) {
  for (const size_t node : others)
    if (std::find(tail.begin(), tail.end(), node) == tail.end()) tail.push_back(node);
}

// Whether all nodes come before what the origin would be given next.
bool joined(const Capture& capture) {
  std::vector<bool> before(capture.nodes.size(), false);
  for (const size_t node : capture.origin->tail) before[node] = true;
  for (size_t i = before.size(); i-- > 0;)
    if (before[i])
      for (const size_t node : capture.nodes[i].after) before[node] = true;
  return std::find(before.begin(), before.end(), false) == before.end();
}

}  // namespace

int forbidden() {
  if (!capturing) return 0;
  capturing->broken = true;
  return kUnsupported;
}

int forbidden(StreamOf& stream) {
  if (!stream.capture) return 0;
  stream.capture->broken = true;
  return kUnsupported;
}

int captured_event(const EventOf& event) {
  if (!event.capture) return 0;
  event.capture->broken = true;
  return kOfCapture;
}

int captured(StreamOf& stream, Entry entry) {
  Capture& capture = *stream.capture;
  if (capture.broken) return kInvalidated;
  capture.nodes.push_back({std::move(entry), stream.tail});
  stream.tail = {capture.nodes.size() - 1};
  return status();
}

// A stream that waits for an event of a capture takes part in it from there on. What lies outside of a capture cannot
// be waited for in one.
int capture_wait(StreamOf& stream, EventOf& event) {
  if (!event.capture && !event.done) return status();
  if (!event.capture || (stream.capture && stream.capture != event.capture)) {
    for (const auto& capture : {stream.capture, event.capture})
      if (capture) capture->broken = true;
    return kIsolation;
  }
  if (event.capture->ended) return kOfCapture;
  if (!stream.capture) {
    stream.capture = event.capture;
    stream.capture->streams.insert(&stream);
    stream.tail.clear();
  }
  join(stream.tail, event.tail);
  return status();
}

int capture_begin(CudaStream stream) {
  const Turn turn(world_of(stream));
  StreamOf& origin = stream_of(stream);
  if (origin.capture || capturing) return kIllegalState;
  capturing = std::make_shared<Capture>(Capture{&origin, {}, {&origin}});
  origin.capture = capturing;
  origin.tail.clear();
  return status();
}

int capture_end(CudaStream stream, CudaGraph* graph) {
  const Turn turn(world_of(stream));
  *graph = nullptr;
  StreamOf& origin = stream_of(stream);
  if (!origin.capture || origin.capture != capturing || capturing->origin != &origin) return kIllegalState;
  const std::shared_ptr<Capture> done = std::move(capturing);
  const bool whole = joined(*done);
  done->ended = true;
  for (StreamOf* of : done->streams) {
    of->capture = nullptr;
    of->tail.clear();
  }
  if (done->broken) return kInvalidated;
  if (!whole) return kUnjoined;
  *graph = reinterpret_cast<CudaGraph>(new GraphOf{world, std::move(done->nodes)});
  world->held += reinterpret_cast<GraphOf*>(*graph)->bytes();
  return status();
}

int graph_launch(CudaGraph graph, CudaStream stream) {
  const Turn turn(world_of(stream));
  StreamOf& on = stream_of(stream);
  if (const int code = forbidden(on)) return code;
  ++world->counts.graphs;
  const std::vector<Node>& nodes = reinterpret_cast<GraphOf*>(graph)->nodes;
  std::vector<bool> queued(nodes.size(), false);
  for (size_t left = nodes.size(); left > 0; --left) {
    std::vector<size_t> ready;
    for (size_t i = 0; i < nodes.size(); ++i)
      if (!queued[i] && std::all_of(nodes[i].after.begin(), nodes[i].after.end(), [&](size_t n) { return queued[n]; }))
        ready.push_back(i);
    const size_t next = ready[draw(static_cast<unsigned>(ready.size()))];
    queued[next] = true;
    push(on, nodes[next].entry);
  }
  return status();
}

int graph_destroy(CudaGraph graph) {
  auto* of = reinterpret_cast<GraphOf*>(graph);
  const Turn turn(of->world);
  world->held -= of->bytes();
  delete of;
  return 0;
}

}  // namespace emulator
