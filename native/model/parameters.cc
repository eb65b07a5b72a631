#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/rope.h"

namespace tokenring {

namespace {

constexpr int64_t kAlignElements = 64;  // 256 bytes

int64_t aligned(int64_t elements) { return (elements + kAlignElements - 1) / kAlignElements * kAlignElements; }

struct LayerLayout {
  int64_t qkv, o, gate_up, down, qkv_bias, q_norm, k_norm, input_norm, post_norm;  // offsets in elements
};

// Gives offsets in the flat buffers: a block is one aligned run of rows, cut into the tensors that Hugging Face knows.
class Layout {
 public:
  struct Part {
    std::string name;
    int64_t rows;
  };

  // A matrix of `columns` columns; columns = 0 makes vectors.
  int64_t block(const std::vector<Part>& parts, int64_t columns) {
    const int64_t begin = elements;
    for (const Part& part : parts) {
      NamedSlice slice{part.name, {part.rows}, elements, columns > 0};
      if (columns > 0) slice.shape.push_back(columns);
      elements += slice.elements();
      slices.push_back(std::move(slice));
    }
    elements = aligned(elements);
    return begin;
  }

  std::vector<NamedSlice> slices;
  int64_t elements = 0;
};

}  // namespace

struct Parameters::Impl {
  struct Layer {
    LayerLayout at;
    Weight qkv, o, gate_up, down;
  };

  Device& device;
  const Ops& ops;
  DecoderConfig config;
  Layout layout;
  int64_t embedding = 0, final_norm = 0, head = 0;
  std::vector<Layer> layers;
  Weight head_weight;
  Buffer master, gradient, first_moment, second_moment, copies, tied_head_gradient, tied_rows, rope_cos, rope_sin;
  int64_t version = 0, step = 0;
  bool summed = false;

  int64_t qkv_rows() const {
    return (config.num_attention_heads + 2 * int64_t{config.num_key_value_heads}) * config.head_dim;
  }
  int64_t q_columns() const { return int64_t{config.num_attention_heads} * config.head_dim; }

