// The CUDA runtime and cuBLASLt on a CPU, for the host side of the CUDA backend: memory, streams, events, launches.
//
// Streams run as late and as unordered as CUDA allows: what is queued runs at once, soon, or only when the host waits
// for it, and which of several streams goes on next is drawn from the seed. So whoever lacks an event or a wait gets
// other numbers under another seed. An Order in place of the draw makes that sure: one stream then lags as far behind
// another as events allow. Memory starts as NaN (0xff bytes). Host memory that a copy reads is read at once (it is
// pageable), but for that of allocate_host(); host memory that a copy writes is written when the stream comes there.
//
// A fault of a kernel, a copy or a product (see emulator/cuda.h) becomes the error of the runtime's next call and
// stays, as a fault of a GPU does, until the end of the Emulation. Products are computed in float64 and checked:
// matrices in bounds, aligned as promised, of the shapes that the operation takes.
//
// While a stream captures, what it is given is kept for the graph with its arguments. What CUDA refuses then is
// refused: waiting for the stream or an event, allocating and giving back, events of outside, streams that do not come
// back. So is a copy of pageable host memory, of which a graph would keep the address.
#pragma once

#include <functional>

#include "cuda/cublaslt.h"
#include "cuda/device.h"
#include "cuda/module.h"

#include "../nccl_double/nccl_double.h"

namespace emulator {

// Which stream goes on where several can: any, or always the one that was made first, or last. In the latter two
// nothing runs before the host waits.
enum class Order { drawn, oldest_first, youngest_first };

// Device memory that a graph takes for each of its nodes.
constexpr size_t kGraphNodeBytes = 256;

struct RuntimeCounts {
  int64_t allocations = 0, launches = 0, products = 0, graphs = 0;  // graphs: launched
};

// Queues work that goes on outside of the GPU, as what an interconnect does: `begin` and, once done() says so, `end`,
// in the order of the stream. Returns a cudaError_t.
int enqueue_outside(void* stream, std::function<void()> begin, std::function<bool()> done, std::function<void()> end);

// What the double of NCCL works with: enqueue_outside(), and whether bytes all lie in one buffer of a GPU.
NcclDoubleHooks nccl_hooks();

// One GPU for this thread, or for all threads without one of their own, from here to the end of the scope; one at a
// time. Threads with a GPU each are a host of several: they run in turns.
class Emulation {
 public:
  explicit Emulation(uint64_t seed, size_t memory_bytes = size_t{1} << 31, bool for_all_threads = false);
  ~Emulation();
  Emulation(const Emulation&) = delete;

  // Changes to these are seen by devices made later: faults are planted here.
  tokenring::cuda::Runtime runtime;
  tokenring::cuda::lt::Library lt;
  tokenring::cuda::DeviceFacts facts;
  // `kernels` are those that the test is linked with.
  std::unique_ptr<tokenring::Device> device(bool deterministic = true);
  void order(Order order);  // from now on; at first drawn

  static RuntimeCounts counts();

 private:
  struct World* world_;
};

}  // namespace emulator
