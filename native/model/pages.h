// The pages that hold the sessions' keys and values: which are free, how many sessions share each, and the memory
// behind them, one buffer a layer. Page p of every layer belongs together.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/device.h"
#include "core/ops.h"
#include "model/config.h"

namespace tokenring {

class PagePool {
 public:
  // max_pages 0 = as many as memory holds. Work on the pages is queued on `stream`.
  PagePool(Device&, Stream& stream, const DecoderConfig&, int64_t max_pages);

  // A free page with one owner; nothing when the limit is reached or the device has no memory left. Memory grows
  // by doubling, so that the steady state allocates nothing.
  std::optional<int32_t> take();
  void share(int32_t page) { ++owners_[page]; }
  void give_back(int32_t page);
  bool shared(int32_t page) const { return owners_[page] > 1; }
  // Queues the copy of a page in every layer.
  void copy(int32_t from, int32_t to);

  // Changes when take() grows the pool: read it after the pages of a pass were taken.
  void* layer(int index) const { return layers_[index].data(); }
  int64_t used() const { return static_cast<int64_t>(owners_.size() - free_.size()); }
  // Pages that can ever be taken as far as is known.
  int64_t limit() const { return limit_; }

 private:
  bool grow();

  Device& device_;
  Stream& stream_;
  size_t page_bytes_;
  int64_t limit_;
  std::vector<Buffer> layers_;
  std::vector<int32_t> owners_;  // of each page; 0 = free
  std::vector<int32_t> free_;    // a stack
};

}  // namespace tokenring
