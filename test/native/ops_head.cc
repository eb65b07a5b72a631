// The loss head and the sampler's last step against float64.
#include <algorithm>
#include <cmath>
#include <limits>

#include "harness.h"
#include "ops_fixture.h"
#include "policy_reference.h"

using fixture::Bench;
using fixture::random_floats;
using tokenring::PolicyObjective;
using tokenring::PolicyScalars;
using tokenring::Tensor;

namespace {

const int64_t kVocabularies[] = {2, 16, 33, 430, 5000};

struct Row {
  double lse, logprob, entropy;
  std::vector<double> p;
};

Row row_of(const float* logits, int64_t v, int32_t target, double inv_temperature) {
  Row r{0, 0, 0, std::vector<double>(v)};
  double high = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t j = 0; j < v; ++j) high = std::max(high, logits[j] * inv_temperature);
  for (int64_t j = 0; j < v; ++j) sum += (r.p[j] = std::exp(logits[j] * inv_temperature - high));
  r.lse = high + std::log(sum);
  r.logprob = logits[target] * inv_temperature - r.lse;
  for (int64_t j = 0; j < v; ++j)
    if ((r.p[j] /= sum) > 0) r.entropy -= r.p[j] * std::log(r.p[j]);
  return r;
}

struct Statistics {
  std::vector<float> lse, logprob, entropy;
};

Statistics statistics(Bench& b, const std::vector<float>& logits, const std::vector<int32_t>& targets,
                      float inv_temperature) {
  const int64_t r = static_cast<int64_t>(targets.size()), v = static_cast<int64_t>(logits.size()) / r;
  const Tensor lse = b.f32({r}), logprob = b.f32({r}), entropy = b.f32({r});
  b.ops().logits_statistics(b.stream(), b.f32({r, v}, logits), b.i32({r}, targets), inv_temperature, lse, logprob,
                            entropy);
  return {b.read(lse), b.read(logprob), b.read(entropy)};
}

struct Sampled {
  std::vector<int32_t> tokens;
  std::vector<float> logprob;
};

Sampled sample(Bench& b, const std::vector<float>& logits, const std::vector<float>& inv_temperature,
               const std::vector<float>& uniforms) {
  const int64_t r = static_cast<int64_t>(uniforms.size()), v = static_cast<int64_t>(logits.size()) / r;
  const Tensor tokens = b.i32({r}), logprob = b.f32({r});
  b.ops().sample(b.stream(), b.f32({r, v}, logits), b.f32({r}, inv_temperature), b.f32({r}, uniforms), tokens, logprob);
  return {b.read_ids(tokens), b.read(logprob)};
}

}  // namespace

TEST(logits_statistics_match_float64) {
  for (int64_t v : kVocabularies)
    for (float inv : {1.0f, 0.7f, 2.0f}) {
      const int64_t r = 17;
      const auto logits = random_floats(r * v, v, -10, 10);
      const auto targets = fixture::random_ids(r, 2, static_cast<int>(v));
      Bench b;
      const Statistics s = statistics(b, logits, targets, inv);
      for (int64_t i = 0; i < r; ++i) {
        const Row row = row_of(&logits[i * v], v, targets[i], inv);
        // lse up to 30: half an ulp is 1e-6, and the logprob subtracts two such numbers.
        CHECK_NEAR(s.lse[i], row.lse, 3e-6);
        CHECK_NEAR(s.logprob[i], row.logprob, 5e-6);
        CHECK_NEAR(s.entropy[i], row.entropy, 5e-6);
      }
    }
}

TEST(logits_statistics_survive_extremes) {
  const float infinity = std::numeric_limits<float>::infinity();
  Bench b;
  const Statistics s = statistics(b, {1e4f, -1e4f, 0, -infinity, 3, 3}, {0, 0, 1}, 1.0f);
  CHECK(s.logprob[0] == 0.0f && s.entropy[0] == 0.0f);
  CHECK(s.logprob[1] == 0.0f && s.entropy[1] == 0.0f);
  CHECK_NEAR(s.logprob[2], -std::log(2.0), 1e-6);
  CHECK_NEAR(s.entropy[2], std::log(2.0), 1e-6);
  CHECK(std::isnan(statistics(b, {1, NAN}, {0}, 1.0f).logprob[0]));
}

