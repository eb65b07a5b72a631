// The loss head and the sampler's last step, on rows of logits; and the optimiser's element-wise updates.
#pragma once

#include "cpu/kernels.h"
#include "cpu/math.inl.h"

namespace tokenring {
namespace {

struct Softmax {
  float max, sum, lse;
};

// One order of operations for training and sampling: maximum, then the sum of exp(z - max) by lanes.
// `probabilities` (v rounded up to 16), if given, receives exp(z - max).
Softmax softmax_of(int64_t v, const float* logits, float inv_temperature, float* probabilities) {
  const V scale = set1(inv_temperature);
  V high = set1(-kInfinity);
  TOKENRING_FOR_LANES(j, v, n) {
    const int k = static_cast<int>(n);
    const V z = select(lanes(0, k), mul(load_n(logits + j, k), scale), set1(-kInfinity));
    high = max(z, high);
  }
  Softmax s;
  s.max = maximum(high);
  V total = zero();
  TOKENRING_FOR_LANES(j, v, n) {
    const int k = static_cast<int>(n);
    const V e = select(lanes(0, k), exp(sub(mul(load_n(logits + j, k), scale), set1(s.max))), zero());
    if (probabilities) store(probabilities + j, e);
    total = add(total, e);
  }
  s.sum = sum(total);
  s.lse = s.max + log(s.sum);
  return s;
}

void statistics(int64_t rows, int64_t v, const float* logits, const int32_t* targets, float inv_temperature, float* lse,
                float* logprob, float* entropy) {
  const V scale = set1(inv_temperature);
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = logits + i * v;
    const Softmax s = softmax_of(v, row, inv_temperature, nullptr);
    if (lse) lse[i] = s.lse;
    if (logprob) logprob[i] = row[targets[i]] * inv_temperature - s.lse;
    if (!entropy) continue;
    // entropy = log sum - E[z - max]; a probability of 0 adds 0 even where z is -infinity
    V mean = zero();
    TOKENRING_FOR_LANES(j, v, n) {
      const int k = static_cast<int>(n);
      const V d = sub(mul(load_n(row + j, k), scale), set1(s.max));
      const V e = exp(d);
      const V term = select(less(zero(), e), mul(e, d), e);
      mean = add(mean, select(lanes(0, k), term, zero()));
    }
    entropy[i] = log(s.sum) - sum(mean) / s.sum;
  }
}

void policy(int64_t count, const cpu::PolicyConstants& p, const float* logprob, const float* old,
            const float* advantage, const float* weight, float* g, float* loss, int32_t* flags) {
  TOKENRING_FOR_LANES(i, count, n) {
    const int k = static_cast<int>(n);
    const V lp = load_n(logprob + i, k), minus_w = sub(zero(), load_n(weight + i, k));
    if (!p.clip) {
      store_n(g + i, minus_w, k);
      store_n(loss + i, mul(minus_w, lp), k);
      for (int j = 0; j < k; ++j) flags[i + j] = 0;
      continue;
    }
    const V a = load_n(advantage + i, k), d = sub(lp, load_n(old + i, k));
    const V limit = set1(20.0f), minus_limit = set1(-20.0f);
    const V bounded = min(limit, max(minus_limit, d));  // NaN stays NaN
    const V r = exp(bounded);
    const V plain = mul(r, a);
    const V clipped = mul(min(set1(p.high), max(set1(p.low), r)), a);
    const Mask is_clipped = less(clipped, plain);
    V slope = mul(minus_w, plain);  // d r / d logprob = r
    slope = select(is_clipped, zero(), slope);
    slope = select(less(d, minus_limit), zero(), select(less(limit, d), zero(), slope));
    store_n(g + i, slope, k);
    store_n(loss + i, mul(minus_w, select(is_clipped, clipped, plain)), k);
    float low[kLanes], high[kLanes];
    store(low, select(both(is_clipped, less(r, set1(p.low))), set1(1.0f), zero()));
    store(high, select(both(is_clipped, less(set1(p.high), r)), set1(1.0f), zero()));
    for (int j = 0; j < k; ++j) flags[i + j] = low[j] != 0.0f ? 1 : high[j] != 0.0f ? 2 : 0;
  }
}

void logits_gradient(int64_t rows, int64_t v, float* logits, const int32_t* targets, const float* lse, const float* g,
                     float inv_temperature) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = logits + i * v;
    if (g[i] == 0.0f) {
      __builtin_memset(row, 0, static_cast<size_t>(v) * sizeof(float));
      continue;
    }
    const float slope = g[i] * inv_temperature;
    const V scale = set1(inv_temperature), minus_slope = set1(-slope), shift = set1(lse[i]);
    const float target = row[targets[i]];
    TOKENRING_FOR_LANES(j, v, n) {
      const int k = static_cast<int>(n);
      store_n(row + j, mul(minus_slope, exp(sub(mul(load_n(row + j, k), scale), shift))), k);
    }
    row[targets[i]] = slope * (1.0f - exp(target * inv_temperature - lse[i]));
  }
}

void sample(int64_t rows, int64_t v, const float* logits, const float* inv_temperature, const float* uniforms,
            int32_t* tokens, float* logprob, float* scratch) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = logits + i * v;
    const bool greedy = inv_temperature[i] == 0.0f;
    const float scale = greedy ? 1.0f : inv_temperature[i];
    const Softmax s = softmax_of(v, row, scale, scratch);
    int64_t token = 0;
    if (greedy) {
      for (int64_t j = 1; j < v; ++j)
        if (row[j] > row[token]) token = j;
    } else {
      // The running sum is float64, so that rounding neither skews a large vocabulary nor runs past its end by much;
      // where it still ends below the target, the last token of positive probability is taken.
      const double target = static_cast<double>(uniforms[i]) * static_cast<double>(s.sum);
      double running = 0.0;
      for (int64_t j = 0; j < v; ++j) {
        if (!(scratch[j] > 0.0f)) continue;
        running += static_cast<double>(scratch[j]);
        token = j;
        if (running > target) break;
      }
    }
    tokens[i] = static_cast<int32_t>(token);
    logprob[i] = row[token] * scale - s.lse;
  }
}

double sum_of_squares(int64_t count, const float* x) {
  Squares s = no_squares();
  TOKENRING_FOR_LANES(i, count, n) accumulate(s, load_n(x + i, static_cast<int>(n)));
  return sum(s);
}

// torch.optim.AdamW: decay, moments, then w -= step_size * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
void adamw(int64_t count, const cpu::AdamWConstants& c, float* w, const float* g, float* m, float* v) {
  const V scale = set1(c.gradient_scale), decay = set1(c.decay), beta1 = set1(c.beta1), rest1 = set1(c.one_minus_beta1),
          beta2 = set1(c.beta2), rest2 = set1(c.one_minus_beta2), step = set1(c.step_size),
          root = set1(c.root_correction), epsilon = set1(c.epsilon);
  TOKENRING_FOR_LANES(i, count, n) {
    const int k = static_cast<int>(n);
    const V gi = mul(load_n(g + i, k), scale);
    const V mi = fma(beta1, load_n(m + i, k), mul(rest1, gi));
    const V vi = fma(beta2, load_n(v + i, k), mul(rest2, mul(gi, gi)));
    const V denominator = add(div(sqrt(vi), root), epsilon);
    const V wi = fnma(step, div(mi, denominator), mul(load_n(w + i, k), decay));
    store_n(m + i, mi, k);
    store_n(v + i, vi, k);
    store_n(w + i, wi, k);
  }
}

}  // namespace
}  // namespace tokenring
