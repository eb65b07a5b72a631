#include "parallel/ring_attention.h"

#include <algorithm>
#include <string>

namespace tokenring {
namespace {

constexpr size_t kAlignment = 256;
size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

HeadRows as_heads(const Tensor& t) { return {t.data, t.dtype, t.shape[0], t.shape[1]}; }

// Hands out the workspace.
struct Room {
  std::byte* at;
  std::byte* take(size_t bytes) {
    std::byte* part = at;
    at += aligned(bytes);
    return part;
  }
};

}  // namespace

RingAttention::RingAttention(const Ops& ops, Communicator& communicator, AttentionHeads heads,
                             std::vector<Shard> shards, ContextSchedule schedule)
    : ops_(ops),
      communicator_(communicator),
      heads_(heads),
      shards_(std::move(shards)),
      schedule_(schedule),
      rank_(communicator.rank()),
      size_(communicator.size()) {
  require(static_cast<int>(shards_.size()) == size_, "shards: there are ", shards_.size(), " for ", size_, " ranks");
  check_shards(shards_);
  ops.attention_workspace({}, 0, heads.heads, heads.kv_heads,
                          heads.head_dim);  // refuses heads that the device cannot do
  for (const Shard& shard : shards_) most_ = std::max(most_, rows_of(shard));
  if (schedule == ContextSchedule::ring) {
    for (int step = 0; step < size_; ++step)
      tiles_.push_back(tiles_between(shards_[rank_], shards_[owner(step)], step == 0));
  } else {
    whole_ = merged(shards_);
    pieces_ = pieces(shards_, whole_);
    tiles_.push_back(tiles_between(shards_[rank_], whole_, true));
  }
}

size_t RingAttention::block_bytes() const {
  return aligned(static_cast<size_t>(most_) * heads_.kv_heads * heads_.head_dim * sizeof(float));
}

size_t RingAttention::forward_workspace() const {
  if (schedule_ == ContextSchedule::ring) return size_ > 1 ? 4 * block_bytes() : 0;
  const size_t whole =
      aligned(static_cast<size_t>(rows_of(whole_)) * heads_.kv_heads * heads_.head_dim * sizeof(float));
  return block_bytes() * (size_ + 1) + 2 * whole;
}

size_t RingAttention::backward_workspace() const {
  const size_t delta = aligned(static_cast<size_t>(rows()) * heads_.heads * sizeof(float));
  if (schedule_ == ContextSchedule::ring) return delta + (size_ > 1 ? 8 * block_bytes() : 0);
  const size_t whole =
      aligned(static_cast<size_t>(rows_of(whole_)) * heads_.kv_heads * heads_.head_dim * sizeof(float));
  return delta + block_bytes() * (size_ + 1) + 4 * whole;
}

RingAttention::Block RingAttention::block(std::byte* memory, int64_t rows) const {
  const int64_t width = int64_t{heads_.kv_heads} * heads_.head_dim;
  return {tensor(memory, DType::f32, {rows, width}), tensor(memory + block_bytes(), DType::f32, {rows, width})};
}

void RingAttention::pass(Stream& wire, const Block& give, const Block& take) const {
  const int next = (rank_ + 1) % size_, before = owner(1);
  communicator_.exchange(wire, {{Transfer::Way::send, next, give.k},
                                {Transfer::Way::send, next, give.v},
                                {Transfer::Way::receive, before, take.k},
                                {Transfer::Way::receive, before, take.v}});
}

// All ranks' rows of `own` in the order of the documents. parts: block_bytes() * (size + 1).
void RingAttention::gather(Stream& wire, Tensor own, std::byte* parts, Tensor whole) const {
  const int64_t width = int64_t{heads_.kv_heads} * heads_.head_dim, floats = most_ * width;
  std::byte* padded = parts + block_bytes() * size_;
  if (own.bytes() > 0) wire.copy_on_device(padded, own.data, own.bytes());
  communicator_.all_gather(wire, tensor(padded, DType::f32, {floats}), tensor(parts, DType::f32, {size_ * floats}));
  for (const Piece& p : pieces_)
    wire.copy_on_device(whole.f32() + p.whole * width,
                        reinterpret_cast<float*>(parts) + (p.shard * most_ + p.row) * width,
                        static_cast<size_t>(p.rows * width) * sizeof(float));
}

// The way back: each rank's rows, summed over the ranks.
void RingAttention::scatter_sum(Stream& compute, Stream& wire, Tensor whole, std::byte* parts, std::byte* own,
                                Tensor out) const {
  const int64_t width = int64_t{heads_.kv_heads} * heads_.head_dim, floats = most_ * width;
  const Tensor all = tensor(parts, DType::f32, {size_ * floats});
  ops_.zero(compute, all);  // the rows that pad smaller shards
  wire.wait(compute);
  for (const Piece& p : pieces_)
    wire.copy_on_device(all.f32() + (p.shard * most_ + p.row) * width, whole.f32() + p.whole * width,
                        static_cast<size_t>(p.rows * width) * sizeof(float));
  communicator_.reduce_scatter(wire, all, tensor(own, DType::f32, {floats}), Reduction::sum);
  if (out.bytes() > 0) wire.copy_on_device(out.data, own, out.bytes());
  compute.wait(wire);
}

void RingAttention::forward(Stream& compute, Stream& wire, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                            Tensor workspace) const {
  require(workspace.bytes() >= forward_workspace(), "ring attention: the workspace has ", workspace.bytes(),
          " bytes, needs ", forward_workspace());
  Room room{static_cast<std::byte*>(workspace.data)};
  if (schedule_ == ContextSchedule::all_gather) {
    std::byte* parts = room.take(block_bytes() * (size_ + 1));
    const int64_t total = rows_of(whole_), width = int64_t{heads_.kv_heads} * heads_.head_dim;
    Tensor keys = tensor(nullptr, DType::f32, {total, width}), values = keys;
    keys.data = room.take(keys.bytes());
    values.data = room.take(values.bytes());
    wire.wait(compute);
    gather(wire, k, parts, keys);
    gather(wire, v, parts, values);
    compute.wait(wire);
    ops_.attention_block_forward(compute, heads_, as_heads(q), as_heads(keys), as_heads(values), tiles_[0], false, out,
                                 lse);
    return;
  }
  std::byte* buffers[2] = {nullptr, nullptr};
  if (size_ > 1)
    for (std::byte*& buffer : buffers) buffer = room.take(2 * block_bytes());
  Block now{k, v};
  for (int step = 0; step < size_; ++step) {
    Block next;
    if (step > 0) compute.wait(wire);  // `now` has come
    if (step + 1 < size_) {
      wire.wait(compute);  // what comes overwrites what the step before has read
      next = block(buffers[step % 2], rows_of(shards_[owner(step + 1)]));
      pass(wire, now, next);
    }
    ops_.attention_block_forward(compute, heads_, as_heads(q), as_heads(now.k), as_heads(now.v), tiles_[step], step > 0,
                                 out, lse);
    now = next;
  }
}

void RingAttention::backward(Stream& compute, Stream& wire, Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out,
                             Tensor lse, Tensor dq, Tensor dk, Tensor dv, Tensor workspace) const {
  require(workspace.bytes() >= backward_workspace(), "ring attention: the workspace has ", workspace.bytes(),
          " bytes, needs ", backward_workspace());
  Room room{static_cast<std::byte*>(workspace.data)};
  Tensor delta = tensor(nullptr, DType::f32, {rows(), heads_.heads});
  delta.data = room.take(delta.bytes());
  ops_.attention_delta(compute, dout, out, heads_.heads, delta);
  ops_.zero(compute, dq);
  const auto add = [&](const Block& keys, const std::vector<AttentionTile>& tiles, const Block& gradient) {
    ops_.attention_block_backward(compute, heads_, dout, as_heads(q), as_heads(keys.k), as_heads(keys.v), lse, delta,
                                  tiles, as_heads(dq), as_heads(gradient.k), as_heads(gradient.v));
  };
  if (schedule_ == ContextSchedule::all_gather) {
    std::byte* parts = room.take(block_bytes() * (size_ + 1));
    const int64_t total = rows_of(whole_), width = int64_t{heads_.kv_heads} * heads_.head_dim;
    Block keys{tensor(nullptr, DType::f32, {total, width}), tensor(nullptr, DType::f32, {total, width})};
    Block gradient = keys;
    for (Tensor* t : {&keys.k, &keys.v, &gradient.k, &gradient.v}) t->data = room.take(t->bytes());
    wire.wait(compute);
    gather(wire, k, parts, keys.k);
    gather(wire, v, parts, keys.v);
    compute.wait(wire);
    ops_.zero(compute, gradient.k);
    ops_.zero(compute, gradient.v);
    add(keys, tiles_[0], gradient);
    std::byte* own = parts + block_bytes() * size_;
    scatter_sum(compute, wire, gradient.k, parts, own, dk);
    scatter_sum(compute, wire, gradient.v, parts, own, dv);
    return;
  }
  std::byte *keys[2] = {nullptr, nullptr}, *gradients[2] = {nullptr, nullptr};
  if (size_ > 1)
    for (int i : {0, 1}) {
      keys[i] = room.take(2 * block_bytes());
      gradients[i] = room.take(2 * block_bytes());
    }
  Block now{k, v}, gradient = size_ > 1 ? block(gradients[0], rows()) : Block{dk, dv};
  ops_.zero(compute, gradient.k);
  ops_.zero(compute, gradient.v);
  for (int step = 0; step < size_; ++step) {
    Block next;
    const bool last = step + 1 == size_;
    if (step > 0) compute.wait(wire);  // the keys, and what the ranks before have added to their gradients
    if (!last) {
      wire.wait(compute);
      next = block(keys[step % 2], rows_of(shards_[owner(step + 1)]));
      pass(wire, now, next);
    }
    add(now, tiles_[step], gradient);
    if (size_ > 1) {
      // One hop behind the keys; after the last step the own gradients come home.
      const Block coming = last ? Block{dk, dv} : block(gradients[(step + 1) % 2], rows_of(shards_[owner(step + 1)]));
      wire.wait(compute);
      pass(wire, gradient, coming);
      gradient = coming;
    }
    now = next;
  }
  if (size_ > 1) compute.wait(wire);
}

}  // namespace tokenring
