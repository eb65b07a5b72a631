#include "cuda/device.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "core/memory_count.h"
#include "cuda/ops.h"
#include "cuda/probe.h"
#include "cuda/stream.h"

namespace tokenring {
namespace cuda {
namespace {

std::string in_mib(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

class CudaDevice final : public Device {
 public:
  CudaDevice(const Libraries& libraries, bool deterministic, int ordinal)
      : runtime_(*libraries.runtime),
        facts_(open(runtime_, ordinal)),
        gemm_(*libraries.lt),
        ops_(runtime_, *libraries.kernels, gemm_, libraries.encode, facts_.multiprocessors, deterministic) {}

  std::string name() const override { return std::string("cuda (") + facts_.name + ", bf16)"; }
  std::unique_ptr<Stream> stream() override { return std::make_unique<DeviceStream>(*this, runtime_, memory_); }
  const Ops& ops() const override { return ops_; }

  void* allocate(size_t bytes, const char* purpose) override {
    void* data = nullptr;
    const int code = runtime_.allocate(&data, bytes);
    if (code == kCudaOutOfMemory) {
      runtime_.last_error();  // it is told below, and must not be found by the next launch
      fail("OUT_OF_MEMORY", "the GPU has no ", in_mib(bytes), " for ", purpose, ": ", breakdown());
    }
    check_runtime(runtime_, code, "an allocation");
    ++memory_.changes;
    memory_.held.add(data, purpose, bytes);
    return data;
  }
  void* allocate_host(size_t bytes, const char* purpose) override {
    void* data = nullptr;
    const int code = runtime_.allocate_host(&data, bytes);
    if (code == kCudaOutOfMemory) {
      runtime_.last_error();
      fail("OUT_OF_MEMORY", "the host has no ", in_mib(bytes), " of memory to pin for ", purpose,
           "; give the machine more memory, or this process a larger limit of locked memory");
    }
    check_runtime(runtime_, code, "an allocation of pinned memory");
    pinned_.add(data, purpose, bytes);
    return data;
  }
  void free_host(void* data) noexcept override {
    pinned_.remove(data);
    runtime_.free_host(data);
  }
  void free(void* data) noexcept override {
    ++memory_.changes;
    memory_.held.remove(data);
    runtime_.free(data);
  }

  std::vector<HeldMemory> most_held() const override { return memory_.held.most(); }
  std::vector<HeldMemory> most_held_of_host() const override { return pinned_.most(); }

 private:
  static DeviceFacts open(const Runtime& runtime, int ordinal) {
    DeviceFacts facts{};
    check_runtime(runtime, runtime.open(ordinal, &facts), "opening the GPU");
    require(facts.major == 9 && facts.minor == 0, "device \"cuda\" needs a Hopper GPU (H100, H200, GH200); this is ",
            facts.name, " of compute capability ", facts.major, ".", facts.minor, "; use device \"cpu\"");
    return facts;
  }

  // What holds its memory, the largest first.
  std::string breakdown() {
    size_t free = 0, total = 0;
    std::vector<HeldMemory> parts = memory_.held.now();
    std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
    std::string text = "this policy holds " + in_mib(memory_.held.all());
    for (size_t i = 0; i < parts.size(); ++i)
      text += (i ? ", " : " (") + parts[i].purpose + " " + in_mib(parts[i].bytes) + (i + 1 == parts.size() ? ")" : "");
    if (runtime_.memory(&free, &total) == 0)
      text += ", " + in_mib(free) + " of " + in_mib(total) + " are free, the rest is CUDA's own or other processes'";
    return text + "; make the model, the batch or the cache smaller, turn activation checkpointing on, or offload";
  }

  const Runtime& runtime_;
  DeviceFacts facts_;
  Gemm gemm_;
  CudaOps ops_;
  DeviceMemory memory_;
  MemoryCount pinned_;
};

}  // namespace

std::unique_ptr<Device> make_device(const Libraries& libraries, bool deterministic, int ordinal) {
  return std::make_unique<CudaDevice>(libraries, deterministic, ordinal);
}

}  // namespace cuda

std::unique_ptr<Device> make_cuda_device(bool deterministic, int ordinal) {
  const CudaProbe probe = probe_cuda();
  require(probe.reason.empty(), "device \"cuda\" cannot be used: ", probe.reason);
  const cuda::Module& module = cuda::load_module();
  return cuda::make_device({&module.runtime, &module.kernels, &cuda::lt::load(), cuda::driver_encode_tiled()},
                           deterministic, ordinal);
}

}  // namespace tokenring
