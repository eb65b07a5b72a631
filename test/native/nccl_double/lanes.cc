#include "lanes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <sstream>
#include <thread>

namespace nccl_double {

bool Lanes::open(const std::string& name, int rank, int size) {
  rank_ = rank;
  size_ = size;
  bytes_ = 4096 + 2 * static_cast<size_t>(size) * static_cast<size_t>(size) * sizeof(Box);
  const int fd = shm_open(name.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  void* at = MAP_FAILED;
  if (ftruncate(fd, static_cast<off_t>(bytes_)) == 0)
    at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (at == MAP_FAILED) return false;
  head_ = static_cast<Head*>(at);
  boxes_ = reinterpret_cast<Box*>(static_cast<char*>(at) + 4096);
  int32_t said = 0;
  if (!head_->size.compare_exchange_strong(said, size) && said != size) return false;
  if (++head_->joined == size) shm_unlink(name.c_str());
  return true;
}

Lanes::~Lanes() {
  if (head_) munmap(head_, bytes_);
}

bool Lanes::move(const std::vector<Transfer>& transfers, const std::function<bool()>& stop, std::string* found) {
  struct Progress {
    const Transfer* transfer;
    size_t at = 0;
    bool begun = false, over = false;
    uint64_t last = 0;  // where `taken` is when all of it has been taken
  };
  std::vector<Progress> open;
  for (const Transfer& one : transfers) open.push_back({&one});
  // Messages of one lane go one after the other.
  const auto waits = [&](const Progress& p) {
    for (const Progress& before : open) {
      if (&before == &p) return false;
      const Transfer &a = *before.transfer, &b = *p.transfer;
      if (!before.over && a.peer == b.peer && a.sends == b.sends && a.purpose == b.purpose) return true;
    }
    return false;
  };
  for (int idle = 0;;) {
    bool all = true, moved = false;
    for (Progress& p : open) {
      if (p.over) continue;
      all = false;
      if (waits(p)) continue;
      const Transfer& t = *p.transfer;
      Box& box = t.sends ? this->box(rank_, t.peer, t.purpose) : this->box(t.peer, rank_, t.purpose);
      const size_t n = std::min(kPiece, t.bytes - p.at);
      if (t.sends) {
        if (p.begun && p.at == t.bytes) {
          p.over = box.taken >= p.last;
          moved = moved || p.over;
          continue;
        }
        if (box.pushed != box.taken) continue;
        box.label = t.label;
        std::memcpy(box.data, t.data + p.at, n);
        p.last = ++box.pushed;
      } else {
        if (box.pushed == box.taken) continue;
        if (!(box.label == t.label)) {
          *found = "rank " + std::to_string(t.peer) + " runs " + text_of(box.label) + ", rank " +
                   std::to_string(rank_) + " " + text_of(t.label);
          return false;
        }
        std::memcpy(t.data + p.at, box.data, n);
        ++box.taken;
      }
      p.begun = moved = true;
      p.at += n;
      if (!t.sends) p.over = p.at == t.bytes;
    }
    if (all) return true;
    if (stop()) return false;
    if (moved) {
      idle = 0;
    } else if (++idle > 20) {
      std::this_thread::sleep_for(std::chrono::microseconds(std::min(idle, 500)));
    } else {
      std::this_thread::yield();
    }
  }
}

std::string text_of(const Label& label) {
  static const char* const kinds[] = {"a message", "broadcast", "all_reduce", "reduce_scatter", "all_gather"};
  std::ostringstream text;
  text << kinds[label.kind] << " #" << label.sequence << " of " << label.count << " x type " << label.type
       << " (reduction " << label.reduction << ", root " << label.root << ")";
  return text.str();
}

}  // namespace nccl_double
