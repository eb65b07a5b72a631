#include "comm/sockets.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "comm/host.h"
#include "core/failure.h"

namespace tokenring::comm {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kSlice{50}, kPatience{3000};  // of a look, of one address

struct Address {
  sockaddr_storage storage{};
  socklen_t bytes = 0;
};

Address ipv4(const void* bytes, uint16_t port) {
  Address address;
  auto* in = reinterpret_cast<sockaddr_in*>(&address.storage);
  in->sin_family = AF_INET;
  in->sin_port = htons(port);
  std::memcpy(&in->sin_addr, bytes, 4);
  address.bytes = sizeof(sockaddr_in);
  return address;
}

Address ipv6(const void* bytes, uint16_t port) {
  Address address;
  auto* in = reinterpret_cast<sockaddr_in6*>(&address.storage);
  in->sin6_family = AF_INET6;
  in->sin6_port = htons(port);
  std::memcpy(&in->sin6_addr, bytes, 16);
  address.bytes = sizeof(sockaddr_in6);
  return address;
}

std::vector<Address> addresses_of(const Place& place) {
  std::vector<Address> all;
  const uint8_t loopback[4] = {127, 0, 0, 1};
  if (place.host == this_host()) all.push_back(ipv4(loopback, place.port));
  size_t at = 0;
  for (int i = 0; i < place.count; ++i) {
    const size_t bytes = place.addresses[at] == 4 ? 4 : 16;
    if (at + 1 + bytes > place.addresses.size()) break;
    const uint8_t* from = &place.addresses[at + 1];
    all.push_back(bytes == 4 ? ipv4(from, place.port) : ipv6(from, place.port));
    at += 1 + bytes;
  }
  return all;
}

// Interfaces that are up and lead out of this host.
void list_interfaces(Place* place) {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return;
  size_t at = 0;
  for (const ifaddrs* one = list; one; one = one->ifa_next) {
    if (!one->ifa_addr || !(one->ifa_flags & IFF_UP) || (one->ifa_flags & IFF_LOOPBACK)) continue;
    const bool v4 = one->ifa_addr->sa_family == AF_INET;
    if (!v4 && one->ifa_addr->sa_family != AF_INET6) continue;
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(one->ifa_addr);
    if (!v4 && IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr)) continue;
    const size_t bytes = v4 ? 4 : 16;
    if (at + 1 + bytes > place->addresses.size()) break;
    place->addresses[at] = v4 ? 4 : 6;
    const void* from = v4 ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in*>(one->ifa_addr)->sin_addr)
                          : static_cast<const void*>(&v6->sin6_addr);
    std::memcpy(&place->addresses[at + 1], from, bytes);
    at += 1 + bytes;
    ++place->count;
  }
  freeifaddrs(list);
}

// Of one address: the socket, or -1 with errno.
int try_address(const Address& address, Clock::time_point deadline, const std::function<bool()>& cancelled) {
  const int fd = socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  int error = 0;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address.storage), address.bytes) != 0) {
    error = errno;
    const auto until = std::min(deadline, Clock::now() + kPatience);
    while (error == EINPROGRESS && Clock::now() < until && !cancelled()) {
      pollfd wait{fd, POLLOUT, 0};
      if (poll(&wait, 1, static_cast<int>(kSlice.count())) <= 0) continue;
      socklen_t bytes = sizeof(error);
      getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
    }
  }
  if (error == 0) return fd;
  close(fd);
  errno = error;
  return -1;
}

}  // namespace

uint64_t this_host() {
  static const uint64_t key = host_key("net");
  return key;
}

int listen_anywhere(Place* place) {
  *place = {};
  place->host = this_host();
  place->process = static_cast<int32_t>(getpid());
  list_interfaces(place);
  // One socket for both families where the system has IPv6.
  for (const int family : {AF_INET6, AF_INET}) {
    const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) continue;
    const int off = 0;
    if (family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    const uint8_t any[16] = {};
    Address address = family == AF_INET ? ipv4(any, 0) : ipv6(any, 0);
    auto* raw = reinterpret_cast<sockaddr*>(&address.storage);
    if (bind(fd, raw, address.bytes) == 0 && listen(fd, 1024) == 0 && getsockname(fd, raw, &address.bytes) == 0) {
      place->port = ntohs(family == AF_INET ? reinterpret_cast<sockaddr_in*>(raw)->sin_port
                                            : reinterpret_cast<sockaddr_in6*>(raw)->sin6_port);
      return fd;
    }
    close(fd);
  }
  fail("INTERNAL", "the communicator could not listen on a TCP port: ", std::strerror(errno));
}

int connect_to(const Place& place, Clock::time_point deadline, const std::function<bool()>& cancelled, bool* refused) {
  const std::vector<Address> all = addresses_of(place);
  for (;;) {
    *refused = true;
    for (const Address& address : all) {
      const int fd = try_address(address, deadline, cancelled);
      if (fd >= 0) return fd;
      *refused = *refused && errno == ECONNREFUSED;
      if (cancelled() || Clock::now() >= deadline) return -1;
    }
    // On this host nobody listens any more; elsewhere a network may still come up.
    if (*refused && place.host == this_host()) return -1;
    poll(nullptr, 0, static_cast<int>(kSlice.count()));
    if (cancelled() || Clock::now() >= deadline) return -1;
  }
}

}  // namespace tokenring::comm
