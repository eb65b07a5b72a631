// Communicators of ranks with a GPU each, over NCCL, which is loaded at run time (comm/nccl_library.h).
//
// What it does otherwise than shared memory: NCCL adds in its own order, which depends on the number of ranks, the size
// of the tensor and how the GPUs are connected, not on timing, so the same program on the same machines gives the same
// bits. It adds bf16 in bf16, with a rounding for each rank that is added, but for sums within NVLink switches, which
// are float32: sum gradients in f32. max and min may lose a NaN. A send is not buffered: it waits for its receive.
#pragma once

#include "comm/communicator.h"

namespace tokenring {

namespace nccl {
struct Library;
}

// Over the NCCL of this machine. Streams are of the CUDA device that is current where join() is called.
//
// make_id() gives an id with a hub: a thread of this process, until the last rank has gone, to which ranks tell over
// TCP what they queue. It finds disagreement and who is missing, and hands out NCCL's id; the process must live as long
// as the ranks. An id of NCCL's own (nccl_unique_id()) is taken too, for communicators with ranks of other programs:
// then nobody compares the ranks, and a deadline cannot say who is missing.
//
// The first operations between two ranks connect them and may wait for the others where they are queued.
// make() fails with INVALID_ARGUMENT if there is no NCCL; that a place is taken, or that sizes differ, is found by
// join(). With TOKENRING_NCCL_CHECK=0 operations do not wait until the hub has compared them: a disagreement still
// breaks the communicator, but somewhat later than the operation may have ended.
const Transport& nccl_transport();

// The same over another library, for tests; it outlives the communicators.
std::unique_ptr<Transport> make_nccl_transport(const nccl::Library& library, bool check = true);

// What ncclGetUniqueId gives. Failure INVALID_ARGUMENT if there is no NCCL.
UniqueId nccl_unique_id();

constexpr int kMaxNcclRanks = 4096;

}  // namespace tokenring
