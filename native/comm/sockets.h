// Where a process can be reached by TCP, packed into a few bytes of an id.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>

namespace tokenring::comm {

// A listening socket and how to reach it: the addresses of this machine's interfaces, as many as there is room for.
struct Place {
  uint64_t host;  // the same for all processes that share a network stack: they reach each other at 127.0.0.1
  int32_t process;
  uint16_t port;
  uint8_t count;
  std::array<uint8_t, 89> addresses;  // each: 4 or 6, then 4 or 16 bytes
};

uint64_t this_host();

// Listens on all interfaces. Failure INTERNAL if the system gives no socket.
int listen_anywhere(Place* place);

// Tries the addresses one after the other, again and again, until the deadline. -1 past it, or when cancelled() says
// so; *refused: whether at last all that answered said that nobody listens.
int connect_to(const Place& place, std::chrono::steady_clock::time_point deadline,
               const std::function<bool()>& cancelled, bool* refused);

}  // namespace tokenring::comm
