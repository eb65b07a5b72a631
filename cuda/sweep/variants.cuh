// What the files of the sweep share: each lists the tilings of its kernel.
#pragma once

#include <cstddef>
#include <iterator>
#include <type_traits>

#include "cuda/sweep.h"

namespace tokenring::cuda {

struct Variants {
  const SweepVariant* list;
  size_t count;
};

Variants forward_variants();
Variants backward_variants();
Variants dq_variants();

}  // namespace tokenring::cuda
