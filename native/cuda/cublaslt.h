// The part of cuBLASLt that the backend uses, in its own declarations; cuda/module.cu checks them against NVIDIA's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/launch.h"

namespace tokenring::cuda::lt {

struct Opaque;
using Handle = Opaque*;      // cublasLtHandle_t
using Operation = Opaque*;   // cublasLtMatmulDesc_t
using Layout = Opaque*;      // cublasLtMatrixLayout_t
using Preference = Opaque*;  // cublasLtMatmulPreference_t

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;  // bytes
  int status;
  float waves;
  int reserved[4];
};

constexpr int kFloat32 = 0, kBf16 = 14;          // cudaDataType_t
constexpr int kCompute32 = 68, kTransposed = 1;  // cublasComputeType_t, cublasOperation_t
constexpr int kTransposeA = 3, kTransposeB = 4;  // cublasLtMatmulDescAttributes_t: int32
// Of the same: uint32, and the pointer to one number, of the dtype of D, for each row of D.
constexpr int kEpilogue = 7, kBiasPointer = 8;
constexpr uint32_t kAddBias = 4;  // cublasLtEpilogue_t
// cublasLtMatmulPreferenceAttributes_t: uint64 bytes; uint32 bits; uint32 bytes
constexpr int kWorkspaceBytes = 1, kReductions = 3, kAlignmentA = 5, kAlignmentB = 6, kAlignmentC = 7, kAlignmentD = 8;
// Products that are split add their parts in float32 in the workspace, in a fixed order: the same bits each time.
constexpr uint32_t kReduceInWorkspace = 2;

// Functions by their names after "cublasLt"; all return cublasStatus_t, 0 = success, but for GetVersion.
struct Library {
  size_t (*GetVersion)();
  int (*Create)(Handle*);
  int (*MatmulDescCreate)(Operation*, int compute, int scale_type);
  int (*MatmulDescDestroy)(Operation);
  int (*MatmulDescSetAttribute)(Operation, int attribute, const void* value, size_t bytes);
  // Column-major: entry (i, j) lies at j * leading + i.
  int (*MatrixLayoutCreate)(Layout*, int type, uint64_t rows, uint64_t columns, int64_t leading);
  int (*MatrixLayoutDestroy)(Layout);
  int (*MatmulPreferenceCreate)(Preference*);
  int (*MatmulPreferenceDestroy)(Preference);
  int (*MatmulPreferenceSetAttribute)(Preference, int attribute, const void* value, size_t bytes);
  int (*MatmulAlgoGetHeuristic)(Handle, Operation, Layout a, Layout b, Layout c, Layout d, Preference, int asked,
                                Heuristic* results, int* found);
  // D = alpha op(A) op(B) + beta C
  int (*Matmul)(Handle, Operation, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta,
                const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace, size_t bytes, CudaStream);
};

// Loads it, once: $TOKENRING_CUBLASLT, else libcublasLt.so.13 or .12 as the loader finds them, else those of
// $CUDA_HOME/lib64 and /usr/local/cuda/lib64. Failure INVALID_ARGUMENT, with what to do, if there is none.
const Library& load();

}  // namespace tokenring::cuda::lt
