#include "comm/dry.h"

namespace tokenring {
namespace {

class Dry final : public Communicator {
 public:
  explicit Dry(const CommunicatorOptions& options) : rank_(options.rank), size_(options.size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void join() override {}
  void broadcast(Stream&, Tensor, int) override {}
  void all_reduce(Stream&, Tensor, Reduction) override {}
  void reduce_scatter(Stream&, Tensor, Tensor, Reduction) override {}
  void all_gather(Stream& stream, Tensor in, Tensor out) override {
    auto* to = static_cast<std::byte*>(out.data);
    for (int r = 0; r < size_; ++r) stream.copy_on_device(to + r * in.bytes(), in.data, in.bytes());
  }
  void exchange(Stream&, std::vector<Transfer>) override {}
  void barrier(Stream&) override {}
  void abort(const std::string&) noexcept override {}

 private:
  int rank_, size_;
};

class DryTransport final : public Transport {
 public:
  UniqueId make_id() const override { return {}; }
  std::unique_ptr<Communicator> make(const CommunicatorOptions& options) const override {
    return std::make_unique<Dry>(options);
  }
};

}  // namespace

const Transport& dry_transport() {
  static const DryTransport transport;
  return transport;
}

}  // namespace tokenring
