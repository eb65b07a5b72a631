// What the CUDA backend computes with: the CUDA runtime and the kernels, as tables of functions. They come from the
// module, a shared library beside the addon that nvcc made of cuda/*.cu (`npm run build:cuda`), with the CUDA runtime
// linked into it. The addon itself needs neither. In tests the emulator fills both tables.
#pragma once

#include <cstddef>
#include <string>

#include "cuda/attention.h"
#include "cuda/attention_plain.h"
#include "cuda/launch.h"

struct CUevent_st;
struct CUgraphExec_st;

namespace tokenring::cuda {

using CudaEvent = CUevent_st*;
using CudaGraph = CUgraphExec_st*;

// Codes are cudaError_t; 0 = no error.
constexpr int kCudaOutOfMemory = 2, kCudaNotReady = 600;

struct DeviceFacts {
  char name[256];
  int multiprocessors, major, minor;  // of the compute capability
  int driver, runtime;                // versions, 13000 = 13.0
  size_t bytes;                       // of memory
};

// The part of the CUDA runtime that the backend uses, with its meaning. Copies and fills are queued.
struct Runtime {
  // The device of this number, of those that CUDA shows, becomes the thread's.
  int (*open)(int ordinal, DeviceFacts* facts);
  int (*memory)(size_t* free, size_t* total);
  int (*allocate)(void** data, size_t bytes);
  int (*free)(void* data);
  // Memory of the host that stays where it is, which kernels reach too: copies of it run beside the host's own work.
  int (*allocate_host)(void** data, size_t bytes);
  int (*free_host)(void* data);
  int (*stream_create)(CudaStream* stream);
  int (*stream_destroy)(CudaStream stream);
  int (*stream_synchronize)(CudaStream stream);
  int (*stream_wait)(CudaStream stream, CudaEvent event);
  int (*event_create)(CudaEvent* event);
  int (*event_destroy)(CudaEvent event);
  int (*event_record)(CudaEvent event, CudaStream stream);
  int (*event_query)(CudaEvent event);  // from any thread: kCudaNotReady until what was recorded last has run
  // Between host and device, by their addresses. Host memory that is read is read before this returns, but for that of
  // allocate_host().
  int (*copy)(void* to, const void* from, size_t bytes, CudaStream stream);
  int (*fill)(void* to, int byte, size_t bytes, CudaStream stream);
  int (*call)(CudaStream stream, void (*function)(void*), void* argument);
  // What is queued on the stream from the first on is not run; the second makes a graph of it, null if there is none,
  // with the memory that it takes.
  // Between the two this thread neither allocates, nor frees, nor waits for the GPU.
  int (*capture_begin)(CudaStream stream);
  int (*capture_end)(CudaStream stream, CudaGraph* graph);
  int (*graph_launch)(CudaGraph graph, CudaStream stream);
  int (*graph_destroy)(CudaGraph graph);
  int (*last_error)();  // and forgets it
  const char* (*error_text)(int code);
};

// clang-format off
#define TOKENRING_CUDA_KERNELS(X)                                                                                      \
  X(rmsnorm_forward) X(rmsnorm_backward_workspace) X(rmsnorm_backward) X(qk_norm_forward)                              \
  X(qk_norm_backward_workspace) X(qk_norm_backward) X(rope) X(swiglu_forward) X(swiglu_backward) X(embedding_forward)  \
  X(embedding_backward) X(gather_rows) X(scatter_rows_add) X(scatter_rows_add_f32) X(copy_rows) X(round_rows)          \
  X(sum_of_rows_workspace) X(sum_of_rows) X(logits_statistics)                       \
  X(sequence_log_ratio) X(policy_scalars) X(logits_gradient) X(sample) X(adamw) X(adamw8) X(sum_of_squares_workspace)            \
  X(sum_of_squares) X(attention_forward_rows) X(attention_forward) X(attention_backward_queries)                       \
  X(attention_backward_keys) X(attention_backward_workspace) X(attention_backward_begin) X(attention_backward)         \
  X(attention_backward_end) X(attention_backward_end_f32) X(attention_dq_rows) X(attention_dq) X(attention_plain_forward) X(attention_delta)         \
  X(attention_delta_f32) X(attention_plain_backward) X(kv_append) X(attention_paged) X(embedding_backward_workspace)   \
  X(attention_decode_workspace) X(attention_decode) X(gather_pages)
// clang-format on

struct Kernels {
#define TOKENRING_KERNEL(name) decltype(&::tokenring::cuda::name) name;
  TOKENRING_CUDA_KERNELS(TOKENRING_KERNEL)
#undef TOKENRING_KERNEL
};

#define TOKENRING_KERNEL(name) &::tokenring::cuda::name,
#define TOKENRING_KERNEL_TABLE \
  { TOKENRING_CUDA_KERNELS(TOKENRING_KERNEL) }

// What the module's one function, tokenring_cuda_module(), returns.
struct Module {
  int abi;
  Runtime runtime;
  Kernels kernels;
};
// Counts the forms that Module and what its functions take have had.
constexpr int kModuleAbi = 7;
constexpr const char* kModuleFile = "tokenring_cuda.so";

// Where the module is looked for: $TOKENRING_CUDA_MODULE, else beside the file that holds this code, else in
// ../cuda from there (build/cuda of a checkout). Empty if there is none.
std::string find_module();
// Loads it. Failure INVALID_ARGUMENT with what to do if there is none, or one of another build.
const Module& load_module();

}  // namespace tokenring::cuda
