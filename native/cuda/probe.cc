#include "cuda/probe.h"

#include <dlfcn.h>

#include <array>

#include "cuda/module.h"

namespace tokenring {
namespace {

// The five calls of the driver's ABI that a look at the machine takes, with the types of its documentation:
// CUresult and CUdevice are ints. The library stays loaded: the driver does not survive dlclose.
struct Driver {
  int (*init)(unsigned flags) = nullptr;
  int (*device_count)(int* count) = nullptr;
  int (*device)(int* device, int ordinal) = nullptr;
  int (*device_name)(char* name, int bytes, int device) = nullptr;
  int (*total_memory)(size_t* bytes, int device) = nullptr;

  bool load(void* library) {
    return find(library, "cuInit", init) && find(library, "cuDeviceGetCount", device_count) &&
           find(library, "cuDeviceGet", device) && find(library, "cuDeviceGetName", device_name) &&
           find(library, "cuDeviceTotalMem_v2", total_memory);
  }

 private:
  template <class Function>
  static bool find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
  }
};

std::string ask(std::vector<CudaDevice>& devices) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    return "the NVIDIA driver library libcuda.so.1 was not found; install the driver, or use device \"cpu\"";
  }
  Driver driver;
  if (!driver.load(library)) return "libcuda.so.1 lacks calls of CUDA 11 or newer; update the NVIDIA driver";
  if (int error = driver.init(0)) {
    return "the NVIDIA driver did not start (cuInit returned " + std::to_string(error) +
           "); look at nvidia-smi and at the container's GPU settings";
  }
  int count = 0;
  if (int error = driver.device_count(&count)) {
    return "the NVIDIA driver did not list its devices (cuDeviceGetCount returned " + std::to_string(error) + ")";
  }
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    int device = 0;
    std::array<char, 256> name{};
    CudaDevice found;
    if (driver.device(&device, ordinal) || driver.device_name(name.data(), static_cast<int>(name.size()), device) ||
        driver.total_memory(&found.memory_bytes, device)) {
      return "the NVIDIA driver did not describe GPU " + std::to_string(ordinal) + "; look at nvidia-smi";
    }
    found.name = name.data();
    devices.push_back(found);
  }
  if (devices.empty()) return "the NVIDIA driver lists no GPU; look at CUDA_VISIBLE_DEVICES and at nvidia-smi";
  return "";
}

}  // namespace

CudaProbe probe_cuda() {
  CudaProbe probe;
  probe.reason = ask(probe.devices);
  probe.compiled = !cuda::find_module().empty();
  if (probe.reason.empty() && !probe.compiled) {
    probe.reason =
        "the CUDA kernels are not built: npm run build:cuda makes them where the CUDA toolkit is; or use "
        "device \"cpu\"";
  }
  return probe;
}

}  // namespace tokenring
