// Memory that several may hold: a tensor of JavaScript, a call that computes with it, a program that took it over.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>

namespace tokenring {

class Storage {
 public:
  // `release` runs when the last holder lets go, on that holder's thread; null for memory that somebody else owns.
  Storage(void* data, size_t bytes, std::function<void()> release)
      : data_(data), bytes_(bytes), release_(std::move(release)) {}
  Storage(const Storage&) = delete;
  ~Storage() {
    if (release_) release_();
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_;
  size_t bytes_;
  std::function<void()> release_;
};

}  // namespace tokenring
