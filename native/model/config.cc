#include "model/config.h"

#include "core/failure.h"

namespace tokenring {

void DecoderConfig::check() const {
  const auto positive = [](const char* name, int64_t value) {
    require(value > 0, "decoder config: ", name, " is ", value, "; it must be at least 1");
  };
  positive("vocab_size", vocab_size);
  positive("hidden_size", hidden_size);
  positive("intermediate_size", intermediate_size);
  positive("num_hidden_layers", num_hidden_layers);
  positive("num_attention_heads", num_attention_heads);
  positive("num_key_value_heads", num_key_value_heads);
  positive("head_dim", head_dim);
  positive("max_position_embeddings", max_position_embeddings);
  require(num_attention_heads % num_key_value_heads == 0, "decoder config: num_attention_heads (", num_attention_heads,
          ") must be a multiple of num_key_value_heads (", num_key_value_heads, ")");
  require(head_dim % 2 == 0, "decoder config: head_dim is ", head_dim, "; rotary embeddings need an even one");
  require(rope_theta > 0, "decoder config: rope_theta is ", rope_theta, "; it must be above 0");
  require(rms_norm_eps >= 0, "decoder config: rms_norm_eps is ", rms_norm_eps, "; it must not be negative");
}

}  // namespace tokenring