TEST(logits_gradient_matches_float64) {
  for (int64_t v : kVocabularies) {
    const int64_t r = 9;
    const float inv = 0.8f;
    const auto logits = random_floats(r * v, 1, -5, 5);
    auto g = random_floats(r, 2);
    g[4] = 0.0f;
    const auto targets = fixture::random_ids(r, 3, static_cast<int>(v));
    Bench b;
    const Statistics s = statistics(b, logits, targets, inv);
    const Tensor z = b.f32({r, v}, logits);
    b.ops().logits_gradient(b.stream(), z, b.i32({r}, targets), b.f32({r}, s.lse), b.f32({r}, g), inv);
    std::vector<double> expected(r * v);
    for (int64_t i = 0; i < r; ++i) {
      const Row row = row_of(&logits[i * v], v, targets[i], inv);
      for (int64_t j = 0; j < v; ++j) expected[i * v + j] = g[i] * inv * ((j == targets[i]) - row.p[j]);
    }
    CHECK_NEAR(fixture::error(b.read(z), expected), 0, 2e-6);
  }
}

// Loss and gradient of the clipped objective at points on all sides of the clip, and its slope by differences.
TEST(policy_scalars_match_the_formula) {
  const PolicyScalars p{PolicyObjective::ppo_clip, policy_reference::kLow, policy_reference::kHigh};
  const policy_reference::Tokens tokens(1);
  const int64_t n = tokens.count();
  Bench b;
  const Tensor g = b.f32({n}), loss = b.f32({n}), flags = b.i32({n});
  const Tensor lp = b.f32({n}, tokens.logprob), w = b.f32({n}, tokens.weight);
  b.ops().policy_scalars(b.stream(), p, lp, b.f32({n}, tokens.old), b.f32({n}, tokens.advantage), w, g, loss, flags);
  const auto got_g = b.read(g), got_loss = b.read(loss);
  const auto got_flags = b.read_ids(flags);
  for (int64_t i = 0; i < n; ++i) {
    const double scale = std::max(1.0, std::abs(tokens.loss(i)));
    CHECK_NEAR(got_loss[i], tokens.loss(i), 2e-6 * scale, "token ", i);
    CHECK_NEAR(got_g[i], tokens.slope(i), 2e-6 * scale, "token ", i);
    CHECK(got_flags[i] == tokens.flag(i));
  }
  b.ops().policy_scalars(b.stream(), {}, lp, {}, {}, w, g, loss, flags);
  const auto nll_g = b.read(g), nll_loss = b.read(loss);
  for (int64_t i = 0; i < n; ++i) CHECK(nll_g[i] == -0.25f && nll_loss[i] == -0.25f * tokens.logprob[i]);
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().policy_scalars(b.stream(), p, lp, {}, {}, w, g, loss, flags));
}

TEST(sample_inverts_the_distribution) {
  for (int64_t v : kVocabularies) {
    const int64_t r = 40;
    const auto logits = random_floats(r * v, v + 1, -4, 4), uniforms = random_floats(r, 5, 0, 1);
    const std::vector<float> inv(r, 1.25f);
    Bench b;
    const Sampled s = sample(b, logits, inv, uniforms);
    for (int64_t i = 0; i < r; ++i) {
      const Row row = row_of(&logits[i * v], v, 0, 1.25);
      double below = 0;
      for (int32_t j = 0; j < s.tokens[i]; ++j) below += row.p[j];
      // The uniform lies in the token's interval, within the rounding of the sum.
      CHECK(uniforms[i] >= below - 1e-6 && uniforms[i] <= below + row.p[s.tokens[i]] + 1e-6);
    }
    CHECK(fixture::same_bits(s.logprob, statistics(b, logits, s.tokens, 1.25f).logprob));
  }
}

