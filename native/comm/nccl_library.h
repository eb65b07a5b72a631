// The part of NCCL that the communicator uses, in its own declarations; cuda/module.cu checks them against NVIDIA's.
#pragma once

#include <climits>
#include <cstddef>
#include <string>

#include "comm/communicator.h"
#include "cuda/launch.h"

namespace tokenring::nccl {

using cuda::CudaStream;

struct Opaque;
using Comm = Opaque*;  // ncclComm_t

// ncclResult_t; other numbers are failures.
constexpr int kSuccess = 0, kInProgress = 7;
// ncclDataType_t, ncclRedOp_t
constexpr int kUint8 = 1, kInt32 = 2, kFloat16 = 6, kFloat32 = 7, kBfloat16 = 9;
constexpr int kSum = 0, kMax = 2, kMin = 3;

// ncclConfig_t as of version 2.18; later ones take it, by its size.
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef, version = 21801;
  int blocking = 0;                                                        // calls return at once
  int cga_cluster_size = INT_MIN, min_ctas = INT_MIN, max_ctas = INT_MIN;  // NCCL's choice
  const char* net_name = nullptr;
  int split_share = INT_MIN;
};

// Functions by their names after "nccl"; those that return an int return ncclResult_t.
struct Library {
  int (*GetVersion)(int* version);
  int (*GetUniqueId)(UniqueId* id);
  int (*CommInitRankConfig)(Comm* comm, int ranks, UniqueId id, int rank, Config* config);
  int (*CommFinalize)(Comm comm);
  int (*CommDestroy)(Comm comm);
  int (*CommAbort)(Comm comm);
  int (*CommGetAsyncError)(Comm comm, int* error);
  const char* (*GetErrorString)(int result);
  const char* (*GetLastError)(Comm comm);
  int (*GroupStart)();
  int (*GroupEnd)();
  int (*Send)(const void* from, size_t count, int type, int peer, Comm comm, CudaStream stream);
  int (*Recv)(void* to, size_t count, int type, int peer, Comm comm, CudaStream stream);
  int (*Broadcast)(const void* from, void* to, size_t count, int type, int root, Comm comm, CudaStream stream);
  int (*AllReduce)(const void* from, void* to, size_t count, int type, int op, Comm comm, CudaStream stream);
  // `count` is of what one rank gets, or gives.
  int (*ReduceScatter)(const void* from, void* to, size_t count, int type, int op, Comm comm, CudaStream stream);
  int (*AllGather)(const void* from, void* to, size_t count, int type, Comm comm, CudaStream stream);

  std::string file;  // where it was loaded from
  int version;       // 21801 = 2.18.1
};

// clang-format off
#define TOKENRING_NCCL_CALLS(X)                                                                                        \
  X(GetVersion) X(GetUniqueId) X(CommInitRankConfig) X(CommFinalize) X(CommDestroy) X(CommAbort) X(CommGetAsyncError)  \
  X(GetErrorString) X(GetLastError) X(GroupStart) X(GroupEnd) X(Send) X(Recv) X(Broadcast) X(AllReduce)                \
  X(ReduceScatter) X(AllGather)
// clang-format on

// 2.18: the first version whose ncclConfig_t has all that Config has.
constexpr int kOldest = 21801;

// Loads the library in `file`. Failure INVALID_ARGUMENT, with what to do, if it cannot be loaded, lacks a function or
// is too old.
Library open(const std::string& file);

// The library of this process, loaded once: $TOKENRING_NCCL, else libnccl.so.2 as the loader finds it, else that of
// $CUDA_HOME/lib64 or /usr/local/cuda/lib64, else that of the Python package nvidia-nccl-cu12 or -cu13 in
// $VIRTUAL_ENV, $CONDA_PREFIX, ~/.local, /usr/local or /usr. Failure INVALID_ARGUMENT if there is none.
const Library& load();

// 21801 -> "2.18.1"
std::string version_text(int version);

}  // namespace tokenring::nccl
