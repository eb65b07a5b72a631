// How the ranks of the double reach each other: boxes in shared memory, one for each ordered pair and purpose, that
// hold one piece of a message at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace nccl_double {

constexpr int kMaxRanks = 64;
constexpr size_t kPiece = size_t{32} << 10;

// What a message says about itself.
struct Label {
  uint64_t sequence;
  int32_t kind, type, reduction, root;
  uint64_t count;
  bool operator==(const Label&) const = default;
};

struct Box {
  std::atomic<uint64_t> pushed, taken;
  Label label;
  char data[kPiece];
};

struct Head {
  std::atomic<int32_t> size, joined;
};

enum class Purpose { collective, message };

// A message of this rank, to or from a peer.
struct Transfer {
  int peer;
  bool sends;
  Purpose purpose;
  Label label;
  char* data;  // of a message that is sent only read
  size_t bytes;
};

class Lanes {
 public:
  // Takes part in the memory of this name; makes it, if nobody has. False if another size was said.
  bool open(const std::string& name, int rank, int size);
  ~Lanes();
  bool all_joined() const { return head_->joined == size_; }

  // Moves all of them, side by side. False if stop() said so, or a label was not what was expected: then `*found` says
  // whose and what.
  bool move(const std::vector<Transfer>& transfers, const std::function<bool()>& stop, std::string* found);

 private:
  Box& box(int from, int to, Purpose purpose) const {
    return boxes_[((purpose == Purpose::message) * size_ + from) * size_ + to];
  }
  int rank_ = 0, size_ = 0;
  size_t bytes_ = 0;
  Head* head_ = nullptr;
  Box* boxes_ = nullptr;
};

std::string text_of(const Label& label);

}  // namespace nccl_double
