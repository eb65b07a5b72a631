#include "model/config.h"

#include <algorithm>
#include <cmath>

#include "core/failure.h"

namespace tokenring {

namespace {

void check_scaling(const RopeScaling& r) {
  if (r.rope_type == RopeScaling::Type::none) return;
  const auto at_least = [](const char* name, double value, double low) {
    require(std::isfinite(value) && value >= low, "decoder config: rope_scaling.", name, " is ", value,
            "; it must be a number of at least ", low);
  };
  at_least("factor", r.factor, 1);
  at_least("original_max_position_embeddings", r.original_max_position_embeddings, 1);
  if (r.rope_type == RopeScaling::Type::llama3) {
    require(r.low_freq_factor > 0 && r.high_freq_factor > r.low_freq_factor && std::isfinite(r.high_freq_factor),
            "decoder config: rope_scaling.high_freq_factor (", r.high_freq_factor, ") must be above low_freq_factor (",
            r.low_freq_factor, "), and that above 0");
    return;
  }
  require(r.beta_slow > 0 && r.beta_fast >= r.beta_slow && std::isfinite(r.beta_fast),
          "decoder config: rope_scaling.beta_fast (", r.beta_fast, ") must be at least beta_slow (", r.beta_slow,
          "), and that above 0");
  at_least("attention_factor", r.attention_factor, 0);
  at_least("mscale", r.mscale, 0);
  at_least("mscale_all_dim", r.mscale_all_dim, 0);
}

}  // namespace

int32_t DecoderConfig::positions() const {
  if (rope_scaling.rope_type != RopeScaling::Type::yarn) return max_position_embeddings;
  const double stretched = rope_scaling.factor * rope_scaling.original_max_position_embeddings;
  return std::max(max_position_embeddings, static_cast<int32_t>(std::min(stretched, 2147483647.0)));
}

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
  require(rope_theta > 0 && std::isfinite(rope_theta), "decoder config: rope_theta is ", rope_theta,
          "; it must be a number above 0");
  check_scaling(rope_scaling);
  require(rms_norm_eps >= 0, "decoder config: rms_norm_eps is ", rms_norm_eps, "; it must not be negative");
  require(!(qk_norm && attention_bias),
          "decoder config: qk_norm (Qwen3) and attention_bias (Qwen2) are both true; no such checkpoint exists");
}

}  // namespace tokenring
