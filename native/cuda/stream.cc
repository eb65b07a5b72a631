#include "cuda/stream.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

namespace tokenring::cuda {

void fail_runtime(const Runtime& runtime, int code, const char* what) {
  fail("INTERNAL", "CUDA: ", what, " failed with ", runtime.error_text(code),
       "; the process cannot use the GPU any longer: look at nvidia-smi and dmesg, start again");
}

namespace {

bool wants_graphs() {
  const char* wish = std::getenv("TOKENRING_CUDA_GRAPHS");
  return !wish || std::strcmp(wish, "0") != 0;
}

}  // namespace

DeviceStream::DeviceStream(Device& device, const Runtime& runtime, DeviceMemory& memory)
    : device_(device), runtime_(runtime), memory_(memory), records_(wants_graphs()) {
  check_runtime(runtime_, runtime_.stream_create(&raw_), "making a stream");
  if (const int code = runtime_.event_create(&event_)) {
    runtime_.stream_destroy(raw_);
    fail_runtime(runtime_, code, "making an event");
  }
}

DeviceStream::~DeviceStream() {
  runtime_.stream_synchronize(raw_);
  runtime_.event_destroy(event_);
  runtime_.stream_destroy(raw_);
}

void DeviceStream::not_recorded(const char* what) const {
  if (recording_) fail("INTERNAL", what, " has no place in a recording");
}

void DeviceStream::synchronize() {
  not_recorded("waiting for the stream");
  check_runtime(runtime_, runtime_.stream_synchronize(raw_), "the work of a stream");
  if (const std::exception_ptr error = error_->take()) std::rethrow_exception(error);
}

void DeviceStream::wait(Stream& other) {
  DeviceStream& from = device_stream(other);
  if (&from == this) return;
  not_recorded("waiting for another stream");
  check_runtime(runtime_, runtime_.event_record(from.event_, from.raw_), "recording an event");
  check_runtime(runtime_, runtime_.stream_wait(raw_, from.event_), "waiting for an event");
}

void DeviceStream::copy(void* to, const void* from, size_t bytes) {
  require(bytes == 0 || (to && from), "copy of ", bytes, " bytes from or to a null pointer");
  if (bytes) check_runtime(runtime_, runtime_.copy(to, from, bytes, raw_), "a copy");
}
void DeviceStream::copy_to_device(void* device, const void* host, size_t bytes) {
  not_recorded("a copy from the host");
  copy(device, host, bytes);
}
void DeviceStream::copy_to_host(void* host, const void* device, size_t bytes) {
  not_recorded("a copy to the host");
  copy(host, device, bytes);
}
void DeviceStream::copy_on_device(void* to, const void* from, size_t bytes) { copy(to, from, bytes); }

struct DeviceStream::Call {
  DeviceStream& stream;
  std::function<void()> work;
};

// On a thread of the CUDA runtime. After a failure later calls are skipped, as on the CPU.
void DeviceStream::run(void* argument) {
  const std::unique_ptr<Call> call(static_cast<Call*>(argument));
  StreamError& error = *call->stream.error_;
  if (error.is_set()) return;
  try {
    call->work();
  } catch (...) {
    error.set(std::current_exception());
  }
}

void DeviceStream::call(std::function<void()> work) {
  not_recorded("a call of the host");
  auto call = std::make_unique<Call>(Call{*this, std::move(work)});
  check_runtime(runtime_, runtime_.call(raw_, &DeviceStream::run, call.get()), "queueing a call");
  call.release();
}

class DeviceStream::Graph final : public Recording {
 public:
  // bytes: that it takes of the GPU.
  Graph(const DeviceStream& of, CudaGraph graph, size_t bytes)
      : runtime_(of.runtime_), graph_(graph), memory_(of.memory_), made_at_(memory_.changes) {
    if (bytes) memory_.held.add(graph_, "CUDA graphs", bytes);
  }
  ~Graph() override {
    memory_.held.remove(graph_);
    runtime_.graph_destroy(graph_);
  }
  bool holds() const override { return memory_.changes == made_at_; }
  void replay(Stream& stream) override {
    check_runtime(runtime_, runtime_.graph_launch(graph_, device_stream(stream).raw()), "launching a graph");
  }

 private:
  const Runtime& runtime_;
  CudaGraph graph_;
  DeviceMemory& memory_;
  const uint64_t made_at_;
};

// What the GPU has not given to anybody, and what this device has asked for, together: less once CUDA takes some
// itself.
size_t DeviceStream::left() const {
  size_t free = 0, total = 0;
  check_runtime(runtime_, runtime_.memory(&free, &total), "asking for free memory");
  return free + memory_.held.all();
}

std::unique_ptr<Recording> DeviceStream::record(const std::function<void()>& queue) {
  const size_t before = left();
  check_runtime(runtime_, runtime_.capture_begin(raw_), "beginning a graph");
  recording_ = true;
  std::exception_ptr error;
  try {
    queue();
  } catch (...) {
    error = std::current_exception();
  }
  recording_ = false;
  // Ended in any case: the stream would take no other work.
  CudaGraph graph = nullptr;
  const int code = runtime_.capture_end(raw_, &graph);
  std::unique_ptr<Recording> made;
  if (graph) {
    // CUDA does not say what a graph takes.
    const size_t after = left();
    made = std::make_unique<Graph>(*this, graph, before > after ? before - after : 0);
  }
  if (error) {
    runtime_.last_error();  // the first cause is told
    std::rethrow_exception(error);
  }
  check_runtime(runtime_, code, "making a graph");
  return made;
}

void* DeviceStream::grow(Buffer& buffer, size_t bytes, const char* purpose) {
  if (bytes <= buffer.bytes()) return buffer.data();
  synchronize();  // queued work may still use the old memory
  buffer = Buffer();
  buffer = Buffer(device_, bytes, purpose);
  check_runtime(runtime_, runtime_.fill(buffer.data(), 0, bytes, raw_), "clearing memory");
  return buffer.data();
}

void* DeviceStream::room(Room which, size_t bytes) {
  return grow(rooms_[static_cast<size_t>(which)], bytes, "workspace");
}

const void* DeviceStream::table(Table which, const void* host, size_t bytes) {
  Held& held = tables_[static_cast<size_t>(which)];
  const auto* from = static_cast<const std::byte*>(host);
  if (bytes == held.host.size() && (bytes == 0 || std::memcmp(held.host.data(), from, bytes) == 0))
    return held.memory.data();
  // Twice: lists grow a little at a time.
  if (bytes > held.memory.bytes()) grow(held.memory, 2 * bytes, "workspace");
  not_recorded("a list that has changed");
  held.host.clear();
  copy(held.memory.data(), host, bytes);
  held.host.assign(from, from + bytes);
  return held.memory.data();
}

void DeviceStream::check_abort() const {
  if (aborted_ && aborted_->load(std::memory_order_relaxed))
    fail("ABORTED", "the computation was aborted by its caller");
}

DeviceStream& device_stream(Stream& stream) {
  auto* of_cuda = dynamic_cast<DeviceStream*>(&stream);
  require(of_cuda, "an op of the CUDA backend was given a stream of another device");
  of_cuda->check_abort();
  return *of_cuda;
}

}  // namespace tokenring::cuda
