// The loss head and the sampler's last step, on rows of logits; and the optimiser's element-wise updates.
#pragma once

#include "cpu/kernels.h"
#include "cpu/math.inl.h"

namespace tokenring {
namespace {

struct Softmax {
  float max, sum, lse;
  float mean;  // expectation of z - max, unnormalised: sum of exp(z - max) (z - max)
};

// One order of operations for training and sampling: maximum, then the sum of exp(z - max) by lanes.
// `weights` (v rounded up to 16), if given, receives exp(z - max). kMean: also the sum that entropy needs.
template <bool kMean>
Softmax softmax_of(int64_t v, const float* logits, float inv_temperature, float* weights) {
  const V scale = set1(inv_temperature);
  V high = set1(-kInfinity);
  for_lanes(
      v, TOKENRING_LANES_BODY(j, k) { high = max(covered(mul(load(logits + j, k), scale), -kInfinity, k), high); });
  Softmax s;
  s.max = maximum(high);
  const V shift = set1(s.max);
  V total = zero(), mean = zero();
  for_lanes(
      v, TOKENRING_LANES_BODY(j, k) {
        const V d = sub(mul(load(logits + j, k), scale), shift);
        const V e = covered(exp(d), 0.0f, k);
        if (weights) store(weights + j, e);
        total = add(total, e);
        // A weight of 0 adds 0, even where z is -infinity. NaN is not above 0 and goes through `total`.
        if constexpr (kMean) mean = select(less(zero(), e), fma(e, d, mean), mean);
      });
  s.sum = sum(total);
  s.lse = s.max + log(s.sum);
  s.mean = kMean ? sum(mean) : 0.0f;
  return s;
}

void statistics(int64_t rows, int64_t v, const float* logits, const int32_t* targets, float inv_temperature, float* lse,
                float* logprob, float* entropy) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = logits + i * v;
    const Softmax s = softmax_of<true>(v, row, inv_temperature, nullptr);
    lse[i] = s.lse;
    logprob[i] = row[targets[i]] * inv_temperature - s.lse;
    entropy[i] = log(s.sum) - s.mean / s.sum;
  }
}

// NaN stays NaN.
TOKENRING_INLINE V bounded(V x, V low, V high) { return min(high, max(low, x)); }

// Objective, its slope and its flag (as a number) at one vector of tokens; `minus_w` is the weight's negative.
struct Scalars {
  V loss, slope, flag;
};

TOKENRING_INLINE Scalars clipped_objective(const cpu::PolicyStage& p, V lp, V minus_w, V a, V d, V minus_limit,
                                           V limit) {
  const V low = set1(p.low), high = set1(p.high);
  const V r = exp(bounded(d, minus_limit, limit));
  const V held = bounded(r, low, high);
  if (p.detached) {
    const V slope = mul(minus_w, mul(held, a));
    return {mul(slope, lp), slope, select(less(r, low), set1(1.0f), select(less(high, r), set1(2.0f), zero()))};
  }
  const V plain = mul(r, a), clipped = mul(held, a);
  const Mask is_clipped = less(clipped, plain);
  // d r / d logprob = r; 0 where the clip or the limit holds
  V slope = select(is_clipped, zero(), mul(minus_w, plain));
  slope = select(less(d, minus_limit), zero(), select(less(limit, d), zero(), slope));
  V objective = select(is_clipped, clipped, plain);
  V flag =
      select(both(is_clipped, less(r, low)), set1(1.0f), select(both(is_clipped, less(high, r)), set1(2.0f), zero()));
  if (p.dual_clip > 0.0f) {
    const V floor = mul(set1(p.dual_clip), a);
    const Mask is_dual = both(less(a, zero()), less(objective, floor));
    objective = select(is_dual, floor, objective);
    slope = select(is_dual, zero(), slope);
    flag = select(is_dual, set1(3.0f), flag);
  }
  return {mul(minus_w, objective), slope, flag};
}

