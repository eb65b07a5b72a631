// The one function of tokenring_sweep.so (cuda/sweep.h).
#include <vector>

#include "cuda/module.h"
#include "sweep/variants.cuh"

namespace tokenring::cuda {

extern "C" __attribute__((visibility("default"))) const SweepModule* tokenring_sweep_module() {
  static const std::vector<SweepVariant> all = [] {
    std::vector<SweepVariant> list;
    for (const Variants& some : {forward_variants(), backward_variants(), dq_variants()})
      list.insert(list.end(), some.list, some.list + some.count);
    return list;
  }();
  static const SweepModule module{kModuleAbi, static_cast<int>(all.size()), all.data()};
  return &module;
}

}  // namespace tokenring::cuda
