#include "comm/connection.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace tokenring::comm {
namespace {

struct FrameHead {
  uint32_t bytes, type;
};
constexpr uint32_t kMost = 16 << 20;  // bytes of a frame: a larger one is not of ours

}  // namespace

Connection::Connection(int fd) : fd_(fd) {
  const int one = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL) | O_NONBLOCK);
}

Connection::~Connection() { close(fd_); }

void Connection::send(uint32_t type, const void* data, size_t bytes) {
  const FrameHead head{static_cast<uint32_t>(bytes), type};
  outgoing_.append(reinterpret_cast<const char*>(&head), sizeof(head));
  outgoing_.append(static_cast<const char*>(data), bytes);
  if (!flush()) open_ = false;
}

bool Connection::flush() {
  size_t sent = 0;
  bool whole = true;
  while (sent < outgoing_.size()) {
    const ssize_t n = ::send(fd_, outgoing_.data() + sent, outgoing_.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      whole = errno == EAGAIN || errno == EWOULDBLOCK;
      break;
    }
    sent += static_cast<size_t>(n);
  }
  outgoing_.erase(0, sent);
  if (!whole) outgoing_.clear();
  return whole;
}

bool Connection::serve(const std::function<void(uint32_t, const std::string&)>& take) {
  if (open_ && !outgoing_.empty()) open_ = flush();
  // What was sent before the end still counts.
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = recv(fd_, buffer, sizeof(buffer), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n > 0) {
      incoming_.append(buffer, static_cast<size_t>(n));
      continue;
    }
    if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) open_ = false;
    break;
  }
  size_t at = 0;
  while (incoming_.size() - at >= sizeof(FrameHead)) {
    FrameHead head;
    std::memcpy(&head, incoming_.data() + at, sizeof(head));
    if (head.bytes > kMost) {
      open_ = false;
      at = incoming_.size();
      break;
    }
    if (incoming_.size() - at < sizeof(head) + head.bytes) break;
    take(head.type, incoming_.substr(at + sizeof(head), head.bytes));
    at += sizeof(head) + head.bytes;
  }
  incoming_.erase(0, at);
  return open_;
}

}  // namespace tokenring::comm