void policy(int64_t count, const cpu::PolicyStage& p) {
  const V limit = set1(20.0f), minus_limit = set1(-20.0f);
  for_lanes(
      count, TOKENRING_LANES_BODY(i, k) {
        const V lp = load(p.logprob + i, k), w = load(p.weight + i, k), minus_w = sub(zero(), w);
        Scalars s{mul(minus_w, lp), minus_w, zero()};
        if (p.ratio) {
          const V d = p.sequence ? load(p.sequence + i, k) : sub(lp, load(p.old + i, k));
          s = clipped_objective(p, lp, minus_w, load(p.advantage + i, k), d, minus_limit, limit);
        }
        if (p.kl_coef != 0.0f) {
          const V d = sub(load(p.reference + i, k), lp), held = bounded(d, minus_limit, limit), e = exp(held);
          const V scale = mul(w, set1(p.kl_coef));
          s.loss = fma(scale, sub(sub(e, set1(1.0f)), held), s.loss);
          const V slope = mul(scale, sub(set1(1.0f), e));
          const Mask under = less(d, minus_limit), over = less(limit, d);
          s.slope = add(s.slope, select(under, zero(), select(over, zero(), slope)));
        }
        if (p.entropy_coef != 0.0f) {
          const V slope = mul(minus_w, set1(p.entropy_coef));
          s.loss = fma(slope, load(p.entropy + i, k), s.loss);
          store(p.entropy_g + i, slope, k);
        }
        store(p.g + i, s.slope, k);
        store(p.loss + i, s.loss, k);
        float flag[kLanes];
        store(flag, s.flag);
        for (int64_t j = 0; j < kLanes && i + j < count; ++j) p.flags[i + j] = static_cast<int32_t>(flag[j]);
      });
}

void logits_gradient(int64_t rows, int64_t v, float* logits, const int32_t* targets, const float* lse, const float* g,
                     const float* entropy, const float* entropy_g, float inv_temperature) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = logits + i * v;
    const bool with_entropy = entropy_g && entropy_g[i] != 0.0f;
    if (g[i] == 0.0f && !with_entropy) {
      __builtin_memset(row, 0, static_cast<size_t>(v) * sizeof(float));
      continue;
    }
    const float slope = g[i] * inv_temperature;
    const V scale = set1(inv_temperature), minus_slope = set1(-slope), shift = set1(lse[i]);
    const float target = row[targets[i]];
    const float p = exp(target * inv_temperature - lse[i]);
    float of_target = slope * (1.0f - p);
    if (with_entropy) {
      // d entropy / d z_j = -p_j (log p_j + entropy), 0 where p_j is.
      const float h = entropy_g[i] * inv_temperature;
      const V of_entropy = set1(h), level = set1(entropy[i]);
      for_lanes(
          v, TOKENRING_LANES_BODY(j, k) {
            const V log_p = sub(mul(load(row + j, k), scale), shift), pj = exp(log_p);
            const V both_slopes = sub(minus_slope, mul(of_entropy, add(log_p, level)));
            store(row + j, select(less(zero(), pj), mul(both_slopes, pj), pj), k);
          });
      if (p > 0.0f) of_target -= h * p * (target * inv_temperature - lse[i] + entropy[i]);
    } else {
      for_lanes(
          v, TOKENRING_LANES_BODY(j, k) {
            store(row + j, mul(minus_slope, exp(sub(mul(load(row + j, k), scale), shift))), k);
          });
    }
    row[targets[i]] = of_target;
  }
}

void sample(int64_t rows, int64_t v, const float* logits, const float* inv_temperature, const float* uniforms,
            int32_t* tokens, float* logprob, float* scratch) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = logits + i * v;
    const bool greedy = inv_temperature[i] == 0.0f;
    const float scale = greedy ? 1.0f : inv_temperature[i];
    const Softmax s = softmax_of<false>(v, row, scale, scratch);
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
  for_lanes(
      count, TOKENRING_LANES_BODY(i, k) { accumulate(s, load(x + i, k)); });
  return sum(s);
}

// torch.optim.AdamW: decay, moments, then w -= step_size * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
void adamw(int64_t count, const cpu::AdamWConstants& c, float* w, const float* g, float* m, float* v) {
  const V scale = set1(c.gradient_scale), decay = set1(c.decay), beta1 = set1(c.beta1), rest1 = set1(c.one_minus_beta1),
          beta2 = set1(c.beta2), rest2 = set1(c.one_minus_beta2), step = set1(c.step_size),
          root = set1(c.root_correction), epsilon = set1(c.epsilon);
  for_lanes(
      count, TOKENRING_LANES_BODY(i, k) {
        const V gi = mul(load(g + i, k), scale);
        const V mi = fma(beta1, load(m + i, k), mul(rest1, gi));
        const V vi = fma(beta2, load(v + i, k), mul(rest2, mul(gi, gi)));
        const V denominator = add(div(sqrt(vi), root), epsilon);
        const V wi = fnma(step, div(mi, denominator), mul(load(w + i, k), decay));
        store(m + i, mi, k);
        store(v + i, vi, k);
        store(w + i, wi, k);
      });
}

}  // namespace
}  // namespace tokenring
