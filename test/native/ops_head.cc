// The loss head and the sampler's last step against float64.
#include <algorithm>
#include <cmath>
#include <limits>

#include "harness.h"
#include "ops_fixture.h"
#include "policy_reference.h"

using fixture::Bench;
using fixture::random_floats;
using tokenring::PolicyLanes;
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

// All lanes of the scalar stage on the device.
struct Lanes {
  PolicyLanes all;
  Lanes(Bench& b, const policy_reference::Tokens& t) {
    const int64_t n = t.count();
    all = {.logprob = b.f32({n}, t.logprob),
           .weight = b.f32({n}, t.weight),
           .old = b.f32({n}, t.old),
           .advantage = b.f32({n}, t.advantage),
           .sequence = b.f32({n}, t.sequence),
           .reference = b.f32({n}, t.reference),
           .entropy = b.f32({n}, t.entropy),
           .g = b.f32({n}),
           .entropy_g = b.f32({n}),
           .loss = b.f32({n}),
           .flags = b.i32({n})};
  }
};

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
  for (int64_t v : kVocabularies)
    for (const bool bonus : {false, true}) {
      const int64_t r = 9;
      const float inv = 0.8f;
      auto logits = random_floats(r * v, 1, -5, 5);
      logits[2 * v] = -std::numeric_limits<float>::infinity();  // a token without probability has no slope
      auto g = random_floats(r, 2), of_entropy = random_floats(r, 4);
      g[4] = g[5] = of_entropy[4] = 0.0f;
      auto targets = fixture::random_ids(r, 3, static_cast<int>(v));
      targets[2] = 1;
      Bench b;
      const Statistics s = statistics(b, logits, targets, inv);
      const Tensor z = b.f32({r, v}, logits);
      b.ops().logits_gradient(b.stream(), z, b.i32({r}, targets), b.f32({r}, s.lse), b.f32({r}, g),
                              b.f32({r}, s.entropy), bonus ? b.f32({r}, of_entropy) : Tensor{}, inv);
      std::vector<double> expected(r * v);
      for (int64_t i = 0; i < r; ++i) {
        const Row row = row_of(&logits[i * v], v, targets[i], inv);
        for (int64_t j = 0; j < v; ++j) {
          expected[i * v + j] = g[i] * inv * ((j == targets[i]) - row.p[j]);
          if (bonus && row.p[j] > 0)
            expected[i * v + j] -= of_entropy[i] * inv * row.p[j] * (std::log(row.p[j]) + row.entropy);
        }
      }
      CHECK_NEAR(fixture::error(b.read(z), expected), 0, 2e-6, "v ", v, bonus ? ", with entropy" : "");
    }
}

// The formula above is the slope of the entropy: central differences of its float64 value.
TEST(logits_gradient_of_the_entropy_is_its_slope) {
  const int64_t v = 33;
  const float inv = 1.25f;
  const auto logits = random_floats(v, 11, -4, 4);
  Bench b;
  const Statistics s = statistics(b, logits, {7}, inv);
  const Tensor z = b.f32({1, v}, logits);
  b.ops().logits_gradient(b.stream(), z, b.i32({1}, {7}), b.f32({1}, s.lse), b.f32({1}, {0.0f}), b.f32({1}, s.entropy),
                          b.f32({1}, {1.0f}), inv);
  const auto got = b.read(z);
  for (int64_t j = 0; j < v; ++j) {
    const float step = 0x1p-10f;
    auto up = logits, down = logits;
    up[j] += step;
    down[j] -= step;
    const double slope =
        (row_of(up.data(), v, 7, inv).entropy - row_of(down.data(), v, 7, inv).entropy) / (double{up[j]} - down[j]);
    CHECK_NEAR(got[j], slope, 1e-5, "logit ", j);  // the differences' own error is a step squared, 1e-6
  }
}

// Loss, slope and flag of every objective at points on all sides of the clips; slopes by differences.
TEST(policy_scalars_match_the_formulas) {
  const policy_reference::Tokens tokens(1);
  const int64_t n = tokens.count();
  for (const PolicyScalars& p : policy_reference::variants()) {
    Bench b;
    const Lanes lanes(b, tokens);
    b.ops().policy_scalars(b.stream(), p, lanes.all);
    const auto g = b.read(lanes.all.g), loss = b.read(lanes.all.loss), of_entropy = b.read(lanes.all.entropy_g);
    const auto flags = b.read_ids(lanes.all.flags);
    for (int64_t i = 0; i < n; ++i) {
      const policy_reference::Token t = tokens.at(i);
      const double expected = policy_reference::loss(p, t), scale = std::max(1.0, std::abs(expected));
      const int objective = static_cast<int>(p.objective);
      CHECK_NEAR(loss[i], expected, 2e-6 * scale, "objective ", objective, ", token ", i);
      CHECK_NEAR(g[i], policy_reference::slope(p, t), 2e-6 * std::max(1.0, std::abs(policy_reference::slope(p, t))),
                 "objective ", objective, ", token ", i);
      CHECK(flags[i] == policy_reference::flag(p, t));
      if (p.entropy_coef != 0) CHECK_NEAR(of_entropy[i], -0.25 * p.entropy_coef, 1e-7);
    }
  }
}

