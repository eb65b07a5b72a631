// The side channel of a communicator over NCCL: its ranks tell a hub what they do, and the hub, by its referee, tells
// all of them when that cannot end well. It lives on a thread of the process that made the unique id, from then until
// the last rank has gone, and listens on a TCP port that the id names, as NCCL's own bootstrap does; who connects must
// know the id's nonce.
#pragma once

#include <array>
#include <cstdint>

#include "comm/communicator.h"
#include "comm/sockets.h"

namespace tokenring::comm {

// What the bytes of such an id hold. Any other id is NCCL's own.
struct HubId {
  uint64_t magic;
  std::array<uint8_t, 16> nonce;
  Place place;
};

UniqueId open_hub();
// False if it is an id of NCCL's own.
bool read_hub_id(const UniqueId& id, HubId* content);

// --- what travels --------------------------------------------------------------------------------------

struct Hello {
  std::array<uint8_t, 16> nonce;
  uint32_t version;
  int32_t rank, size, process;
  uint64_t host;
  UniqueId nccl;  // rank 0's
  RankNames names;
};
constexpr uint32_t kHubVersion = 2;

// Frames; of those with a text, the code of a Failure stands before it, up to a zero.
enum class Say : uint32_t {
  // ranks
  hello,
  queued,    // a Call, then its Messages
  began,     // uint64
  finished,  // uint64
  alive,     // nothing
  leave,     // nothing
  abort,     // why
  failed,    // NCCL's error
  late,      // double: seconds
  // the hub
  refuse,   // code, text
  start,    // UniqueId: all are there
  passed,   // uint64
  verdict,  // code, text
};

constexpr std::chrono::milliseconds kHeartbeat{100};

}  // namespace tokenring::comm