  Impl(Device& device, const DecoderConfig& config) : device(device), ops(device.ops()), config(config) {
    config.check();
    // Heads that the backend's attention does not take are refused here, before any memory is.
    ops.attention_workspace({}, 1, config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    lay_out();
    master = Buffer(device, flat_bytes(), "weights");
    make_copies();

    const std::unique_ptr<Stream> stream = device.stream();
    ops.zero(*stream, flat(master));
    make_rope(*stream);
    stream->synchronize();
  }

  // Gradients and moments, zero. A policy that only samples or scores (an engine, a reference) never asks for them.
  void need_training_state() {
    if (gradient.data()) return;
    const std::unique_ptr<Stream> stream = device.stream();
    std::vector<int32_t> rows;
    if (config.tie_word_embeddings) {
      rows.resize(config.vocab_size);
      tied_head_gradient = Buffer(device, sizeof(float) * config.vocab_size * config.hidden_size, "gradients");
      tied_rows = Buffer(device, sizeof(int32_t) * rows.size());
      std::iota(rows.begin(), rows.end(), 0);
      stream->copy_to_device(tied_rows.data(), rows.data(), tied_rows.bytes());
      ops.zero(*stream, head_gradient());
    }
    first_moment = Buffer(device, flat_bytes(), "moments");
    second_moment = Buffer(device, flat_bytes(), "moments");
    // Last, because it says that all is there.
    gradient = Buffer(device, flat_bytes(), "gradients");
    for (const Buffer* buffer : {&gradient, &first_moment, &second_moment}) ops.zero(*stream, flat(*buffer));
    stream->synchronize();
  }

  void lay_out() {
    const int64_t h = config.hidden_size, ff = config.intermediate_size;
    const int64_t q = q_columns(), kv = int64_t{config.num_key_value_heads} * config.head_dim;
    embedding = layout.block({{"model.embed_tokens.weight", config.vocab_size}}, h);
    for (int i = 0; i < config.num_hidden_layers; ++i) {
      const std::string layer = "model.layers." + std::to_string(i) + ".", attention = layer + "self_attn.";
      Layer at{};
      at.at.qkv = layout.block(
          {{attention + "q_proj.weight", q}, {attention + "k_proj.weight", kv}, {attention + "v_proj.weight", kv}}, h);
      at.at.o = layout.block({{attention + "o_proj.weight", h}}, q);
      at.at.gate_up = layout.block({{layer + "mlp.gate_proj.weight", ff}, {layer + "mlp.up_proj.weight", ff}}, h);
      at.at.down = layout.block({{layer + "mlp.down_proj.weight", h}}, ff);
      if (config.attention_bias) {
        at.at.qkv_bias = layout.block(
            {{attention + "q_proj.bias", q}, {attention + "k_proj.bias", kv}, {attention + "v_proj.bias", kv}}, 0);
      }
      if (config.qk_norm) {
        at.at.q_norm = layout.block({{attention + "q_norm.weight", config.head_dim}}, 0);
        at.at.k_norm = layout.block({{attention + "k_norm.weight", config.head_dim}}, 0);
      }
      at.at.input_norm = layout.block({{layer + "input_layernorm.weight", h}}, 0);
      at.at.post_norm = layout.block({{layer + "post_attention_layernorm.weight", h}}, 0);
      layers.push_back(at);
    }
    final_norm = layout.block({{"model.norm.weight", h}}, 0);
    head = config.tie_word_embeddings ? embedding : layout.block({{"lm_head.weight", config.vocab_size}}, h);
  }

  void make_copies() {
    const int64_t h = config.hidden_size, ff = config.intermediate_size;
    size_t bytes = 0;
    const auto reserve = [&](Weight& weight, int64_t n, int64_t k) {
      weight.n = n;
      weight.k = k;
      bytes += (ops.weight_bytes(n, k) + 255) / 256 * 256;
    };
    for (Layer& layer : layers) {
      reserve(layer.qkv, qkv_rows(), h);
      reserve(layer.o, h, q_columns());
      reserve(layer.gate_up, 2 * ff, h);
      reserve(layer.down, h, ff);
    }
    reserve(head_weight, config.vocab_size, h);
    copies = Buffer(device, bytes, "weights");
    std::byte* next = static_cast<std::byte*>(copies.data());
    each_weight([&](Weight& weight, int64_t) {
      weight.data = next;
      next += (ops.weight_bytes(weight.n, weight.k) + 255) / 256 * 256;
    });
  }

  template <class Visit>
  void each_weight(Visit visit) {
    for (Layer& layer : layers) {
      visit(layer.qkv, layer.at.qkv);
      visit(layer.o, layer.at.o);
      visit(layer.gate_up, layer.at.gate_up);
      visit(layer.down, layer.at.down);
    }
    visit(head_weight, head);
  }

  // In double: the angle of a late position loses its low bits in float.
  void make_rope(Stream& stream) {
    const int64_t positions = config.positions(), half = config.head_dim / 2;
    const RopeFrequencies rope = rope_frequencies(config);
    std::vector<float> cos(positions * half), sin(positions * half);
    for (int64_t i = 0; i < half; ++i) {
      for (int64_t p = 0; p < positions; ++p) {
        const double angle = static_cast<double>(p) * rope.radians[i];
        cos[p * half + i] = static_cast<float>(rope.magnitude * std::cos(angle));
        sin[p * half + i] = static_cast<float>(rope.magnitude * std::sin(angle));
      }
    }
    rope_cos = Buffer(device, cos.size() * sizeof(float));
    rope_sin = Buffer(device, sin.size() * sizeof(float));
    stream.copy_to_device(rope_cos.data(), cos.data(), rope_cos.bytes());
    stream.copy_to_device(rope_sin.data(), sin.data(), rope_sin.bytes());
    stream.synchronize();
  }

  size_t flat_bytes() const { return static_cast<size_t>(layout.elements) * sizeof(float); }
  Tensor flat(const Buffer& buffer) const { return tensor(buffer.data(), DType::f32, {layout.elements}); }
  Tensor view(const Buffer& buffer, int64_t offset, int64_t rows) const {
    return tensor(static_cast<float*>(buffer.data()) + offset, DType::f32, {rows});
  }
  Tensor view(const Buffer& buffer, int64_t offset, int64_t rows, int64_t columns) const {
    return tensor(static_cast<float*>(buffer.data()) + offset, DType::f32, {rows, columns});
  }
  Tensor head_gradient() const {
    return view(config.tie_word_embeddings ? tied_head_gradient : gradient, config.tie_word_embeddings ? 0 : head,
                config.vocab_size, config.hidden_size);
  }
};

Parameters::Parameters(Device& device, DecoderConfig config) : impl_(std::make_unique<Impl>(device, config)) {}
Parameters::~Parameters() = default;

const DecoderConfig& Parameters::config() const { return impl_->config; }
const std::vector<NamedSlice>& Parameters::slices() const { return impl_->layout.slices; }
int64_t Parameters::elements() const { return impl_->layout.elements; }
int64_t Parameters::version() const { return impl_->version; }
Tensor Parameters::master() { return impl_->flat(impl_->master); }
Tensor Parameters::gradient() {
  impl_->need_training_state();
  return impl_->flat(impl_->gradient);
}
Tensor Parameters::first_moment() {
  impl_->need_training_state();
  return impl_->flat(impl_->first_moment);
}
Tensor Parameters::second_moment() {
  impl_->need_training_state();
  return impl_->flat(impl_->second_moment);
}
int64_t Parameters::optimiser_step() const { return impl_->step; }
void Parameters::set_optimiser_step(int64_t step) { impl_->step = step; }
void Parameters::raise_version(int64_t version) { impl_->version = std::max(impl_->version, version); }

void Parameters::complete_gradients(Stream& stream) {
  Impl& p = *impl_;
  if (!p.config.tie_word_embeddings) return;
  p.need_training_state();
  p.ops.scatter_rows_add(stream, p.head_gradient(), tensor(p.tied_rows.data(), DType::i32, {p.config.vocab_size}),
                         p.view(p.gradient, p.embedding, p.config.vocab_size, p.config.hidden_size));
  p.ops.zero(stream, p.head_gradient());
}

bool Parameters::gradients_summed() const { return impl_->summed; }
void Parameters::set_gradients_summed(bool summed) { impl_->summed = summed; }

void Parameters::zero_gradients(Stream& stream) {
  impl_->summed = false;
  if (!impl_->gradient.data()) return;
  impl_->ops.zero(stream, gradient());
  if (impl_->config.tie_word_embeddings) impl_->ops.zero(stream, impl_->head_gradient());
}

void Parameters::reset_optimiser(Stream& stream) {
  impl_->step = 0;
  if (!impl_->gradient.data()) return;
  zero_gradients(stream);
  impl_->ops.zero(stream, first_moment());
  impl_->ops.zero(stream, second_moment());
}

std::string Parameters::first_non_finite(Stream& stream, Tensor flat) const {
  std::vector<float> values;
  for (const NamedSlice& slice : slices()) {
    values.resize(static_cast<size_t>(slice.elements()));
    stream.copy_to_host(values.data(), flat.f32() + slice.offset, values.size() * sizeof(float));
    stream.synchronize();
    for (const float value : values) {
      if (!std::isfinite(value)) return slice.name;
    }
  }
  return {};
}

void Parameters::publish(Stream& stream) {
  Impl& p = *impl_;
  p.each_weight([&](Weight& weight, int64_t offset) {
    p.ops.prepare_weight(stream, p.view(p.master, offset, weight.n, weight.k), weight);
  });
  ++p.version;
}

RopeTable Parameters::rope() const {
  const Impl& p = *impl_;
  const int64_t positions = p.config.positions(), half = p.config.head_dim / 2;
  return RopeTable{p.view(p.rope_cos, 0, positions, half), p.view(p.rope_sin, 0, positions, half)};
}

LayerWeights Parameters::acquire(Schedule&, int layer) {
  const Impl& p = *impl_;
  const Impl::Layer& l = p.layers.at(layer);
  const int64_t h = p.config.hidden_size;
  return LayerWeights{
      .qkv = l.qkv,
      .o = l.o,
      .gate_up = l.gate_up,
      .down = l.down,
      .qkv_bias = p.config.attention_bias ? p.view(p.master, l.at.qkv_bias, p.qkv_rows()) : Tensor{},
      .q_norm = p.config.qk_norm ? p.view(p.master, l.at.q_norm, p.config.head_dim) : Tensor{},
      .k_norm = p.config.qk_norm ? p.view(p.master, l.at.k_norm, p.config.head_dim) : Tensor{},
      .input_norm = p.view(p.master, l.at.input_norm, h),
      .post_norm = p.view(p.master, l.at.post_norm, h),
  };
}

EdgeWeights Parameters::acquire_edge(Schedule&) {
  const Impl& p = *impl_;
  return EdgeWeights{
      .embedding = p.view(p.master, p.embedding, p.config.vocab_size, p.config.hidden_size),
      .head = p.head_weight,
      .final_norm = p.view(p.master, p.final_norm, p.config.hidden_size),
  };
}

LayerGradients Parameters::layer(Schedule&, int layer) {
  impl_->need_training_state();
  const Impl& p = *impl_;
  const Impl::Layer& l = p.layers.at(layer);
  const int64_t h = p.config.hidden_size;
  const auto matrix = [&](const Weight& weight, int64_t offset) {
    return p.view(p.gradient, offset, weight.n, weight.k);
  };
  return LayerGradients{
      .qkv = matrix(l.qkv, l.at.qkv),
      .qkv_bias = p.config.attention_bias ? p.view(p.gradient, l.at.qkv_bias, p.qkv_rows()) : Tensor{},
      .q_norm = p.config.qk_norm ? p.view(p.gradient, l.at.q_norm, p.config.head_dim) : Tensor{},
      .k_norm = p.config.qk_norm ? p.view(p.gradient, l.at.k_norm, p.config.head_dim) : Tensor{},
      .o = matrix(l.o, l.at.o),
      .gate_up = matrix(l.gate_up, l.at.gate_up),
      .down = matrix(l.down, l.at.down),
      .input_norm = p.view(p.gradient, l.at.input_norm, h),
      .post_norm = p.view(p.gradient, l.at.post_norm, h),
  };
}

EdgeGradients Parameters::edge(Schedule&) {
  impl_->need_training_state();
  const Impl& p = *impl_;
  return EdgeGradients{
      .embedding = p.view(p.gradient, p.embedding, p.config.vocab_size, p.config.hidden_size),
      .head = p.head_gradient(),
      .final_norm = p.view(p.gradient, p.final_norm, p.config.hidden_size),
  };
}

// The blocks of a layer follow each other, the embedding comes before them, and the rest of the edge after.
std::vector<Tensor> Parameters::bucket(int layer) {
  impl_->need_training_state();
  const Impl& p = *impl_;
  const auto begin = [&](int l) { return l < p.config.num_hidden_layers ? p.layers[l].at.qkv : p.final_norm; };
  const auto part = [&](int64_t from, int64_t to) { return p.view(p.gradient, from, to - from); };
  if (layer < 0) return {part(0, begin(0)), part(p.final_norm, p.layout.elements)};
  return {part(begin(layer), begin(layer + 1))};
}

// On one rank everything is always readable, and gradients stay where they are.
void Parameters::release(Schedule&, int) {}
void Parameters::release_edge(Schedule&) {}
void Parameters::ready(Schedule&, int) {}
void Parameters::ready_edge(Schedule&) {}

}  // namespace tokenring
