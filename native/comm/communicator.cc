#include "comm/communicator.h"

#include "core/failure.h"

namespace tokenring {

void CommunicatorOptions::check(int most_ranks) const {
  require(size >= 1 && size <= most_ranks, "communicator: size is ", size, ", must be 1 to ", most_ranks);
  require(rank >= 0 && rank < size, "communicator: rank is ", rank, ", must be 0 to ", size - 1);
  require(timeout.count() > 0, "communicator: timeout is ", timeout.count(), " ms, must be positive");
}

}  // namespace tokenring
