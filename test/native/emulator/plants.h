// Plants faults in a kernel: leaves out one of its waits, arrivals or fences, and asks whether that is noticed. Include
// it after emulator/ptx.h and before the kernel, of whose calls it makes macros.
#pragma once

#include <set>
#include <string>

#include "rig.h"

namespace plants {

struct State {
  std::set<std::string> sites;  // that were reached
  std::string left_out;
};

inline State& state() {
  static State one;
  return one;
}

inline bool leaves_out(const char* call, const char* file, int line) {
  const std::string path = file,
                    site = std::string(call) + " at " + path.substr(path.rfind('/') + 1) + ":" + std::to_string(line);
  state().sites.insert(site);
  return site == state().left_out;
}

// CHECKs that `right`, which runs the kernel and looks at its numbers, does not come to an end with true if any one of
// the calls is left out, under some of the schedules. Returns how many calls there are.
template <class Work>
size_t check_that_each_is_needed(uint64_t seeds, const Work& right) {
  state() = {};
  emulator::seed(1);
  CHECK(right());
  const std::set<std::string> sites = state().sites;
  for (const std::string& site : sites) {
    state().left_out = site;
    bool noticed = false;
    for (uint64_t seed = 1; seed <= seeds && !noticed; ++seed) {
      emulator::seed(seed);
      try {
        noticed = !right();
      } catch (const tokenring::Failure&) {
        noticed = true;
      }
    }
    if (!noticed) harness::report(__FILE__, __LINE__, "nobody misses ", site);
  }
  state() = {};
  return sites.size();
}

}  // namespace plants

#pragma GCC diagnostic ignored "-Wdangling-else"
// clang-format off
#define TOKENRING_PLANT(call) if (plants::leaves_out(#call, __FILE__, __LINE__)) ; else call
// clang-format on
#define barrier_init TOKENRING_PLANT(barrier_init)
#define fence_barrier_init TOKENRING_PLANT(fence_barrier_init)
#define barrier_arrive TOKENRING_PLANT(barrier_arrive)
#define barrier_arrive_expect TOKENRING_PLANT(barrier_arrive_expect)
#define barrier_wait TOKENRING_PLANT(barrier_wait)
#define fence_async TOKENRING_PLANT(fence_async)
#define bulk_commit TOKENRING_PLANT(bulk_commit)
#define bulk_wait_read TOKENRING_PLANT(bulk_wait_read)
#define wgmma_fence TOKENRING_PLANT(wgmma_fence)
#define wgmma_commit TOKENRING_PLANT(wgmma_commit)
#define wgmma_wait TOKENRING_PLANT(wgmma_wait)
