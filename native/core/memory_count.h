// Counts what memory is held for, and remembers it as it was when all together was most. For any thread.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/device.h"

namespace tokenring {

class MemoryCount {
 public:
  // `purpose` lives for ever.
  void add(void* data, const char* purpose, size_t bytes);
  // The bytes of a block; 0 for one that was not added.
  size_t remove(void* data);

  size_t all() const;
  // Sums by purpose: now, and when they were most.
  std::vector<HeldMemory> now() const;
  std::vector<HeldMemory> most() const;

 private:
  std::map<std::string, size_t> sums() const;

  mutable std::mutex mutex_;
  std::map<void*, std::pair<const char*, size_t>> held_;
  size_t all_ = 0, most_ = 0;
  std::map<std::string, size_t> at_most_;
};

}  // namespace tokenring
