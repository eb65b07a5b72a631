#include "core/memory_count.h"

namespace tokenring {

namespace {

std::vector<HeldMemory> as_list(const std::map<std::string, size_t>& sums) {
  std::vector<HeldMemory> list;
  for (const auto& [purpose, bytes] : sums) list.push_back({purpose, bytes});
  return list;
}

}  // namespace

void MemoryCount::add(void* data, const char* purpose, size_t bytes) {
  std::lock_guard lock(mutex_);
  held_[data] = {purpose, bytes};
  all_ += bytes;
  if (all_ <= most_) return;
  most_ = all_;
  at_most_ = sums();
}

size_t MemoryCount::remove(void* data) {
  std::lock_guard lock(mutex_);
  const auto at = held_.find(data);
  if (at == held_.end()) return 0;
  const size_t bytes = at->second.second;
  all_ -= bytes;
  held_.erase(at);
  return bytes;
}

size_t MemoryCount::all() const {
  std::lock_guard lock(mutex_);
  return all_;
}

std::vector<HeldMemory> MemoryCount::now() const {
  std::lock_guard lock(mutex_);
  return as_list(sums());
}

std::vector<HeldMemory> MemoryCount::most() const {
  std::lock_guard lock(mutex_);
  return as_list(at_most_);
}

std::map<std::string, size_t> MemoryCount::sums() const {
  std::map<std::string, size_t> sums;
  for (const auto& [data, block] : held_) sums[block.first] += block.second;
  return sums;
}

}  // namespace tokenring
