// Shape of a decoder of the Qwen2 / Qwen3 / Llama family, named as in Hugging Face's config.json.
#pragma once

#include <cstdint>

namespace tokenring {

struct DecoderConfig {
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_hidden_layers = 0;
  int32_t num_attention_heads = 0;
  int32_t num_key_value_heads = 0;
  int32_t head_dim = 0;
  int32_t max_position_embeddings = 0;
  float rope_theta = 10000.0f;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = true;
  bool attention_bias = true;  // biases on q, k, v (Qwen2)

  void check() const;  // Failure INVALID_ARGUMENT that names the field
};

}  // namespace tokenring
