#include "cpu/device.h"

#include <sched.h>
#include <sys/mman.h>

#include <cstdlib>

#include "core/failure.h"
#include "cpu/kernels.h"
#include "cpu/ops.h"
#include "cpu/pool.h"
#include "cpu/stream.h"

namespace tokenring {
namespace {

// Cores that the scheduler lets this process use: less than the machine's under taskset or a cpuset.
int usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  const unsigned n = std::thread::hardware_concurrency();
  return n ? static_cast<int>(n) : 1;
}

constexpr size_t kHugePage = size_t{2} << 20, kLarge = 2 * kHugePage;

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads)
      : kernels_(cpu::choose_kernels()), pool_(threads ? threads : usable_cores()), ops_(kernels_, pool_) {}

  std::string name() const override {
    return std::string("cpu (") + kernels_.isa + ", " + std::to_string(pool_.threads()) + " threads)";
  }
  std::unique_ptr<Stream> stream() override { return std::make_unique<cpu::CpuStream>(); }
  const Ops& ops() const override { return ops_; }

  void* allocate(size_t bytes) override {
    // Large buffers start on a huge page and ask for such pages: caches and arenas are walked from end to end.
    const size_t alignment = bytes >= kLarge ? kHugePage : 256;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* data = rounded >= bytes ? std::aligned_alloc(alignment, rounded) : nullptr;
    if (!data)
      fail("OUT_OF_MEMORY", "the CPU backend could not allocate ", bytes,
           " bytes; make the model, the batch or the cache smaller");
    if (bytes >= kLarge) madvise(data, rounded, MADV_HUGEPAGE);  // a wish: without it all works too
    return data;
  }
  void free(void* data) noexcept override { std::free(data); }

 private:
  const cpu::Kernels& kernels_;
  cpu::ThreadPool pool_;
  cpu::CpuOps ops_;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads) {
  require(threads >= 0 && threads <= 1024, "threads is ", threads, "; it must be 0 (all cores) to 1024");
  return std::make_unique<CpuDevice>(threads);
}

}  // namespace tokenring
