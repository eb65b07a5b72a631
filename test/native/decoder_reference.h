// The decoder in float64, in plain loops over one document, and the policy loss over it, written from the formulas and
// sharing nothing with the product but the config and the tensor names.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "core/ops.h"
#include "model/batch.h"
#include "model/config.h"
#include "policy_reference.h"

namespace tokenring::reference {

using Vector = std::vector<double>;

struct Model {
  DecoderConfig config;
  std::map<std::string, Vector> tensors;  // by Hugging Face name, row-major

  const Vector& at(const std::string& name) const { return tensors.at(name); }
};

// y[n] = W x + b, W [n, k]
inline Vector linear(const Vector& w, const Vector* b, const double* x, int n, int k) {
  Vector y(n);
  for (int i = 0; i < n; ++i) {
    double sum = b ? (*b)[i] : 0.0;
    for (int j = 0; j < k; ++j) sum += w[static_cast<size_t>(i) * k + j] * x[j];
    y[i] = sum;
  }
  return y;
}

inline Vector rmsnorm(const double* x, const Vector& w, double eps) {
  double square = 0;
  const int n = static_cast<int>(w.size());
  for (int i = 0; i < n; ++i) square += x[i] * x[i];
  const double rstd = 1.0 / std::sqrt(square / n + eps);
  Vector y(n);
  for (int i = 0; i < n; ++i) y[i] = x[i] * rstd * w[i];
  return y;
}

// Each head of q or k by itself, in place (Qwen3).
inline void normalise_heads(Vector& x, const Vector& w, double eps) {
  for (size_t i = 0; i < x.size(); i += w.size()) {
    const Vector y = rmsnorm(x.data() + i, w, eps);
    std::copy(y.begin(), y.end(), x.begin() + static_cast<int64_t>(i));
  }
}

inline void rotate(double* head, int dim, int position, double theta) {
  for (int i = 0; i < dim / 2; ++i) {
    const double angle = position * std::pow(theta, -2.0 * i / dim);
    const double a = head[i], b = head[i + dim / 2];
    head[i] = a * std::cos(angle) - b * std::sin(angle);
    head[i + dim / 2] = b * std::cos(angle) + a * std::sin(angle);
  }
}

// Logits of each token of a document.
inline std::vector<Vector> logits(const Model& model, const std::vector<int32_t>& tokens) {
  const DecoderConfig& c = model.config;
  const int h = c.hidden_size, d = c.head_dim, heads = c.num_attention_heads, kv = c.num_key_value_heads;
  const int n = static_cast<int>(tokens.size()), ff = c.intermediate_size;
  std::vector<Vector> x(n);
  for (int t = 0; t < n; ++t) {
    const double* row = model.at("model.embed_tokens.weight").data() + static_cast<size_t>(tokens[t]) * h;
    x[t].assign(row, row + h);
  }
  for (int l = 0; l < c.num_hidden_layers; ++l) {
    const std::string name = "model.layers." + std::to_string(l) + ".", attention = name + "self_attn.";
    const auto project = [&](const char* which, const Vector& y, int rows) {
      const std::string tensor = attention + which;
      const Vector* bias = c.attention_bias ? &model.at(tensor + "_proj.bias") : nullptr;
      return linear(model.at(tensor + "_proj.weight"), bias, y.data(), rows, h);
    };
    std::vector<Vector> q(n), k(n), v(n);
    for (int t = 0; t < n; ++t) {
      const Vector y = rmsnorm(x[t].data(), model.at(name + "input_layernorm.weight"), c.rms_norm_eps);
      q[t] = project("q", y, heads * d);
      k[t] = project("k", y, kv * d);
      v[t] = project("v", y, kv * d);
      if (c.qk_norm) {
        normalise_heads(q[t], model.at(attention + "q_norm.weight"), c.rms_norm_eps);
        normalise_heads(k[t], model.at(attention + "k_norm.weight"), c.rms_norm_eps);
      }
      for (int i = 0; i < heads; ++i) rotate(q[t].data() + i * d, d, t, c.rope_theta);
      for (int i = 0; i < kv; ++i) rotate(k[t].data() + i * d, d, t, c.rope_theta);
    }
    for (int t = 0; t < n; ++t) {
      Vector out(static_cast<size_t>(heads) * d);
      for (int i = 0; i < heads; ++i) {
        const int group = i / (heads / kv);
        Vector p(t + 1);
        double top = -1e300, total = 0;
        for (int s = 0; s <= t; ++s) {
          double dot = 0;
          for (int j = 0; j < d; ++j) dot += q[t][i * d + j] * k[s][group * d + j];
          p[s] = dot / std::sqrt(static_cast<double>(d));
          top = std::max(top, p[s]);
        }
        for (double& value : p) total += value = std::exp(value - top);
        for (int s = 0; s <= t; ++s) {
          for (int j = 0; j < d; ++j) out[i * d + j] += p[s] / total * v[s][group * d + j];
        }
      }
      const Vector r = linear(model.at(attention + "o_proj.weight"), nullptr, out.data(), h, heads * d);
      for (int j = 0; j < h; ++j) x[t][j] += r[j];
    }
    for (int t = 0; t < n; ++t) {
      const Vector y = rmsnorm(x[t].data(), model.at(name + "post_attention_layernorm.weight"), c.rms_norm_eps);
      Vector gate = linear(model.at(name + "mlp.gate_proj.weight"), nullptr, y.data(), ff, h);
      const Vector up = linear(model.at(name + "mlp.up_proj.weight"), nullptr, y.data(), ff, h);
      for (int j = 0; j < ff; ++j) gate[j] = gate[j] / (1.0 + std::exp(-gate[j])) * up[j];
      const Vector r = linear(model.at(name + "mlp.down_proj.weight"), nullptr, gate.data(), h, ff);
      for (int j = 0; j < h; ++j) x[t][j] += r[j];
    }
  }
  const Vector& head = model.at(c.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  std::vector<Vector> z(n);
  for (int t = 0; t < n; ++t) {
    const Vector y = rmsnorm(x[t].data(), model.at("model.norm.weight"), c.rms_norm_eps);
    z[t] = linear(head, nullptr, y.data(), c.vocab_size, h);
  }
  return z;
}

struct Lanes {
  Vector logprob, entropy;  // aligned with the packed tokens, 0 for the first of each document
};

inline Lanes lanes(const Model& model, const PackedBatch& batch, double temperature) {
  Lanes result;
  size_t first = 0;
  for (const int32_t length : batch.lengths) {
    const std::vector<int32_t> tokens(batch.tokens.begin() + first, batch.tokens.begin() + first + length);
    const std::vector<Vector> z = logits(model, tokens);
    result.logprob.push_back(0);
    result.entropy.push_back(0);
    for (int32_t t = 1; t < length; ++t) {
      Vector row = z[t - 1];
      double top = -1e300, total = 0, entropy = 0;
      for (double& value : row) top = std::max(top, value /= temperature);
      for (const double value : row) total += std::exp(value - top);
      const double lse = top + std::log(total);
      for (const double value : row) entropy -= std::exp(value - lse) * (value - lse);
      result.logprob.push_back(row[tokens[t]] - lse);
      result.entropy.push_back(entropy);
    }
    first += length;
  }
  return result;
}

// The policy loss. `now` holds the lanes at which what is constant under differentiation is taken; without it, those
// of the model itself.
inline double loss(const Model& model, const PackedBatch& batch, const PolicyScalars& how, double temperature,
                   const Lanes* now = nullptr) {
  const Lanes here = lanes(model, batch, temperature);
  const Lanes& held = now ? *now : here;
  double sum = 0;
  size_t first = 0;
  for (const int32_t length : batch.lengths) {
    double mean = 0, count = 0;
    for (size_t i = first; i < first + length; ++i) {
      if (batch.weight[i] == 0) continue;
      mean += held.logprob[i] - batch.old_logprob[i];
      count += 1;
    }
    for (size_t i = first; i < first + length; ++i) {
      if (batch.weight[i] == 0) continue;
      const double to = batch.reference_logprob.empty() ? 0 : batch.reference_logprob[i];
      const policy_reference::Token t{held.logprob[i],    batch.weight[i], batch.old_logprob[i],
                                      batch.advantage[i], mean / count,    to,
                                      here.entropy[i]};
      sum += policy_reference::objective(how, t, here.logprob[i]) + policy_reference::kl(how, t, here.logprob[i]) -
             t.weight * how.entropy_coef * t.entropy;
    }
    first += length;
  }
  return sum;
}

}  // namespace tokenring::reference
