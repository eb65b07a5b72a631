#include "model/pages.h"

#include <algorithm>
#include <limits>

namespace tokenring {

namespace {
constexpr int64_t kFirstPages = 64;
}

PagePool::PagePool(Device& device, Stream& stream, const DecoderConfig& config, int64_t max_pages)
    : device_(device),
      stream_(stream),
      page_bytes_(device.ops().page_bytes(config.num_key_value_heads, config.head_dim)),
      limit_(max_pages > 0 ? std::min<int64_t>(max_pages, std::numeric_limits<int32_t>::max())
                           : std::numeric_limits<int32_t>::max()),
      layers_(config.num_hidden_layers) {}

std::optional<int32_t> PagePool::take() {
  if (free_.empty() && !grow()) return std::nullopt;
  const int32_t page = free_.back();
  free_.pop_back();
  owners_[page] = 1;
  return page;
}

void PagePool::give_back(int32_t page) {
  if (--owners_[page] == 0) free_.push_back(page);
}

void PagePool::copy(int32_t from, int32_t to) {
  for (const Buffer& layer : layers_) device_.ops().copy_page(stream_, layer.data(), page_bytes_, from, to);
}

bool PagePool::grow() {
  const int64_t held = static_cast<int64_t>(owners_.size());
  const int64_t wanted = std::min(limit_, std::max(kFirstPages, 2 * held));
  if (wanted <= held) return false;
  std::vector<Buffer> larger;
  try {
    for (size_t i = 0; i < layers_.size(); ++i)
      larger.emplace_back(device_, static_cast<size_t>(wanted) * page_bytes_, "cache");
  } catch (const Failure& failure) {
    if (failure.code() != "OUT_OF_MEMORY" || held == 0) throw;
    limit_ = held;  // from here on sessions give way to each other
    return false;
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (held) stream_.copy_on_device(larger[i].data(), layers_[i].data(), static_cast<size_t>(held) * page_bytes_);
  }
  stream_.synchronize();  // the old memory goes back to the device here
  layers_ = std::move(larger);
  owners_.resize(wanted, 0);
  for (int64_t page = wanted; page-- > held;) free_.push_back(static_cast<int32_t>(page));
  return true;
}

}  // namespace tokenring
