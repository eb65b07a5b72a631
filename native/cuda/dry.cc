#include "cuda/dry.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace tokenring::cuda {
namespace {

constexpr size_t kMostReal = size_t{1} << 20;

thread_local DryGpu* gpu = nullptr;

// --- the runtime -------------------------------------------------------------------------------------------

int open(int, DeviceFacts* facts) {
  *facts = {};
  std::strcpy(facts->name, "a GPU that is not there");
  facts->multiprocessors = 132;
  facts->major = 9;
  facts->minor = 0;
  return 0;
}

template <class T>
int handle(T* out) {
  *out = reinterpret_cast<T>(uintptr_t{1});
  return 0;
}

Runtime dry_runtime() {
  return {
      .open = open,
      .memory = [](size_t* free, size_t* total) { return static_cast<int>(*free = *total = 0); },
      .allocate = [](void** data, size_t bytes) { return gpu->allocate(data, bytes); },
      .free = [](void* data) { return gpu->free(data); },
      .allocate_host = [](void** data, size_t bytes) { return gpu->allocate(data, bytes); },
      .free_host = [](void* data) { return gpu->free(data); },
      .stream_create = [](CudaStream* stream) { return handle(stream); },
      .stream_destroy = [](CudaStream) { return 0; },
      .stream_synchronize = [](CudaStream) { return 0; },
      .stream_wait = [](CudaStream, CudaEvent) { return 0; },
      .event_create = [](CudaEvent* event) { return handle(event); },
      .event_destroy = [](CudaEvent) { return 0; },
      .event_record = [](CudaEvent, CudaStream) { return 0; },
      .event_query = [](CudaEvent) { return 0; },
      .copy = [](void* to, const void* from, size_t bytes, CudaStream) { return gpu->copy(to, from, bytes), 0; },
      .fill = [](void*, int, size_t, CudaStream) { return 0; },
      .call = [](CudaStream, void (*function)(void*), void* argument) { return function(argument), 0; },
      .capture_begin = [](CudaStream) { return 0; },
      .capture_end = [](CudaStream, CudaGraph* graph) { return handle(graph); },
      .graph_launch = [](CudaGraph, CudaStream) { return 0; },
      .graph_destroy = [](CudaGraph) { return 0; },
      .last_error = [] { return 0; },
      .error_text = [](int) { return "no error"; },
  };
}

// --- the kernels -------------------------------------------------------------------------------------------

template <class F>
struct Nothing;
template <class R, class... A>
struct Nothing<R (*)(A...)> {
  static R call(A...) { return R(); }
};

// What the kernels say of their tiles and workspaces, in cuda/; a test holds these against them.
constexpr int kBackwardKeys = 128, kSplitKeys = 1024;
int backward_queries(int head_dim) { return head_dim == 64 ? 128 : 64; }
// At most 128 parts, of at least so many rows but for the last.
size_t parts_of(int64_t rows, int64_t least) {
  const int64_t each = std::max(least, (rows + 127) / 128);
  return static_cast<size_t>((rows + each - 1) / each);
}

Kernels dry_kernels() {
  Kernels k{};
#define TOKENRING_KERNEL_NOTHING(name) k.name = &Nothing<decltype(k.name)>::call;
  TOKENRING_CUDA_KERNELS(TOKENRING_KERNEL_NOTHING)
#undef TOKENRING_KERNEL_NOTHING
  k.rmsnorm_backward_workspace = [](int64_t m, int64_t h) { return parts_of(m, 64) * h * sizeof(float); };
  k.qk_norm_backward_workspace = [](int64_t m, int64_t d) { return parts_of(m, 64) * d * sizeof(float); };
  k.sum_of_rows_workspace = [](int64_t m, int64_t n) { return parts_of(m, 32) * n * sizeof(float); };
  k.sum_of_squares_workspace = [](int64_t n) { return static_cast<size_t>((n + 4095) / 4096) * sizeof(double); };
  k.embedding_backward_workspace = [](int64_t m) { return (2 * 256 + static_cast<size_t>(m)) * sizeof(int32_t); };
  k.attention_forward_rows = [](int head_dim) { return head_dim == 64 ? 192 : 128; };
  k.attention_backward_queries = backward_queries;
  k.attention_backward_keys = [] { return kBackwardKeys; };
  k.attention_dq_rows = [] { return 128; };
  k.attention_decode_workspace = [](int row_count, int heads, int head_dim, int most_keys) {
    if (most_keys <= kSplitKeys) return size_t{0};
    const auto splits = static_cast<size_t>((most_keys + kSplitKeys - 1) / kSplitKeys);
    return size_t{4} * row_count * heads * splits * static_cast<size_t>(head_dim + 2);
  };
  k.attention_backward_workspace = [](int query_count, int heads, int head_dim, bool deterministic) {
    const size_t part = size_t{4} * query_count * heads * backward_queries(head_dim);
    return deterministic ? 2 * part : (2 + static_cast<size_t>(head_dim)) * part;
  };
  return k;
}

// --- cuBLASLt ----------------------------------------------------------------------------------------------

lt::Library dry_lt() {
  lt::Library library{};
  library.GetVersion = [] { return size_t{130000}; };
  library.Create = [](lt::Handle* out) { return handle(out); };
  library.MatmulDescCreate = [](lt::Operation* out, int, int) { return handle(out); };
  library.MatrixLayoutCreate = [](lt::Layout* out, int, uint64_t, uint64_t, int64_t) { return handle(out); };
  library.MatmulPreferenceCreate = [](lt::Preference* out) { return handle(out); };
  library.MatmulDescDestroy = [](lt::Operation) { return 0; };
  library.MatrixLayoutDestroy = [](lt::Layout) { return 0; };
  library.MatmulPreferenceDestroy = [](lt::Preference) { return 0; };
  library.MatmulDescSetAttribute = [](lt::Operation, int, const void*, size_t) { return 0; };
  library.MatmulPreferenceSetAttribute = [](lt::Preference, int, const void*, size_t) { return 0; };
  library.MatmulAlgoGetHeuristic = [](lt::Handle, lt::Operation, lt::Layout, lt::Layout, lt::Layout, lt::Layout,
                                      lt::Preference, int, lt::Heuristic*, int* found) { return *found = 1, 0; };
  library.Matmul = &Nothing<decltype(library.Matmul)>::call;
  return library;
}

int encode(TensorMap*, int, uint32_t, void*, const uint64_t*, const uint64_t*, const uint32_t*, const uint32_t*, int,
           int, int, int) {
  return 0;
}

}  // namespace

