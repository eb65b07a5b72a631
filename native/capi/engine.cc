// What every function needs: a device with a stream, memory on it, the text of a fault.
#include <cstdio>
#include <cstring>

#include "capi/functions.h"
#include "cpu/device.h"
#include "cuda/device.h"
#include "cuda/stream.h"

namespace tokenring::capi {
namespace {

thread_local std::string fault;

}  // namespace

int guarded(const std::function<void()>& body) {
  try {
    body();
    return 0;
  } catch (const Failure& failure) {
    fault = failure.code() + ": " + failure.what();
  } catch (const std::exception& error) {
    fault = std::string("INTERNAL: ") + error.what();
  }
  return 1;
}

std::string& listing() {
  static std::string lines;
  return lines;
}

extern "C" __attribute__((visibility("default"))) const char* tokenring_error() { return fault.c_str(); }
extern "C" __attribute__((visibility("default"))) const char* tokenring_functions() { return listing().c_str(); }

// device: "cpu" (float32), "cuda", or "cuda, any order": with gradients of queries that are added in any order
// (cuda/device.h). threads: of the CPU backend, 0 = all cores.
TOKENRING_FUNCTION(open, (const char* device, int32_t threads, Engine** engine), {
  const std::string name = device;
  require(name == "cpu" || name == "cuda" || name == "cuda, any order",
          "open: device must be \"cpu\", \"cuda\" or \"cuda, any order\", got \"", name, "\"");
  auto made = std::make_unique<Engine>();
  made->device = name == "cpu" ? make_cpu_device(threads) : make_cuda_device(name == "cuda");
  made->stream = made->device->stream();
  *engine = made.release();
});
TOKENRING_FUNCTION(close, (Engine * engine), { delete engine; });

TOKENRING_FUNCTION(device_name, (Engine * engine, char* text, int64_t bytes),
                   { std::snprintf(text, static_cast<size_t>(bytes), "%s", engine->device->name().c_str()); });
// The DType of activations, by its number.
TOKENRING_FUNCTION(activation, (Engine * engine, int32_t* dtype),
                   { *dtype = static_cast<int32_t>(engine->ops().activation()); });
// The cudaStream_t that work is queued on; null on the CPU.
TOKENRING_FUNCTION(stream_handle, (Engine * engine, void** handle), {
  auto* of_cuda = dynamic_cast<cuda::DeviceStream*>(engine->stream.get());
  *handle = of_cuda ? of_cuda->raw() : nullptr;
});

TOKENRING_FUNCTION(allocate, (Engine * engine, int64_t bytes, void** data),
                   { *data = engine->device->allocate(static_cast<size_t>(bytes), "a caller's tensors"); });
TOKENRING_FUNCTION(free, (Engine * engine, void* data), { engine->device->free(data); });
// Both wait for the copy.
TOKENRING_FUNCTION(copy_to_device, (Engine * engine, void* to, const void* from, int64_t bytes), {
  engine->stream->copy_to_device(to, from, static_cast<size_t>(bytes));
  engine->stream->synchronize();
});
TOKENRING_FUNCTION(copy_to_host, (Engine * engine, void* to, const void* from, int64_t bytes), {
  engine->stream->copy_to_host(to, from, static_cast<size_t>(bytes));
  engine->stream->synchronize();
});
TOKENRING_FUNCTION(synchronize, (Engine * engine), { engine->stream->synchronize(); });

}  // namespace tokenring::capi