TEST(policy_scalars_ask_for_their_lanes_alone) {
  const policy_reference::Tokens tokens(1);
  Bench b;
  const Lanes lanes(b, tokens);
  PolicyLanes bare = lanes.all;
  bare.old = bare.advantage = bare.sequence = bare.reference = bare.entropy = bare.entropy_g = Tensor{};
  const auto run = [&](const PolicyScalars& p, const PolicyLanes& with) {
    b.ops().policy_scalars(b.stream(), p, with);
  };
  run({}, bare);
  const auto g = b.read(bare.g), loss = b.read(bare.loss);
  for (int64_t i = 0; i < tokens.count(); ++i) CHECK(g[i] == -0.25f && loss[i] == -0.25f * tokens.logprob[i]);
  for (const PolicyObjective objective : {PolicyObjective::ppo_clip, PolicyObjective::gspo, PolicyObjective::cispo}) {
    CHECK_FAILS("INVALID_ARGUMENT", run({.objective = objective}, bare));
    run({.objective = objective}, lanes.all);
  }
  PolicyLanes without = lanes.all;
  without.sequence = Tensor{};
  CHECK_FAILS("INVALID_ARGUMENT", run({.objective = PolicyObjective::gspo}, without));
  CHECK_FAILS("INVALID_ARGUMENT", run({.kl_coef = 0.1f}, bare));
  CHECK_FAILS("INVALID_ARGUMENT", run({.entropy_coef = 0.1f}, bare));
  CHECK_FAILS("INVALID_ARGUMENT", run({.objective = PolicyObjective::cispo, .dual_clip = 3.0f}, lanes.all));
  CHECK_FAILS("INVALID_ARGUMENT", run({.objective = PolicyObjective::ppo_clip, .dual_clip = 0.9f}, lanes.all));
}

// What is not a number stays visible in the loss, whichever lane it came through.
TEST(policy_scalars_keep_nan) {
  for (const PolicyScalars& p : policy_reference::variants())
    for (const auto lane : {&policy_reference::Tokens::logprob, &policy_reference::Tokens::weight}) {
      policy_reference::Tokens tokens(1);
      (tokens.*lane)[5] = NAN;
      // A gspo token's ratio comes with the document's, into which its logprob went.
      if (lane == &policy_reference::Tokens::logprob) tokens.sequence[5] = NAN;
      Bench b;
      const Lanes lanes(b, tokens);
      b.ops().policy_scalars(b.stream(), p, lanes.all);
      const auto loss = b.read(lanes.all.loss);
      CHECK(std::isnan(loss[5]) && !std::isnan(loss[4]) && !std::isnan(loss[6]));
    }
}

TEST(sequence_log_ratio_is_the_mean_of_each_document) {
  const int64_t r = 70;
  const std::vector<int32_t> begin = {0, 1, 4, 4 + 40, r};
  const auto logprob = random_floats(r, 1, -9, 0), old = random_floats(r, 2, -9, 0);
  fixture::same_everywhere("sequence_log_ratio", [&](Bench& b) {
    const Tensor out = b.f32({r});
    b.ops().sequence_log_ratio(b.stream(), b.f32({r}, logprob), b.f32({r}, old), b.i32({5}, begin), out);
    const auto got = b.read(out);
    for (size_t d = 0; d + 1 < begin.size(); ++d) {
      double mean = 0;
      for (int32_t i = begin[d]; i < begin[d + 1]; ++i)
        mean += (double{logprob[i]} - old[i]) / (begin[d + 1] - begin[d]);
      // Differences of two numbers up to 9 and one last rounding.
      for (int32_t i = begin[d]; i < begin[d + 1]; ++i) CHECK_NEAR(got[i], mean, 2e-6);
    }
    return got;
  });
  Bench b;
  const Tensor lane = b.f32({r}, logprob), out = b.f32({r});
  b.ops().sequence_log_ratio(b.stream(), lane, lane, b.i32({2}, {0, r + 1}), out);
  CHECK_FAILS("INVALID_ARGUMENT", b.stream().synchronize());
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
    std::vector<float> all;
    for (const PolicyScalars& p : policy_reference::variants()) {
      const Tensor z = b.f32({r, v}, logits), entropy = b.f32({r}, s.entropy);
      const Tensor of_entropy = p.entropy_coef != 0 ? b.f32({r}) : Tensor{};
      const PolicyLanes lanes = {.logprob = b.f32({r}, s.logprob),
                                 .weight = b.f32({r}, weight),
                                 .old = b.f32({r}, old),
                                 .advantage = b.f32({r}, advantage),
                                 .sequence = b.f32({r}, advantage),
                                 .reference = b.f32({r}, old),
                                 .entropy = entropy,
                                 .g = b.f32({r}),
                                 .entropy_g = of_entropy,
                                 .loss = b.f32({r}),
                                 .flags = b.i32({r})};
      b.ops().policy_scalars(b.stream(), p, lanes);
      b.ops().logits_gradient(b.stream(), z, b.i32({r}, targets), b.f32({r}, s.lse), lanes.g, entropy, of_entropy,
                              1.1f);
      for (const auto& part : {b.read(z), b.read(lanes.g), b.read(lanes.loss)})
        all.insert(all.end(), part.begin(), part.end());
      for (int32_t flag : b.read_ids(lanes.flags)) all.push_back(static_cast<float>(flag));
    }
    for (const auto& part : {s.lse, s.logprob, s.entropy, chosen.logprob})
      all.insert(all.end(), part.begin(), part.end());
    for (int32_t token : chosen.tokens) all.push_back(static_cast<float>(token));
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
