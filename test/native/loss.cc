// The chunked policy loss: its bits do not depend on chunks or mode, and what is not finite is named.
#include <cstring>
#include <limits>

#include "decoder_rig.h"
#include "harness.h"

namespace tokenring {

namespace {

PolicyLoss ppo(int32_t chunk_rows) {
  PolicyLoss loss;
  loss.scalars = {.objective = PolicyObjective::ppo_clip, .clip_low = 0.2f, .clip_high = 0.3f};
  loss.temperature = 0.8f;
  loss.chunk_rows = chunk_rows;
  return loss;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Case {
  Rig rig{tiny_config(true)};
  PackedBatch batch;
  Case() {
    rig.randomise(21);
    batch = random_batch(rig.parameters.config(), {33, 50, 2}, 4);
    set_old_logprobs(batch, rig.trainer.score(batch, 0.8f, rig.never).logprob, ppo(1).scalars, 3);
  }
};

}  // namespace

TEST(loss_bits_do_not_depend_on_the_chunks) {
  Case c;
  for (const PolicyScalars& scalars : policy_reference::variants()) {
    PolicyLoss loss = ppo(1024);
    loss.scalars = scalars;
    c.rig.trainer.drop_gradients();
    const LossResult whole = c.rig.trainer.accumulate(c.batch, loss, c.rig.never);
    const std::vector<float> gradient = c.rig.gradient();
    for (const int32_t chunk_rows : {1, 7}) {
      c.rig.trainer.drop_gradients();
      loss.chunk_rows = chunk_rows;
      const LossResult chunked = c.rig.trainer.accumulate(c.batch, loss, c.rig.never);
      CHECK(chunked.loss == whole.loss);
      CHECK(same_bits(chunked.logprob, whole.logprob));
      CHECK(same_bits(chunked.entropy, whole.entropy));
      CHECK(chunked.flags == whole.flags);
      CHECK(same_bits(c.rig.gradient(), gradient));
    }
  }
}

// gspo's ratio of a document is made of the document alone: its neighbours change neither its loss nor its flags.
TEST(loss_of_a_sequence_does_not_depend_on_the_packing) {
  Case c;
  PolicyLoss gspo = ppo(9);
  gspo.scalars = {.objective = PolicyObjective::gspo, .clip_low = 0.02f, .clip_high = 0.02f};
  const LossResult together = c.rig.trainer.accumulate(c.batch, gspo, c.rig.never);
  double sum = 0;
  size_t first = 0;
  for (const int32_t length : c.batch.lengths) {
    const auto cut = [&](const auto& lane) {
      return std::remove_cvref_t<decltype(lane)>(lane.begin() + first, lane.begin() + first + length);
    };
    const PackedBatch alone{cut(c.batch.tokens),      {length},
                            cut(c.batch.weight),      cut(c.batch.advantage),
                            cut(c.batch.old_logprob), cut(c.batch.reference_logprob)};
    const LossResult result = c.rig.trainer.accumulate(alone, gspo, c.rig.never);
    CHECK(result.flags == cut(together.flags));
    sum += result.loss;
    first += length;
  }
  CHECK_NEAR(sum, together.loss, 1e-12);  // float64 sums of the same terms
  int clipped = 0;
  for (const int32_t flag : together.flags) clipped += flag != 0;
  CHECK(clipped > 0);
}

TEST(loss_logprobs_are_the_scores_bit_for_bit) {
  Case c;
  const LossResult trained = c.rig.trainer.accumulate(c.batch, ppo(16), c.rig.never);
  const LossResult scored = c.rig.trainer.score(c.batch, 0.8f, c.rig.never);
  int compared = 0;
  for (size_t i = 0; i < c.batch.tokens.size(); ++i) {
    if (c.batch.weight[i] == 0) {
      CHECK(trained.logprob[i] == 0 && trained.entropy[i] == 0 && trained.flags[i] == 0);
      continue;
    }
    ++compared;
    CHECK(trained.logprob[i] == scored.logprob[i]);
    CHECK(trained.entropy[i] == scored.entropy[i]);
  }
  CHECK(compared > 30);
}

// Ratio 1 at the first step: the clip is idle, and the gradient is that of nll with weight times advantage.
TEST(loss_on_policy_is_the_policy_gradient) {
  Case c;
  c.batch.old_logprob = c.rig.trainer.score(c.batch, 0.8f, c.rig.never).logprob;
  const LossResult result = c.rig.trainer.accumulate(c.batch, ppo(64), c.rig.never);
  double expected = 0;
  for (size_t i = 0; i < c.batch.tokens.size(); ++i) {
    CHECK(result.flags[i] == 0);
    expected -= static_cast<double>(c.batch.weight[i] * c.batch.advantage[i]);
  }
  CHECK_NEAR(result.loss, expected, 1e-5);
  const std::vector<float> gradient = c.rig.gradient();
  c.rig.trainer.drop_gradients();
  for (size_t i = 0; i < c.batch.tokens.size(); ++i) c.batch.weight[i] *= c.batch.advantage[i];
  PolicyLoss nll = ppo(64);
  nll.scalars.objective = PolicyObjective::nll;
  c.rig.trainer.accumulate(c.batch, nll, c.rig.never);
  CHECK(relative_l2(c.rig.gradient(), gradient) < 1e-6);  // only the products round apart
}

TEST(loss_without_rows_adds_nothing) {
  Case c;
  c.batch.weight.assign(c.batch.tokens.size(), 0.0f);
  CHECK(c.rig.trainer.accumulate(c.batch, ppo(8), c.rig.never).loss == 0);
  c.batch.weight.clear();
  CHECK(c.rig.trainer.accumulate(c.batch, ppo(8), c.rig.never).loss == 0);
  for (const float g : c.rig.gradient()) CHECK(g == 0);
}

TEST(loss_not_finite_names_the_culprit_and_drops_the_gradients) {
  Case c;
  const auto accumulate = [&] { c.rig.trainer.accumulate(c.batch, ppo(8), c.rig.never); };
  const auto zero_gradient = [&] {
    for (const float g : c.rig.gradient()) {
      if (g != 0) return false;
    }
    return true;
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  accumulate();
  const PackedBatch kept = c.batch;
  size_t token = 10;
  while (c.batch.weight[token] == 0) ++token;
  c.batch.advantage[token] = nan;
  CHECK(contains(failure_of(accumulate), "NON_FINITE: batch: advantage of token " + std::to_string(token) + " is nan"));
  CHECK(zero_gradient());
  c.batch = kept;
  c.batch.reference_logprob[token] = nan;
  CHECK(contains(failure_of(accumulate), "NON_FINITE: batch: reference_logprob"));
  c.batch = kept;

  std::vector<float> master = c.rig.read(c.rig.parameters.master());
  for (const NamedSlice& slice : c.rig.parameters.slices()) {
    if (slice.name == "model.layers.1.mlp.up_proj.weight") master[slice.offset + 5] = nan;
  }
  c.rig.write(c.rig.parameters.master(), master);
  c.rig.parameters.publish(*c.rig.stream);
  c.rig.stream->synchronize();
  const std::string message = failure_of(accumulate);
  CHECK(contains(message, "NON_FINITE") && contains(message, "model.layers.1.mlp.up_proj.weight"));
  CHECK(zero_gradient());
}

TEST(loss_that_overflows_names_the_token) {
  Case c;
  std::vector<float> master = c.rig.read(c.rig.parameters.master());
  for (const NamedSlice& slice : c.rig.parameters.slices()) {
    if (slice.name != "model.norm.weight") continue;
    for (int64_t i = 0; i < slice.elements(); ++i) master[slice.offset + i] = 3e38f;  // finite, but logits are not
  }
  c.rig.write(c.rig.parameters.master(), master);
  c.rig.parameters.publish(*c.rig.stream);
  c.rig.stream->synchronize();
  size_t token = 0;
  while (c.batch.weight[token] == 0) ++token;
  const std::string message = failure_of([&] { c.rig.trainer.accumulate(c.batch, ppo(8), c.rig.never); });
  CHECK(contains(message, "NON_FINITE: the loss of token " + std::to_string(token) + " of the batch"));
  CHECK(contains(failure_of([&] { c.rig.trainer.score(c.batch, 1.0f, c.rig.never); }),
                 "NON_FINITE: the logprob of token 1 of the batch"));
}

TEST(loss_nll_needs_no_policy_lanes) {
  Case c;
  PolicyLoss nll = ppo(8);
  nll.scalars.objective = PolicyObjective::nll;
  const double expected = c.rig.trainer.accumulate(c.batch, nll, c.rig.never).loss;
  c.batch.advantage.clear();
  c.batch.old_logprob.clear();
  CHECK(c.rig.trainer.accumulate(c.batch, nll, c.rig.never).loss == expected);
  CHECK(expected > 0);
}

TEST(loss_abort_ends_with_aborted_and_no_gradients) {
  Case c;
  c.rig.trainer.accumulate(c.batch, ppo(8), c.rig.never);
  const std::atomic<bool> aborted{true};
  CHECK(contains(failure_of([&] { c.rig.trainer.accumulate(c.batch, ppo(8), aborted); }), "ABORTED"));
  for (const float g : c.rig.gradient()) CHECK(g == 0);
  CHECK(contains(failure_of([&] { c.rig.trainer.score(c.batch, 1.0f, aborted); }), "ABORTED"));
}

TEST(loss_options_are_checked) {
  Case c;
  const auto message = [&](auto change) {
    PolicyLoss loss = ppo(8);
    change(loss);
    return failure_of([&] { c.rig.trainer.accumulate(c.batch, loss, c.rig.never); });
  };
  CHECK(contains(message([](PolicyLoss& l) { l.temperature = 0; }), "temperature is 0"));
  CHECK(contains(message([](PolicyLoss& l) { l.chunk_rows = -1; }), "chunk_rows is -1"));
  CHECK(contains(message([](PolicyLoss& l) { l.scalars.clip_low = 1.5f; }), "clip_low is 1.5"));
  CHECK(contains(message([](PolicyLoss& l) { l.scalars.clip_high = -1; }), "clip_high is -1"));
  CHECK(contains(message([](PolicyLoss& l) { l.scalars.dual_clip = 1; }), "dual_clip is 1; it must be 0"));
  CHECK(contains(message([](PolicyLoss& l) { l.scalars.kl_coef = -1; }), "kl_coef is -1"));
  CHECK(contains(message([](PolicyLoss& l) { l.scalars.entropy_coef = NAN; }), "entropy_coef is nan"));
  CHECK(contains(message([](PolicyLoss& l) {
                   l.scalars.dual_clip = 3;
                   l.scalars.objective = PolicyObjective::gspo;
                 }),
                 "dual_clip bounds the objective ppo_clip only"));
  c.batch.reference_logprob.clear();
  CHECK(contains(message([](PolicyLoss& l) { l.scalars.kl_coef = 1; }), "needs the lane reference_logprob"));
}

}  // namespace tokenring
