// A TCP connection that carries frames: a type and some bytes. It never blocks: what cannot be sent yet waits.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

#include "core/failure.h"

namespace tokenring::comm {

class Connection {
 public:
  explicit Connection(int fd);  // takes the descriptor
  ~Connection();
  Connection(const Connection&) = delete;

  int fd() const { return fd_; }
  // Whether it waits until it may send more.
  bool full() const { return !outgoing_.empty(); }

  void send(uint32_t type, const void* data, size_t bytes);
  template <class T>
  void send(uint32_t type, const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    send(type, &value, sizeof(value));
  }
  void send(uint32_t type, const std::string& text) { send(type, text.data(), text.size()); }

  // Sends what waits and calls `take` with each frame that has come whole. False once the other end has closed.
  bool serve(const std::function<void(uint32_t type, const std::string& bytes)>& take);

 private:
  bool flush();
  int fd_;
  bool open_ = true;
  std::string incoming_, outgoing_;
};

// The value that a frame holds. Failure COMMUNICATOR if its size is another: then the peer is of another version.
template <class T>
T read_frame(const std::string& bytes) {
  if (bytes.size() != sizeof(T)) fail("COMMUNICATOR", "a frame of ", bytes.size(), " bytes, not ", sizeof(T));
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

}  // namespace tokenring::comm
