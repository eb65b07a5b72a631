#include "model/weights.h"

#include <algorithm>
#include <utility>

namespace tokenring {

namespace {

constexpr size_t kAlignment = 256;
size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

Weights::Weights(Device& device, const DecoderConfig& config, const Layout& layout, const Share& share, Tensor master,
                 int stage, Mesh* mesh, bool on_host)
    : device_(device),
      ops_(device.ops()),
      config_(config),
      layout_(layout),
      share_(share),
      master_(master),
      stage_(stage),
      mesh_(mesh),
      on_host_(on_host),
      apart_(stage > 0 || on_host),
      plain_(apart_ && device.ops().plain_weights()) {
  require(plain_ || !on_host, "this device computes with float32 masters, which it cannot leave to the host");
  const int64_t h = config.hidden_size, ff = config.intermediate_size;
  const int64_t q = int64_t{config.num_attention_heads} * config.head_dim;
  const int64_t kv = int64_t{config.num_key_value_heads} * config.head_dim;
  const size_t layers = layout.layers.size();
  rooms_.resize(stage == 3 ? std::min<size_t>(layers, 2) : layers);
  holds_.assign(rooms_.size(), kNone);

  // Sizes first, then memory, so that copies are one allocation.
  size_t bytes = 0;
  const auto reserve = [&](Weight& weight, int64_t n, int64_t k) {
    weight.n = n;
    weight.k = k;
    bytes += aligned(ops_.weight_bytes(n, k));
  };
  for (Room& room : rooms_) {
    reserve(room.qkv, q + 2 * kv, h);
    reserve(room.o, h, q);
    reserve(room.gate_up, 2 * ff, h);
    reserve(room.down, h, ff);
  }
  reserve(head_, config.vocab_size, h);
  if (!plain_ || stage == 0) copies_ = Buffer(device, bytes, "weights");
  std::byte* next = static_cast<std::byte*>(copies_.data());
  const auto place = [&](Weight& weight) {
    weight.data = next;
    next += aligned(ops_.weight_bytes(weight.n, weight.k));
  };

  const Layout::Layer& first = layout.layers.front();  // all are alike
  if (apart_) {
    vectors_ = make(first.vectors.elements * static_cast<int64_t>(rooms_.size()), DType::f32);
    norm_ = make(layout.final_norm.elements, DType::f32);
  }
  if (stage > 0) {
    if (on_host) vector_ = make(std::max(first.vectors.elements, layout.final_norm.elements) / share.parts, DType::f32);
    table_ = make(std::max(layout.embedding.elements, stage == 3 ? layout.head.elements : 0),
                  plain_ ? ops_.activation() : DType::f32);
  }
  if (plain_) {
    if (stage > 0) {
      rounded_ = make(share.elements, ops_.activation());
      rows_ = make(first.matrices.elements * static_cast<int64_t>(rooms_.size()), ops_.activation());
    } else if (!config.tie_word_embeddings) {
      table_ = make(layout.embedding.elements, ops_.activation());
    }
    if (stage == 1 && !config.tie_word_embeddings) head_rows_ = make(layout.head.elements, ops_.activation());
  } else if (stage > 0) {
    const bool head = stage == 1 && !config.tie_word_embeddings;
    staging_ = make(std::max(first.matrices.elements, head ? layout.head.elements : 0), DType::f32);
  }

  for (size_t i = 0; i < rooms_.size(); ++i) {
    Room& room = rooms_[i];
    const Layout::Layer& at = layout.layers[i];
    float* vectors = apart_ ? static_cast<float*>(vectors_.data()) + static_cast<int64_t>(i) * first.vectors.elements
                            : master.f32() + at.vectors.offset;
    room.vectors = tensor(vectors, DType::f32, {at.vectors.elements});
    if (plain_ && stage > 0) {
      const int64_t length = at.matrices.elements;
      auto* rows = static_cast<std::byte*>(rows_.data()) + i * length * size_of(ops_.activation());
      room.rows = tensor(rows, ops_.activation(), {length});
      const auto point = [&](Weight& weight, int64_t offset) {
        weight.data = rows + (offset - at.matrices.offset) * size_of(ops_.activation());
      };
      point(room.qkv, at.qkv);
      point(room.o, at.o);
      point(room.gate_up, at.gate_up);
      point(room.down, at.down);
    } else {
      for (Weight* weight : {&room.qkv, &room.o, &room.gate_up, &room.down}) place(*weight);
    }
  }
  if (plain_ && stage > 0)
    head_.data = head_rows_.data() ? head_rows_.data() : table_.data();
  else
    place(head_);
  final_norm_ = tensor(apart_ ? norm_.data() : master.f32() + layout.final_norm.offset, DType::f32, {h});
}

Buffer Weights::make(int64_t elements, DType dtype) const {
  return Buffer(device_, static_cast<size_t>(elements) * size_of(dtype), "weights");
}

// --- from masters to copies ----------------------------------------------------------------------------

void Weights::gather(Stream& stream, const Block& block, const void* from, DType dtype, void* to) const {
  const int64_t length = block.elements / share_.parts;
  Tensor part = tensor(const_cast<std::byte*>(static_cast<const std::byte*>(from)) + share_.own(block) * size_of(dtype),
                       dtype, {length});
  Communicator* group = mesh_ ? mesh_->shard() : nullptr;
  if (!group) return stream.copy_on_device(to, part.data, part.bytes());
  if (on_host_ && from == master_.data) {
    stream.copy_to_device(vector_.data(), part.data, part.bytes());
    part.data = vector_.data();
  }
  group->all_gather(stream, part, tensor(to, dtype, {block.elements}));
}

const float* Weights::whole(Stream& stream, const Block& block, const Buffer& to) const {
  if (stage_ == 0) return master_.f32() + block.offset;
  gather(stream, block, master_.data, DType::f32, to.data());
  return static_cast<const float*>(to.data());
}

void Weights::prepare(Stream& stream, const float* master, const Weight& to) const {
  ops_.prepare_weight(stream, tensor(const_cast<float*>(master), DType::f32, {to.n, to.k}), to);
}

void Weights::fill_layer(Stream& stream, int layer) {
  const Layout::Layer& at = layout_.layers[layer];
  const Room& to = room(layer);
  if (apart_) gather(stream, at.vectors, master_.data, DType::f32, to.vectors.data);
  if (plain_ && stage_ == 0) return;  // round() has made the copies
  if (plain_) return gather(stream, at.matrices, rounded_.data(), ops_.activation(), to.rows.data);
  const float* rows = whole(stream, at.matrices, staging_) - at.matrices.offset;
  prepare(stream, rows + at.qkv, to.qkv);
  prepare(stream, rows + at.o, to.o);
  prepare(stream, rows + at.gate_up, to.gate_up);
  prepare(stream, rows + at.down, to.down);
}

void Weights::fill_table(Stream& stream, const Block& block) {
  gather(stream, block, plain_ ? rounded_.data() : master_.data, plain_ ? ops_.activation() : DType::f32,
         table_.data());
}

void Weights::fill_head(Stream& stream, bool in_table) {
  if (apart_) gather(stream, layout_.final_norm, master_.data, DType::f32, norm_.data());
  if (plain_) {
    if (in_table || stage_ == 0) return;
    return gather(stream, layout_.head, rounded_.data(), ops_.activation(), head_.data);
  }
  prepare(stream,
          in_table ? static_cast<const float*>(table_.data())
                   : whole(stream, layout_.head, stage_ == 3 ? table_ : staging_),
          head_);
}

// What of these masters lies from number `begin` on of the rank's flat buffer, and is `to` from there.
void Weights::round_into(Stream& stream, int64_t offset, Tensor masters, int64_t begin, int64_t elements,
                         void* to) const {
  const int64_t from = std::max(offset, begin), end = std::min(offset + masters.elements(), begin + elements);
  if (from >= end) return;
  // As rows of a length that the kernel likes.
  const int64_t width = 1024, rows = (end - from) / width, rest = (end - from) % width;
  const auto size = static_cast<int64_t>(size_of(ops_.activation()));
  const float* source = masters.f32() + (from - offset);
  auto* place = static_cast<std::byte*>(to) + (from - begin) * size;
  if (rows > 0) prepare(stream, source, {rows, width, place});
  if (rest > 0) prepare(stream, source + rows * width, {1, rest, place + rows * width * size});
}

void Weights::round(Stream& stream, int64_t offset, Tensor masters) const {
  const auto into = [&](int64_t begin, int64_t elements, void* to) {
    round_into(stream, offset, masters, begin, elements, to);
  };
  if (stage_ > 0) return into(0, share_.elements, rounded_.data());
  for (size_t layer = 0; layer < rooms_.size(); ++layer) {
    const Layout::Layer& at = layout_.layers[layer];
    const Room& room = rooms_[layer];
    for (const auto& [begin, weight] :
         {std::pair{at.qkv, &room.qkv}, {at.o, &room.o}, {at.gate_up, &room.gate_up}, {at.down, &room.down}})
      into(begin, weight->n * weight->k, weight->data);
  }
  into(layout_.head.offset, head_.n * head_.k, head_.data);
  if (table_.data()) into(layout_.embedding.offset, layout_.embedding.elements, table_.data());
}

void Weights::publish(Stream& stream, bool is_rounded) {
  if (plain_ && !is_rounded) round(stream, 0, master_);
  if (stage_ == 3) {
    last_ = kNone;
    holds_.assign(holds_.size(), kNone);
    in_table_ = nullptr;
    head_held_ = false;
    return;
  }
  if (stage_ > 0) fill_table(stream, layout_.embedding);
  for (int layer = 0; layer < head_unit(); ++layer) fill_layer(stream, layer);
  fill_head(stream, stage_ > 0 && config_.tie_word_embeddings);
}

// --- for the entries of a schedule ---------------------------------------------------------------------

Tensor Weights::acquire_embedding(Schedule& schedule) {
  enter(schedule, kEmbedding);
  void* table = table_.data() ? table_.data() : plain_ ? head_.data : master_.f32() + layout_.embedding.offset;
  return tensor(table, plain_ ? ops_.activation() : DType::f32, {config_.vocab_size, config_.hidden_size});
}

LayerWeights Weights::acquire(Schedule& schedule, int layer) {
  enter(schedule, layer);
  const Layout::Layer& at = layout_.layers.at(layer);
  const Room& in = room(layer);
  const int64_t h = config_.hidden_size;
  const auto vector = [&](int64_t offset, int64_t elements) {
    return tensor(in.vectors.f32() + (offset - at.vectors.offset), DType::f32, {elements});
  };
  return LayerWeights{
      .qkv = in.qkv,
      .o = in.o,
      .gate_up = in.gate_up,
      .down = in.down,
      .qkv_bias = config_.attention_bias ? vector(at.qkv_bias, in.qkv.n) : Tensor{},
      .q_norm = config_.qk_norm ? vector(at.q_norm, config_.head_dim) : Tensor{},
      .k_norm = config_.qk_norm ? vector(at.k_norm, config_.head_dim) : Tensor{},
      .input_norm = vector(at.input_norm, h),
      .post_norm = vector(at.post_norm, h),
  };
}

HeadWeights Weights::acquire_head(Schedule& schedule) {
  enter(schedule, head_unit());
  return HeadWeights{head_, final_norm_};
}

bool Weights::held(int unit) const {
  if (unit == kEmbedding) return in_table_ == &layout_.embedding;
  if (unit == head_unit()) return head_held_;
  return holds_[static_cast<size_t>(unit) % holds_.size()] == unit;
}

void Weights::enter(Schedule& schedule, int unit) {
  if (stage_ != 3) return;
  if (unit == kEmbedding) {  // a pass begins; whether the one before was run to its end is not known
    last_ = kNone;
    holds_.assign(holds_.size(), kNone);
    in_table_ = nullptr;
    head_held_ = false;
  }
  const int next = unit > last_ ? unit + 1 : unit - 1;
  last_ = unit;
  if (!held(unit)) fetch(schedule, unit);
  schedule.add(Track::compute, {Track::gradients}, "wait", unit < head_unit() ? unit : -1, 0, 0, [](const Frame&) {});
  if (next >= 0 && next <= head_unit() && !held(next)) fetch(schedule, next);
}

// Runs behind all that compute has queued, which may read what is overwritten.
void Weights::fetch(Schedule& schedule, int unit) {
  const auto add = [&](const Block& block, DType dtype, int64_t more, std::function<void(const Frame&)> run) {
    schedule.add(Track::gradients, {Track::compute}, "all_gather", unit < head_unit() ? unit : -1,
                 block.elements * static_cast<int64_t>(size_of(dtype)) + more * 4, 0, std::move(run));
  };
  const DType dtype = plain_ ? ops_.activation() : DType::f32;
  if (unit == kEmbedding) {
    in_table_ = &layout_.embedding;
    add(layout_.embedding, dtype, 0, [this](const Frame& f) { fill_table(f.stream, layout_.embedding); });
  } else if (unit == head_unit()) {
    const bool in_table = config_.tie_word_embeddings && in_table_ != nullptr;
    if (!in_table) in_table_ = config_.tie_word_embeddings ? &layout_.embedding : &layout_.head;
    head_held_ = true;
    add(in_table ? layout_.final_norm : layout_.head, dtype, 0,
        [this, in_table](const Frame& f) { fill_head(f.stream, in_table); });
  } else {
    const Layout::Layer& at = layout_.layers[unit];
    holds_[static_cast<size_t>(unit) % holds_.size()] = unit;
    add(at.matrices, dtype, at.vectors.elements, [this, unit](const Frame& f) { fill_layer(f.stream, unit); });
  }
}

}  // namespace tokenring
