#include "model/layout.h"

#include <algorithm>

namespace tokenring {

namespace {

int64_t aligned(int64_t elements, int64_t to) { return (elements + to - 1) / to * to; }

struct Part {
  std::string name;
  int64_t rows;
};

// An aligned run of rows, cut into the tensors that Hugging Face knows; returns its offset. columns = 0 makes vectors.
int64_t append(Layout& layout, const std::vector<Part>& parts, int64_t columns) {
  const int64_t begin = layout.elements;
  for (const Part& part : parts) {
    NamedSlice slice{part.name, {part.rows}, layout.elements, columns > 0};
    if (columns > 0) slice.shape.push_back(columns);
    layout.elements += slice.elements();
    layout.slices.push_back(std::move(slice));
  }
  layout.elements = aligned(layout.elements, layout.align);
  return begin;
}

// Ends the block that began at `begin`.
Block finish(Layout& layout, int64_t begin) {
  layout.elements = begin + aligned(layout.elements - begin, layout.align * layout.parts);
  layout.blocks.push_back({begin, layout.elements - begin});
  return layout.blocks.back();
}

}  // namespace

Layout::Layout(const DecoderConfig& config, int parts, int64_t align) : parts(parts), align(align) {
  const int64_t h = config.hidden_size, ff = config.intermediate_size;
  const int64_t q = int64_t{config.num_attention_heads} * config.head_dim;
  const int64_t kv = int64_t{config.num_key_value_heads} * config.head_dim;
  embedding = finish(*this, append(*this, {{"model.embed_tokens.weight", config.vocab_size}}, h));
  for (int i = 0; i < config.num_hidden_layers; ++i) {
    const std::string name = "model.layers." + std::to_string(i) + ".", attention = name + "self_attn.";
    Layer layer{};
    layer.qkv = append(
        *this, {{attention + "q_proj.weight", q}, {attention + "k_proj.weight", kv}, {attention + "v_proj.weight", kv}},
        h);
    layer.o = append(*this, {{attention + "o_proj.weight", h}}, q);
    layer.gate_up = append(*this, {{name + "mlp.gate_proj.weight", ff}, {name + "mlp.up_proj.weight", ff}}, h);
    layer.down = append(*this, {{name + "mlp.down_proj.weight", h}}, ff);
    layer.matrices = finish(*this, layer.qkv);
    const int64_t vectors = elements;
    if (config.attention_bias) {
      layer.qkv_bias = append(
          *this, {{attention + "q_proj.bias", q}, {attention + "k_proj.bias", kv}, {attention + "v_proj.bias", kv}}, 0);
    }
    if (config.qk_norm) {
      layer.q_norm = append(*this, {{attention + "q_norm.weight", config.head_dim}}, 0);
      layer.k_norm = append(*this, {{attention + "k_norm.weight", config.head_dim}}, 0);
    }
    layer.input_norm = append(*this, {{name + "input_layernorm.weight", h}}, 0);
    layer.post_norm = append(*this, {{name + "post_attention_layernorm.weight", h}}, 0);
    layer.vectors = finish(*this, vectors);
    layers.push_back(layer);
  }
  final_norm = finish(*this, append(*this, {{"model.norm.weight", h}}, 0));
  head =
      config.tie_word_embeddings ? embedding : finish(*this, append(*this, {{"lm_head.weight", config.vocab_size}}, h));
}

Share::Share(const Layout& layout, int index)
    : index(index), parts(layout.parts), elements(layout.elements / layout.parts) {
  size_t at = 0;
  for (const Block& block : layout.blocks) {
    const Block mine = part(block);
    for (; at < layout.slices.size() && layout.slices[at].offset < block.end(); ++at) {
      const NamedSlice& slice = layout.slices[at];
      const int64_t begin = std::max(slice.offset, mine.offset);
      const int64_t end = std::min(slice.offset + slice.elements(), mine.end());
      if (begin < end) fragments.push_back({at, begin - slice.offset, end - begin, own(block) + begin - mine.offset});
    }
  }
}

}  // namespace tokenring