DryGpu::DryGpu() {
  require(!gpu, "a thread works with one dry GPU at a time");
  gpu = this;
}

DryGpu::~DryGpu() {
  while (!blocks_.empty()) free(const_cast<std::byte*>(blocks_.begin()->first));
  gpu = nullptr;
}

bool DryGpu::here() { return gpu != nullptr; }

Libraries DryGpu::libraries() const {
  static const Runtime runtime = dry_runtime();
  static const Kernels kernels = dry_kernels();
  static const lt::Library library = dry_lt();
  return {&runtime, &kernels, &library, encode};
}

int DryGpu::allocate(void** data, size_t bytes) {
  const bool real = bytes <= kMostReal;
  void* at = nullptr;
  if (real) {
    const size_t room = (std::max<size_t>(bytes, 1) + 255) / 256 * 256;
    at = std::aligned_alloc(256, room);
    if (at) std::memset(at, 0, room);
  } else {
    at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) at = nullptr;
  }
  if (!at) return kCudaOutOfMemory;
  blocks_[static_cast<const std::byte*>(at)] = {bytes, real};
  *data = at;
  return 0;
}

int DryGpu::free(void* data) {
  const auto at = blocks_.find(static_cast<const std::byte*>(data));
  if (at == blocks_.end()) return data ? 1 : 0;
  if (at->second.real) {
    std::free(data);
  } else {
    munmap(data, at->second.bytes);
  }
  blocks_.erase(at);
  return 0;
}

// An address that is in no block is the host's.
bool DryGpu::is_real(const void* address) const {
  const auto* at = static_cast<const std::byte*>(address);
  auto after = blocks_.upper_bound(at);
  if (after == blocks_.begin()) return true;
  const auto& [begin, block] = *--after;
  return block.real || at >= begin + block.bytes;
}

void DryGpu::copy(void* to, const void* from, size_t bytes) const {
  if (bytes == 0 || !is_real(to)) return;
  if (is_real(from)) {
    std::memmove(to, from, bytes);
  } else {
    std::memset(to, 0, bytes);
  }
}

}  // namespace tokenring::cuda
