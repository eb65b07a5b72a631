#include <algorithm>
#include <cmath>
#include <thread>

#include "core/random.h"
#include "cpu/pool.h"
#include "model/parameters.h"
#include "model/rope.h"

namespace tokenring {

namespace {

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// A constant query and key under RoPE make a score that depends on the relative position alone. With the key
// (A, 0) in the plane of frequency w and the query A (cos wd, -sin wd), the query at position m and the key at n
// score A^2 cos(w (n - m + d)): largest d tokens back. Several frequencies together leave one peak.
void bias_to_previous_tokens(const DecoderConfig& config, const std::string& name, float amplitude,
                             std::vector<float>& values) {
  constexpr int kPairs = 5;  // the fastest ones tell neighbours apart
  constexpr int kDistances[] = {1, 2, 1, 3};
  const bool query = name == "model.layers.0.self_attn.q_proj.bias";
  if (!query && name != "model.layers.0.self_attn.k_proj.bias") return;
  const int half = config.head_dim / 2;
  const RopeFrequencies rope = rope_frequencies(config);
  const int heads = query ? config.num_attention_heads : config.num_key_value_heads;
  for (int head = 0; head < heads; ++head) {
    const int distance = query ? kDistances[head % 4] : 0;
    for (int i = 0; i < std::min(kPairs, half); ++i) {
      const double angle = distance * rope.radians[i];
      values[head * config.head_dim + i] = static_cast<float>(amplitude * std::cos(angle));
      values[head * config.head_dim + half + i] = static_cast<float>(-amplitude * std::sin(angle));
    }
  }
}

constexpr int64_t kPiece = int64_t{1} << 20, kGrain = int64_t{1} << 14;  // elements

// Element number `begin`, ... of a slice.
void fill(cpu::ThreadPool& pool, const DecoderConfig& config, const NamedSlice& slice, uint64_t number,
          const Initialisation& how, int64_t begin, std::vector<float>& values) {
  std::fill(values.begin(), values.end(), 0.0f);
  if (slice.shape.size() == 2) {
    const uint64_t stream = random_bits(how.seed, number);
    pool.run(static_cast<int64_t>(values.size()), kGrain, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        values[i] = static_cast<float>(how.std * normal01(stream, static_cast<uint64_t>(begin + i)));
    });
  } else if (ends_with(slice.name, "norm.weight")) {
    std::fill(values.begin(), values.end(), 1.0f);
  } else if (how.previous_token_bias > 0) {
    std::vector<float> whole(static_cast<size_t>(slice.elements()));
    bias_to_previous_tokens(config, slice.name, how.previous_token_bias, whole);
    std::copy_n(whole.begin() + begin, values.size(), values.begin());
  }
}

}  // namespace

void initialise(Parameters& parameters, Stream& stream, const Initialisation& how) {
  const DecoderConfig& config = parameters.config();
  require(how.std >= 0 && how.std <= 1e30f, "initialise: std is ", how.std, "; it must be a number from 0 to 1e30");
  require(how.previous_token_bias >= 0 && std::isfinite(how.previous_token_bias), "initialise: previous_token_bias is ",
          how.previous_token_bias, "; it must be a number of at least 0");
  require(how.previous_token_bias == 0 || config.attention_bias,
          "initialise: previous_token_bias needs a decoder with attention_bias");

  // A piece is made while the one before it is copied.
  cpu::ThreadPool pool(how.threads > 0 ? how.threads
                                       : std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  std::vector<float> values, copied;
  const Drain drain{stream};
  for (const Fragment& fragment : parameters.fragments()) {
    for (int64_t done = 0; done < fragment.elements; done += kPiece) {
      values.resize(static_cast<size_t>(std::min(kPiece, fragment.elements - done)));
      fill(pool, config, parameters.slices()[fragment.slice], fragment.slice, how, fragment.begin + done, values);
      stream.synchronize();
      std::swap(values, copied);
      stream.copy_to_device(parameters.master().f32() + fragment.offset + done, copied.data(),
                            copied.size() * sizeof(float));
    }
  }
  parameters.reset_optimiser(stream);
  parameters.publish(stream);
  stream.synchronize();
}

}  // namespace tokenring
