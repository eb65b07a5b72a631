// Reductions over the ranks' parts, in the order of the ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "comm/communicator.h"

namespace tokenring::comm {

// out[i] = part 0's [i], then part 1's and so on, with `how`. Sums of bf16 are taken in float32 and rounded once; sums
// of i32 wrap around; max and min keep a NaN. `out` overlaps none of the parts. Failure INVALID_ARGUMENT for a dtype
// that has no arithmetic here.
void reduce(Reduction how, DType dtype, int parts, const std::function<const void*(int part)>& part, int64_t count,
            void* out);

// Whether reduce() takes the dtype.
bool reducible(DType dtype);
const char* name_of(Reduction);

}  // namespace tokenring::comm
