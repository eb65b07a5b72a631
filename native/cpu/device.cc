#include "cpu/device.h"

#include <sched.h>
#include <sys/mman.h>

#include <cstdlib>

#include "core/failure.h"
#include "core/memory_count.h"
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

class CpuDevice : public Device {
 public:
  CpuDevice(int threads, Precision precision) : pool_(threads ? threads : usable_cores()) {
    const cpu::Kernels& kernels = cpu::choose_kernels();
    isa_ = kernels.isa;
    if (precision == Precision::float32) {
      ops_ = std::make_unique<cpu::CpuOps>(kernels, pool_);
      return;
    }
    const cpu::Bf16Kernels& bf16 = cpu::choose_bf16_kernels();
    isa_ = std::string("bf16, ") + bf16.isa;
    ops_ = std::make_unique<cpu::Bf16Ops>(kernels, bf16, pool_);
  }

  std::string name() const override { return "cpu (" + isa_ + ", " + std::to_string(pool_.threads()) + " threads)"; }
  std::unique_ptr<Stream> stream() override { return std::make_unique<cpu::CpuStream>(); }
  std::unique_ptr<Stream> lane() override { return std::make_unique<cpu::CpuStream>(cpu::CpuStream::Runs::alone); }
  int lanes() const override { return pool_.threads(); }
  const Ops& ops() const override { return *ops_; }

  void* allocate(size_t bytes, const char* purpose) override {
    // Large buffers start on a huge page and ask for such pages: caches and arenas are walked from end to end.
    const size_t alignment = bytes >= kLarge ? kHugePage : 256;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* data = rounded >= bytes ? std::aligned_alloc(alignment, rounded) : nullptr;
    if (!data)
      fail("OUT_OF_MEMORY", "the CPU backend could not allocate ", bytes, " bytes for ", purpose,
           "; make the model, the batch or the cache smaller");
    if (bytes >= kLarge) madvise(data, rounded, MADV_HUGEPAGE);  // a wish: without it all works too
    held_.add(data, purpose, bytes);
    return data;
  }
  void free(void* data) noexcept override {
    held_.remove(data);
    std::free(data);
  }
  std::vector<HeldMemory> most_held() const override { return held_.most(); }

 protected:
  MemoryCount held_;

 private:
  std::string isa_;
  cpu::ThreadPool pool_;
  std::unique_ptr<cpu::CpuOps> ops_;
};

// Of its memory only the addresses are.
class DryCpuDevice final : public CpuDevice {
 public:
  using CpuDevice::CpuDevice;

  std::unique_ptr<Stream> stream() override { return std::make_unique<cpu::CpuStream>(cpu::CpuStream::Runs::never); }
  std::unique_ptr<Stream> lane() override { return stream(); }
  void* allocate(size_t bytes, const char* purpose) override {
    void* data = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED)
      fail("OUT_OF_MEMORY", "there are no addresses for ", bytes, " bytes of ", purpose, "; plan for less");
    held_.add(data, purpose, bytes);
    return data;
  }
  void free(void* data) noexcept override { munmap(data, held_.remove(data)); }
};

void check_threads(int threads) {
  require(threads >= 0 && threads <= 1024, "threads is ", threads, "; it must be 0 (all cores) to 1024");
}

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads, Precision precision) {
  check_threads(threads);
  return std::make_unique<CpuDevice>(threads, precision);
}

std::unique_ptr<Device> make_dry_cpu_device(int threads, Precision precision) {
  check_threads(threads);
  return std::make_unique<DryCpuDevice>(threads, precision);
}

}  // namespace tokenring
