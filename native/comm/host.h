// Which machine a process is on, and what of it the process sees, as a number that processes can compare.
#pragma once

#include <cstdint>

namespace tokenring::comm {

// The same for all processes on one running kernel that share a namespace of this kind ("net", "pid").
uint64_t host_key(const char* name_space);

}  // namespace tokenring::comm
