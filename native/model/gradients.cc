#include "model/gradients.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

namespace tokenring {

Gradients::Gradients(Device& device, const DecoderConfig& config, const Layout& layout, const Share& share, int stage,
                     Mesh* mesh)
    : device_(device),
      ops_(device.ops()),
      config_(config),
      layout_(layout),
      share_(share),
      stage_(stage),
      mesh_(mesh) {}

Buffer Gradients::make(Stream& stream, int64_t elements) const {
  Buffer buffer(device_, static_cast<size_t>(elements) * sizeof(float), "gradients");
  clear(stream, buffer);
  return buffer;
}

void Gradients::need() {
  if (any()) return;
  const std::unique_ptr<Stream> stream = device_.stream();
  std::vector<int32_t> rows;
  if (stage_ == 3) {
    const Layout::Layer& layer = layout_.layers.front();  // all are alike
    const int64_t rooms = std::min<int64_t>(static_cast<int64_t>(layout_.layers.size()), 2);
    layers_ = make(*stream, rooms * (layer.end() - layer.begin()));
    edge_ = make(*stream, std::max(layout_.embedding.elements, layout_.head.elements));
    norm_ = make(*stream, layout_.final_norm.elements);
  } else if (config_.tie_word_embeddings) {
    rows.resize(config_.vocab_size);
    std::iota(rows.begin(), rows.end(), 0);
    tied_head_ = make(*stream, int64_t{config_.vocab_size} * config_.hidden_size);
    tied_rows_ = Buffer(device_, sizeof(int32_t) * rows.size());
    stream->copy_to_device(tied_rows_.data(), rows.data(), tied_rows_.bytes());
  }
  if (stage_ != 3) flat_ = make(*stream, layout_.elements);
  if (stage_ != 0) share_of_sum_ = make(*stream, share_.elements);
  stream->synchronize();
}

Tensor Gradients::sum() const {
  return tensor((stage_ == 0 ? flat_ : share_of_sum_).data(), DType::f32, {share_.elements});
}

Tensor Gradients::part(const Block& block) const {
  return tensor(sum().f32() + share_.own(block), DType::f32, {block.elements / share_.parts});
}

Tensor Gradients::view(float* base, int64_t offset, int64_t rows, int64_t columns) const {
  return columns > 0 ? tensor(base + offset, DType::f32, {rows, columns}) : tensor(base + offset, DType::f32, {rows});
}

// `base` is where the flat buffer would begin.
LayerGradients Gradients::layer_views(int layer, float* base) const {
  const Layout::Layer& at = layout_.layers.at(layer);
  const int64_t h = config_.hidden_size, ff = config_.intermediate_size, d = config_.head_dim;
  const int64_t q = config_.num_attention_heads * d, all = q + 2 * config_.num_key_value_heads * d;
  return LayerGradients{
      .qkv = view(base, at.qkv, all, h),
      .qkv_bias = config_.attention_bias ? view(base, at.qkv_bias, all) : Tensor{},
      .q_norm = config_.qk_norm ? view(base, at.q_norm, d) : Tensor{},
      .k_norm = config_.qk_norm ? view(base, at.k_norm, d) : Tensor{},
      .o = view(base, at.o, h, q),
      .gate_up = view(base, at.gate_up, 2 * ff, h),
      .down = view(base, at.down, h, ff),
      .input_norm = view(base, at.input_norm, h),
      .post_norm = view(base, at.post_norm, h),
  };
}

float* Gradients::layer_room(int layer) const {
  const Layout::Layer& at = layout_.layers.at(layer);
  const int64_t rooms = std::min<int64_t>(static_cast<int64_t>(layout_.layers.size()), 2);
  return static_cast<float*>(layers_.data()) + layer % rooms * (at.end() - at.begin());
}

// --- as a sink -----------------------------------------------------------------------------------------

LayerGradients Gradients::layer(Schedule& schedule, int layer) {
  need();
  if (stage_ != 3) return layer_views(layer, static_cast<float*>(flat_.data()));
  const Layout::Layer& at = layout_.layers.at(layer);
  float* room = layer_room(layer);
  continue_sum(schedule, layer, {at.matrices, at.vectors}, room);
  return layer_views(layer, room - at.begin());
}

HeadGradients Gradients::head(Schedule& schedule) {
  need();
  const int64_t v = config_.vocab_size, h = config_.hidden_size;
  auto* flat = static_cast<float*>(flat_.data());
  if (stage_ != 3) {
    const bool tied = config_.tie_word_embeddings;
    return {tied ? view(static_cast<float*>(tied_head_.data()), 0, v, h) : view(flat, layout_.head.offset, v, h),
            view(flat, layout_.final_norm.offset, h)};
  }
  auto *edge = static_cast<float*>(edge_.data()), *norm = static_cast<float*>(norm_.data());
  if (!head_open_) {
    head_open_ = true;
    continue_sum(schedule, -1, {layout_.head}, edge);
    continue_sum(schedule, -1, {layout_.final_norm}, norm);
  }
  return {view(edge, 0, v, h), view(norm, 0, h)};
}

Tensor Gradients::embedding(Schedule& schedule) {
  need();
  const int64_t v = config_.vocab_size, h = config_.hidden_size;
  if (stage_ != 3) return view(static_cast<float*>(flat_.data()), layout_.embedding.offset, v, h);
  // The head's gradients have left the room before those of the first layer, which are not waited for, are queued.
  schedule.add(Track::compute, {Track::gradients}, "wait", -1, 0, 0, [](const Frame&) {});
  flush(schedule);
  auto* edge = static_cast<float*>(edge_.data());
  continue_sum(schedule, -1, {layout_.embedding}, edge);
  return view(edge, 0, v, h);
}

void Gradients::ready(Schedule& schedule, int unit) {
  if (stage_ != 3) return;
  ready_ = unit;
  if (unit == kHeadUnit) head_open_ = false;
  if (unit != kEmbeddingUnit) return;  // the next one that is acquired, or the embedding, takes it along
  flush(schedule);
  schedule.add(Track::compute, {Track::gradients}, "wait", -1, 0, 0, [](const Frame&) {});
}

void Gradients::continue_sum(Schedule& schedule, int unit, std::initializer_list<Block> blocks, float* room) {
  struct Copy {
    float* to;
    Tensor from;
  };
  std::vector<Copy> copies;
  const int64_t begin = blocks.begin()->offset;
  int64_t elements = 0, bytes = 0;
  for (const Block& block : blocks) {
    elements += block.elements;
    copies.push_back({room + share_.part(block).offset - begin, part(block)});
    bytes += 2 * static_cast<int64_t>(copies.back().from.bytes());
  }
  const Tensor all = tensor(room, DType::f32, {elements});
  schedule.add("zero", unit, bytes + static_cast<int64_t>(all.bytes()), 0, [&ops = ops_, all, copies](const Frame& f) {
    ops.zero(f.stream, all);
    for (const Copy& copy : copies) f.stream.copy_on_device(copy.to, copy.from.data, copy.from.bytes());
  });
}

void Gradients::flush(Schedule& schedule) {
  if (ready_ == kNone) return;
  struct Sum {
    Block block;
    float* room;
  };
  std::vector<Sum> sums;
  const int unit = std::exchange(ready_, kNone);
  auto *edge = static_cast<float*>(edge_.data()), *norm = static_cast<float*>(norm_.data());
  if (unit == kHeadUnit) {
    sums = {{layout_.head, edge}, {layout_.final_norm, norm}};
  } else if (unit == kEmbeddingUnit) {
    sums = {{layout_.embedding, edge}};
  } else {
    const Layout::Layer& at = layout_.layers.at(unit);
    float* room = layer_room(unit);
    sums = {{at.matrices, room}, {at.vectors, room + at.matrices.elements}};
  }
  int64_t bytes = 0;
  for (const Sum& sum : sums) bytes += sum.block.elements * static_cast<int64_t>(sizeof(float));
  schedule.add(Track::gradients, {Track::compute}, "reduce_scatter", std::max(unit, -1), bytes, 0,
               [this, sums](const Frame& f) {
                 for (const Sum& sum : sums) scatter(f.stream, sum.block, sum.room);
               });
}

void Gradients::scatter(Stream& stream, const Block& block, float* room) const {
  const Tensor to = part(block);
  if (Communicator* group = mesh_->shard())
    group->reduce_scatter(stream, tensor(room, DType::f32, {block.elements}), to, Reduction::sum);
  else
    stream.copy_on_device(to.data, room, to.bytes());
}

// --- sums over ranks -----------------------------------------------------------------------------------

std::vector<Bucket> Gradients::buckets(int unit) const {
  std::vector<Block> blocks;
  if (unit == kEmbeddingUnit) {
    blocks = {layout_.embedding};
  } else if (unit == kHeadUnit) {
    blocks = {layout_.final_norm};
    if (!config_.tie_word_embeddings) blocks.push_back(layout_.head);
  } else {
    const Layout::Layer& at = layout_.layers.at(unit);
    blocks = {at.matrices, at.vectors};
  }
  // They follow each other: where every rank keeps them whole, they are one.
  if (stage_ == 0) blocks = {{blocks.front().offset, blocks.back().end() - blocks.front().offset}};
  std::vector<Bucket> buckets;
  for (const Block& block : blocks) {
    Bucket bucket;
    if (stage_ != 3) bucket.whole = view(static_cast<float*>(flat_.data()), block.offset, block.elements);
    if (stage_ != 0) bucket.part = part(block);
    buckets.push_back(bucket);
  }
  return buckets;
}

void Gradients::complete(Stream& stream) {
  if (stage_ == 3 || !config_.tie_word_embeddings) return;
  need();
  const int64_t v = config_.vocab_size, h = config_.hidden_size;
  const Tensor head = view(static_cast<float*>(tied_head_.data()), 0, v, h);
  ops_.scatter_rows_add(stream, head, tensor(tied_rows_.data(), DType::i32, {v}),
                        view(static_cast<float*>(flat_.data()), layout_.embedding.offset, v, h));
  ops_.zero(stream, head);
}

void Gradients::clear(Stream& stream, const Buffer& buffer) const {
  ops_.zero(stream, tensor(buffer.data(), DType::u8, {static_cast<int64_t>(buffer.bytes())}));
}

void Gradients::zero(Stream& stream) {
  for (const Buffer* buffer : {&flat_, &tied_head_, &share_of_sum_}) clear(stream, *buffer);
}

void Gradients::finish(Stream& stream) {
  if (stage_ == 1) clear(stream, flat_);
}

}  // namespace tokenring