TEST(sample_takes_the_ends_and_the_argmax) {
  const float infinity = std::numeric_limits<float>::infinity(), last = std::nextafter(1.0f, 0.0f);
  Bench b;
  // The first and last tokens have no probability: neither end of the uniforms may give them.
  const std::vector<float> row = {-infinity, 1, 2, 2, -infinity};
  std::vector<float> logits;
  for (int i = 0; i < 3; ++i) logits.insert(logits.end(), row.begin(), row.end());
  const Sampled s = sample(b, logits, {1, 1, 0}, {0, last, 0.9f});
  CHECK(s.tokens[0] == 1 && s.tokens[1] == 3 && s.tokens[2] == 2);
  // An interval holds its lower end, not its upper one.
  CHECK(sample(b, {0, 0}, {1}, {0.5f}).tokens[0] == 1);
  CHECK(fixture::same_bits({s.logprob[2]}, statistics(b, row, {2}, 1.0f).logprob));
}

TEST(head_does_not_depend_on_the_batch) {
  const int64_t r = 33, v = 430;
  const auto logits = random_floats(r * v, 1, -6, 6), uniforms = random_floats(r, 2, 0, 1);
  const auto targets = fixture::random_ids(r, 3, v);
  Bench b;
  const Statistics all = statistics(b, logits, targets, 1.1f);
  const Sampled sampled = sample(b, logits, std::vector<float>(r, 0.9f), uniforms);
  for (int64_t i = 0; i < r; ++i) {
    const std::vector<float> row(logits.begin() + i * v, logits.begin() + (i + 1) * v);
    const Statistics one = statistics(b, row, {targets[i]}, 1.1f);
    CHECK(
        fixture::same_bits({one.lse[0], one.logprob[0], one.entropy[0]}, {all.lse[i], all.logprob[i], all.entropy[i]}));
    const Sampled alone = sample(b, row, {0.9f}, {uniforms[i]});
    CHECK(alone.tokens[0] == sampled.tokens[i] && fixture::same_bits(alone.logprob, {sampled.logprob[i]}));
  }
}

TEST(head_has_the_same_bits_everywhere) {
  const int64_t r = 50, v = 437;
  const auto logits = random_floats(r * v, 1, -6, 6), uniforms = random_floats(r, 2, 0, 1),
             old = random_floats(r, 3, -9, 0), advantage = random_floats(r, 4), weight = random_floats(r, 5, 0, 1);
  const auto targets = fixture::random_ids(r, 6, v);
  fixture::same_everywhere("head", [&](Bench& b) {
    const Statistics s = statistics(b, logits, targets, 1.1f);
    const Sampled chosen = sample(b, logits, std::vector<float>(r, 0.9f), uniforms);
    const Tensor g = b.f32({r}), loss = b.f32({r}), flags = b.i32({r}), z = b.f32({r, v}, logits);
    b.ops().policy_scalars(b.stream(), {PolicyObjective::ppo_clip, 0.2f, 0.3f}, b.f32({r}, s.logprob), b.f32({r}, old),
                           b.f32({r}, advantage), b.f32({r}, weight), g, loss, flags);
    b.ops().logits_gradient(b.stream(), z, b.i32({r}, targets), b.f32({r}, s.lse), g, 1.1f);
    std::vector<float> all = b.read(z);
    for (const auto& part : {s.lse, s.logprob, s.entropy, chosen.logprob, b.read(g), b.read(loss)})
      all.insert(all.end(), part.begin(), part.end());
    for (int32_t token : chosen.tokens) all.push_back(static_cast<float>(token));
    for (int32_t flag : b.read_ids(flags)) all.push_back(static_cast<float>(flag));
    return all;
  });
}

TEST(head_refuses_wrong_shapes) {
  Bench b;
  const Tensor z = b.f32({3, 5}, std::vector<float>(15)), r = b.f32({3}), ids = b.i32({3}, {0, 4, 5}),
               wrong = b.f32({4});
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().logits_statistics(b.stream(), z, r, 1, r, r, r));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().logits_statistics(b.stream(), z, ids, 1, wrong, r, r));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().sample(b.stream(), z, r, wrong, ids, r));
  b.ops().logits_statistics(b.stream(), z, ids, 1, r, r, r);
  CHECK_FAILS("INVALID_ARGUMENT", b.stream().synchronize());
}
