// The module that the backend loads: the CUDA runtime and the launch functions as tables (native/cuda/module.h).
#include "cuda/module.h"

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdio>
#include <cstring>

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

#include "cuda/cublaslt.h"

// The backend's own declarations against NVIDIA's, where those are installed.
namespace tokenring::cuda::lt {
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t) &&
              sizeof(Heuristic) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(Heuristic, workspace) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) &&
              offsetof(Heuristic, status) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(kFloat32 == CUDA_R_32F && kBf16 == CUDA_R_16BF && kCompute32 == CUBLAS_COMPUTE_32F &&
              kTransposed == CUBLAS_OP_T && kTransposeA == CUBLASLT_MATMUL_DESC_TRANSA &&
              kTransposeB == CUBLASLT_MATMUL_DESC_TRANSB && kEpilogue == CUBLASLT_MATMUL_DESC_EPILOGUE &&
              kBiasPointer == CUBLASLT_MATMUL_DESC_BIAS_POINTER && kAddBias == CUBLASLT_EPILOGUE_BIAS &&
              kWorkspaceBytes == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES &&
              kReductions == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK &&
              kReduceInWorkspace == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE &&
              kAlignmentA == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
              kAlignmentD == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
// Functions take the same number of arguments of the same sizes: an opaque pointer is a pointer, an enumeration an int.
template <class... Own, class... Theirs>
constexpr bool same_call(int (*)(Own...), cublasStatus_t (*)(Theirs...)) {
  return sizeof...(Own) == sizeof...(Theirs) && ((sizeof(Own) == sizeof(Theirs)) && ...);
}
#define TOKENRING_SAME(name) \
  static_assert(same_call(decltype(Library::name)(), static_cast<decltype(&cublasLt##name)>(nullptr)))
TOKENRING_SAME(Create);
TOKENRING_SAME(MatmulDescCreate);
TOKENRING_SAME(MatmulDescDestroy);
TOKENRING_SAME(MatmulDescSetAttribute);
TOKENRING_SAME(MatrixLayoutCreate);
TOKENRING_SAME(MatrixLayoutDestroy);
TOKENRING_SAME(MatmulPreferenceCreate);
TOKENRING_SAME(MatmulPreferenceDestroy);
TOKENRING_SAME(MatmulPreferenceSetAttribute);
TOKENRING_SAME(MatmulAlgoGetHeuristic);
TOKENRING_SAME(Matmul);
}  // namespace tokenring::cuda::lt
#endif

static_assert(tokenring::cuda::kCudaOutOfMemory == cudaErrorMemoryAllocation &&
              tokenring::cuda::kCudaNotReady == cudaErrorNotReady);

#if __has_include(<nccl.h>)
#include <nccl.h>

#include "comm/nccl_library.h"

#if NCCL_VERSION_CODE >= 21801
// The communicator's declarations against NVIDIA's, where those are installed.
namespace tokenring::nccl {
static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId) && sizeof(Config) <= sizeof(ncclConfig_t));
static_assert(offsetof(Config, magic) == offsetof(ncclConfig_t, magic) &&
              offsetof(Config, version) == offsetof(ncclConfig_t, version) &&
              offsetof(Config, blocking) == offsetof(ncclConfig_t, blocking) &&
              offsetof(Config, max_ctas) == offsetof(ncclConfig_t, maxCTAs) &&
              offsetof(Config, net_name) == offsetof(ncclConfig_t, netName) &&
              offsetof(Config, split_share) == offsetof(ncclConfig_t, splitShare));
static_assert(kSuccess == ncclSuccess && kInProgress == ncclInProgress && kUint8 == ncclUint8 && kInt32 == ncclInt32 &&
              kFloat16 == ncclFloat16 && kFloat32 == ncclFloat32 && kBfloat16 == ncclBfloat16 && kSum == ncclSum &&
              kMax == ncclMax && kMin == ncclMin);
template <class Result, class... Own, class TheirResult, class... Theirs>
constexpr bool same_call(Result (*)(Own...), TheirResult (*)(Theirs...)) {
  return sizeof(Result) == sizeof(TheirResult) && sizeof...(Own) == sizeof...(Theirs) &&
         ((sizeof(Own) == sizeof(Theirs)) && ...);
}
#define TOKENRING_SAME_CALL(name) \
  static_assert(same_call(decltype(Library::name)(), static_cast<decltype(&nccl##name)>(nullptr)));
TOKENRING_NCCL_CALLS(TOKENRING_SAME_CALL)
}  // namespace tokenring::nccl
#endif
#endif

namespace tokenring::cuda {
namespace {

int open_device(int ordinal, DeviceFacts* facts) {
  cudaDeviceProp properties;
  cudaError_t error = cudaSetDevice(ordinal);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, ordinal);
  if (error == cudaSuccess) error = cudaDriverGetVersion(&facts->driver);
  if (error == cudaSuccess) error = cudaRuntimeGetVersion(&facts->runtime);
  if (error != cudaSuccess) return error;
  std::memcpy(facts->name, properties.name, sizeof(facts->name));
  facts->multiprocessors = properties.multiProcessorCount;
  facts->major = properties.major;
  facts->minor = properties.minor;
  facts->bytes = properties.totalGlobalMem;
  return 0;
}

// The graph is ready to be launched and has the memory that it needs, so that the first launch takes none; what it was
// made of is no longer needed.
int end_capture(CudaStream stream, CudaGraph* graph) {
  *graph = nullptr;
  cudaGraph_t captured = nullptr;
  cudaError_t error = cudaStreamEndCapture(stream, &captured);
  if (error == cudaSuccess) error = cudaGraphInstantiate(graph, captured, 0);
  if (error == cudaSuccess) error = cudaGraphUpload(*graph, stream);
  if (captured) cudaGraphDestroy(captured);
  return error;
}

const char* error_text(int code) {
  static thread_local char text[512];
  const cudaError_t error = static_cast<cudaError_t>(code);
  std::snprintf(text, sizeof(text), "%s: %s", cudaGetErrorName(error), cudaGetErrorString(error));
  return text;
}

const Module kModule = {
    kModuleAbi,
    {
        .open = open_device,
        .memory = [](size_t* free, size_t* total) -> int { return cudaMemGetInfo(free, total); },
        .allocate = [](void** data, size_t bytes) -> int { return cudaMalloc(data, bytes); },
        .free = [](void* data) -> int { return cudaFree(data); },
        .allocate_host = [](void** data, size_t bytes) -> int { return cudaMallocHost(data, bytes); },
        .free_host = [](void* data) -> int { return cudaFreeHost(data); },
        .stream_create = [](CudaStream* s) -> int { return cudaStreamCreateWithFlags(s, cudaStreamNonBlocking); },
        .stream_destroy = [](CudaStream s) -> int { return cudaStreamDestroy(s); },
        .stream_synchronize = [](CudaStream s) -> int { return cudaStreamSynchronize(s); },
        .stream_wait = [](CudaStream s, CudaEvent e) -> int { return cudaStreamWaitEvent(s, e, 0); },
        .event_create = [](CudaEvent* e) -> int { return cudaEventCreateWithFlags(e, cudaEventDisableTiming); },
        .event_destroy = [](CudaEvent e) -> int { return cudaEventDestroy(e); },
        .event_record = [](CudaEvent e, CudaStream s) -> int { return cudaEventRecord(e, s); },
        .event_query = [](CudaEvent e) -> int { return cudaEventQuery(e); },
        // Of pageable host memory the runtime makes a copy before it returns.
        .copy = [](void* to, const void* from, size_t bytes, CudaStream s) -> int {
          return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, s);
        },
        .fill = [](void* to, int byte, size_t bytes, CudaStream s) -> int {
          return cudaMemsetAsync(to, byte, bytes, s);
        },
        .call = [](CudaStream s, void (*f)(void*), void* a) -> int { return cudaLaunchHostFunc(s, f, a); },
        // Other threads, with GPUs and policies of their own, go on as they like.
        .capture_begin = [](CudaStream s) -> int {
          return cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal);
        },
        .capture_end = end_capture,
        .graph_launch = [](CudaGraph g, CudaStream s) -> int { return cudaGraphLaunch(g, s); },
        .graph_destroy = [](CudaGraph g) -> int { return cudaGraphExecDestroy(g); },
        .last_error = []() -> int { return cudaGetLastError(); },
        .error_text = error_text,
    },
    TOKENRING_KERNEL_TABLE,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const Module* tokenring_cuda_module() { return &kModule; }

}  // namespace tokenring::cuda
