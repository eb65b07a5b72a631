// The emulated GPU as a library for programs that know nothing of it: driver, module of kernels and cuBLASLt in one
// file, tokenring_emulated.so. Node and Python then compute on device "cuda" in a process of their own, slowly, with
//   LD_LIBRARY_PATH        a folder where libcuda.so.1 is this file,
//   TOKENRING_CUDA_MODULE, TOKENRING_CUBLASLT and TOKENRING_SWEEP_MODULE its path.
#include <cstdlib>
#include <cstring>

#include "../emulator/ptx.h"
#include "../emulator/runtime.h"
#include "../nccl_double/nccl_double.h"

namespace {

using namespace tokenring::cuda;

constexpr size_t kMemory = size_t{8} << 30;

// Lives as long as the process: devices may be freed by its last breath.
emulator::Emulation& emulation() {
  static auto* one = [] {
    const char* seed = std::getenv("TOKENRING_EMULATED_SEED");
    return new emulator::Emulation(seed ? std::strtoull(seed, nullptr, 10) : 1, kMemory, true);
  }();
  return *one;
}

}  // namespace

#define TOKENRING_EXPORT extern "C" __attribute__((visibility("default")))

TOKENRING_EXPORT const Module* tokenring_cuda_module() {
  static const Module module{kModuleAbi, emulation().runtime, TOKENRING_KERNEL_TABLE};
  return &module;
}

// --- what the double of NCCL asks for --------------------------------------------------------------------------------

TOKENRING_EXPORT const NcclDoubleHooks* tokenring_emulated_hooks() {
  static const NcclDoubleHooks hooks = emulator::nccl_hooks();
  return &hooks;
}

// --- the driver ----------------------------------------------------------------------------------------------------

TOKENRING_EXPORT int cuInit(unsigned) { return 0; }
TOKENRING_EXPORT int cuDeviceGetCount(int* count) {
  *count = 1;
  return 0;
}
TOKENRING_EXPORT int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}
TOKENRING_EXPORT int cuDeviceGetName(char* name, int bytes, int) {
  std::strncpy(name, emulation().facts.name, static_cast<size_t>(bytes));
  return 0;
}
TOKENRING_EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = kMemory;
  return 0;
}
TOKENRING_EXPORT int cuTensorMapEncodeTiled(TensorMap* map, int element, uint32_t rank, void* address,
                                            const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
                                            const uint32_t* element_strides, int interleave, int swizzle,
                                            int l2_promotion, int fill) {
  return emulator::encode_tiled(map, element, rank, address, sizes, strides, box, element_strides, interleave, swizzle,
                                l2_promotion, fill);
}

// --- cuBLASLt ------------------------------------------------------------------------------------------------------

TOKENRING_EXPORT size_t cublasLtGetVersion() { return emulation().lt.GetVersion(); }
TOKENRING_EXPORT int cublasLtCreate(lt::Handle* handle) { return emulation().lt.Create(handle); }
TOKENRING_EXPORT int cublasLtMatmulDescCreate(lt::Operation* operation, int compute, int scale) {
  return emulation().lt.MatmulDescCreate(operation, compute, scale);
}
TOKENRING_EXPORT int cublasLtMatmulDescDestroy(lt::Operation operation) {
  return emulation().lt.MatmulDescDestroy(operation);
}
TOKENRING_EXPORT int cublasLtMatmulDescSetAttribute(lt::Operation operation, int attribute, const void* value,
                                                    size_t bytes) {
  return emulation().lt.MatmulDescSetAttribute(operation, attribute, value, bytes);
}
TOKENRING_EXPORT int cublasLtMatrixLayoutCreate(lt::Layout* layout, int type, uint64_t rows, uint64_t columns,
                                                int64_t leading) {
  return emulation().lt.MatrixLayoutCreate(layout, type, rows, columns, leading);
}
TOKENRING_EXPORT int cublasLtMatrixLayoutDestroy(lt::Layout layout) {
  return emulation().lt.MatrixLayoutDestroy(layout);
}
TOKENRING_EXPORT int cublasLtMatmulPreferenceCreate(lt::Preference* preference) {
  return emulation().lt.MatmulPreferenceCreate(preference);
}
TOKENRING_EXPORT int cublasLtMatmulPreferenceDestroy(lt::Preference preference) {
  return emulation().lt.MatmulPreferenceDestroy(preference);
}
TOKENRING_EXPORT int cublasLtMatmulPreferenceSetAttribute(lt::Preference preference, int attribute, const void* value,
                                                          size_t bytes) {
  return emulation().lt.MatmulPreferenceSetAttribute(preference, attribute, value, bytes);
}
TOKENRING_EXPORT int cublasLtMatmulAlgoGetHeuristic(lt::Handle handle, lt::Operation operation, lt::Layout a,
                                                    lt::Layout b, lt::Layout c, lt::Layout d, lt::Preference preference,
                                                    int asked, lt::Heuristic* results, int* found) {
  return emulation().lt.MatmulAlgoGetHeuristic(handle, operation, a, b, c, d, preference, asked, results, found);
}
TOKENRING_EXPORT int cublasLtMatmul(lt::Handle handle, lt::Operation operation, const void* alpha, const void* a,
                                    lt::Layout of_a, const void* b, lt::Layout of_b, const void* beta, const void* c,
                                    lt::Layout of_c, void* d, lt::Layout of_d, const lt::Algorithm* algorithm,
                                    void* workspace, size_t bytes, CudaStream stream) {
  return emulation().lt.Matmul(handle, operation, alpha, a, of_a, b, of_b, beta, c, of_c, d, of_d, algorithm, workspace,
                               bytes, stream);
}
