// Shape of a decoder of the Qwen2, Qwen3 and Llama families, named as in Hugging Face's config.json.
#pragma once

#include <cstdint>

namespace tokenring {

// How the frequencies of the rotary embedding are stretched beyond the length of pretraining (model/rope.h).
struct RopeScaling {
  enum class Type { none, yarn, llama3 };
  Type rope_type = Type::none;
  double factor = 1;
  int32_t original_max_position_embeddings = 0;
  // YaRN. attention_factor 0: made of `factor`, and of the two mscales if neither is 0.
  double beta_fast = 32, beta_slow = 1, attention_factor = 0, mscale = 0, mscale_all_dim = 0;
  bool truncate = true;
  // llama3
  double low_freq_factor = 1, high_freq_factor = 4;
};

struct DecoderConfig {
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_hidden_layers = 0;
  int32_t num_attention_heads = 0;
  int32_t num_key_value_heads = 0;
  int32_t head_dim = 0;
  int32_t max_position_embeddings = 0;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = true;
  bool attention_bias = true;  // biases on q, k, v (Qwen2)
  bool qk_norm = false;        // RMSNorm of each query and key head (Qwen3)

  // Tokens that a document may have: max_position_embeddings, or what YaRN stretches the original length to, since
  // the files of Qwen2.5 leave max_position_embeddings as it was.
  int32_t positions() const;
  void check() const;  // Failure INVALID_ARGUMENT that names the field
};

}  // namespace tokenring
