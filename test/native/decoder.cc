// The decoder against the float64 reference: values, gradients, packing, and what its schedule promises.
#include "model/decoder.h"

#include "decoder_rig.h"
#include "harness.h"
#include "model/attend.h"

namespace tokenring {

namespace {

const std::vector<int32_t> kLengths = {17, 1, 29, 8};

PolicyLoss policy(PolicyObjective objective, float temperature = 0.9f) {
  PolicyLoss loss;
  loss.scalars = {.objective = objective, .clip_low = 0.2f, .clip_high = 0.28f};
  loss.temperature = temperature;
  loss.chunk_rows = 16;
  return loss;
}

// Central differences of the float64 loss. The product's gradients are float32 sums: their error, about 1e-6 of a
// tensor's norm, bounds what a projection on a direction d can be off by: 1e-5 |g| |d| leaves a factor of ten. A
// wrong formula shows at 1e-2.
void check_gradients(const DecoderConfig& config, const PolicyScalars& scalars) {
  Rig rig(config);
  rig.randomise(11);
  PackedBatch batch = random_batch(rig.parameters.config(), kLengths, 5);
  PolicyLoss loss = policy(scalars.objective);
  loss.scalars = scalars;
  const LossResult scores = rig.trainer.score(batch, loss.temperature, rig.never);
  set_old_logprobs(batch, scores.logprob, loss.scalars, 7);
  const LossResult result = rig.trainer.accumulate(batch, loss, rig.never);
  const std::vector<float> gradient = rig.gradient();

  reference::Model model = rig.reference();
  const reference::Lanes now = reference::lanes(model, batch, loss.temperature);
  CHECK_NEAR(result.loss, reference::loss(model, batch, loss.scalars, loss.temperature), 1e-4);
  int clipped = 0;
  for (const int32_t flag : result.flags) clipped += flag != 0;
  if (scalars.objective == PolicyObjective::nll) CHECK(clipped == 0);
  if (scalars.objective == PolicyObjective::ppo_clip) CHECK(clipped > 0);

  constexpr double kStep = 1e-5;
  for (const NamedSlice& slice : rig.parameters.slices()) {
    reference::Vector& weights = model.tensors[slice.name];
    const reference::Vector kept = weights;
    const float* g = gradient.data() + slice.offset;
    double norm = 0;
    size_t largest = 0;
    for (size_t i = 0; i < kept.size(); ++i) {
      norm += static_cast<double>(g[i]) * g[i];
      if (std::abs(g[i]) > std::abs(g[largest])) largest = i;
    }
    norm = std::sqrt(norm);
    CHECK(norm > 0);
    for (int which = 0; which < 4; ++which) {
      reference::Vector direction(kept.size(), 0.0);
      if (which == 3) direction[largest] = 1.0;
      double expected = 0, length = 0;
      for (size_t i = 0; i < kept.size(); ++i) {
        if (which < 3) direction[i] = uniform01(100 + which, slice.offset + i) < 0.5f ? -1.0 : 1.0;
        expected += direction[i] * g[i];
        length += direction[i] * direction[i];
      }
      const auto loss_at = [&](double step) {
        for (size_t i = 0; i < kept.size(); ++i) weights[i] = kept[i] + step * direction[i];
        return reference::loss(model, batch, loss.scalars, loss.temperature, &now);
      };
      const double difference = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
      weights = kept;
      CHECK_NEAR(expected, difference, 1e-5 * norm * std::sqrt(length) + 1e-7);
    }
  }
}

std::vector<float> gradients_of(Rig& rig, const std::vector<PackedBatch>& batches, const PolicyLoss& loss) {
  rig.trainer.drop_gradients();
  for (const PackedBatch& batch : batches) rig.trainer.accumulate(batch, loss, rig.never);
  return rig.gradient();
}

// Documents [begin, end) of a batch.
PackedBatch part(const PackedBatch& batch, size_t begin, size_t end) {
  PackedBatch result;
  size_t first = 0;
  for (size_t d = 0; d < end; first += static_cast<size_t>(batch.lengths[d]), ++d) {
    if (d < begin) continue;
    result.lengths.push_back(batch.lengths[d]);
    const auto copy = [&](auto& to, const auto& from) {
      to.insert(to.end(), from.begin() + first, from.begin() + first + batch.lengths[d]);
    };
    copy(result.tokens, batch.tokens);
    copy(result.weight, batch.weight);
    copy(result.advantage, batch.advantage);
    copy(result.old_logprob, batch.old_logprob);
    copy(result.reference_logprob, batch.reference_logprob);
  }
  return result;
}

PackedBatch joined(const std::vector<PackedBatch>& parts) {
  PackedBatch result;
  for (const PackedBatch& p : parts) {
    const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    append(result.tokens, p.tokens);
    append(result.lengths, p.lengths);
    append(result.weight, p.weight);
    append(result.advantage, p.advantage);
    append(result.old_logprob, p.old_logprob);
    append(result.reference_logprob, p.reference_logprob);
  }
  return result;
}

}  // namespace

TEST(decoder_gradients_of_every_objective_are_those_of_finite_differences) {
  for (const PolicyScalars& scalars : policy_reference::variants()) check_gradients(tiny_config(true), scalars);
}
TEST(decoder_gradients_untied) {
  check_gradients(tiny_config(false), policy(PolicyObjective::nll).scalars);
  check_gradients(tiny_config(false), policy(PolicyObjective::ppo_clip).scalars);
}

TEST(decoder_qk_norm_gradients) { check_gradients(qwen3_config(), policy(PolicyObjective::nll).scalars); }

// float32 against float64 through two layers: logprobs of size 4 agree to some 1e-6.
TEST(decoder_scores_are_the_references) {
  DecoderConfig llama = tiny_config(true);
  llama.attention_bias = false;
  for (DecoderConfig config : {tiny_config(true), llama, qwen3_config()}) {
    config.rope_theta = 5e4;
    Rig rig(config);
    rig.randomise(3);
    const PackedBatch batch = random_batch(config, {40, 3, 100}, 9);
    const LossResult result = rig.trainer.score(batch, 0.7f, rig.never);
    const reference::Lanes expected = reference::lanes(rig.reference(), batch, 0.7f);
    for (size_t i = 0; i < batch.tokens.size(); ++i) {
      CHECK_NEAR(result.logprob[i], expected.logprob[i], 2e-5);
      CHECK_NEAR(result.entropy[i], expected.entropy[i], 2e-5);
    }
  }
}

TEST(decoder_document_alone_has_the_bits_it_has_packed) {
  for (const DecoderConfig& config : {tiny_config(true), qwen3_config()}) {
    Rig rig(config);
    rig.randomise(4);
    const PackedBatch batch = random_batch(rig.parameters.config(), {70, 5, 1, 66}, 2);
    const LossResult packed = rig.trainer.score(batch, 1.0f, rig.never);
    size_t first = 0;
    for (size_t d = 0; d < batch.lengths.size(); ++d) {
      const LossResult alone = rig.trainer.score(part(batch, d, d + 1), 1.0f, rig.never);
      for (int32_t i = 0; i < batch.lengths[d]; ++i) {
        CHECK(alone.logprob[i] == packed.logprob[first + i]);
        CHECK(alone.entropy[i] == packed.entropy[first + i]);
      }
      first += static_cast<size_t>(batch.lengths[d]);
    }
  }
}

TEST(decoder_micro_batches_in_order_give_the_same_gradient_bits) {
  for (const DecoderConfig& config : {tiny_config(true), tiny_config(false), qwen3_config()}) {
    Rig rig(config);
    rig.randomise(6);
    const PackedBatch batch = random_batch(rig.parameters.config(), {20, 65, 9, 31}, 8);
    const PolicyLoss loss = policy(PolicyObjective::nll);
    for (const PolicyScalars& scalars : policy_reference::variants()) {
      PolicyLoss other = loss;
      other.scalars = scalars;
      CHECK(gradients_of(rig, {batch}, other) == gradients_of(rig, {part(batch, 0, 1), part(batch, 1, 4)}, other));
    }
    const std::vector<float> whole = gradients_of(rig, {batch}, loss);
    CHECK(whole == gradients_of(rig, {part(batch, 0, 1), part(batch, 1, 3), part(batch, 3, 4)}, loss));
    // In another order the sums round elsewhere: float32 over 125 tokens stays within 1e-5.
    const PackedBatch turned = joined({part(batch, 2, 4), part(batch, 0, 2)});
    CHECK(relative_l2(gradients_of(rig, {turned}, loss), whole) < 1e-5);
    CHECK(whole != std::vector<float>(whole.size(), 0.0f));
  }
}

TEST(decoder_schedule_prices_six_flops_per_weight_and_token) {
  Rig rig(tiny_config(false));
  const DecoderConfig& c = rig.parameters.config();
  const int64_t m = 96;
  const Decoder decoder(c, rig.device.ops(), rig.parameters.rope());
  PackedAttend attend(c, rig.device.ops(), {48, 48});
  LossRows rows;
  for (int32_t i = 0; i < m; ++i) {
    rows.row.push_back(i);
    rows.target.push_back(0);
  }
  rows.weight = std::vector<float>(m, 1.0f);
  LossLanes lanes;
  Schedule schedule;
  const Slot tokens = schedule.slot(DType::i32, {m}), positions = schedule.slot(DType::i32, {m});
  const DecoderPass pass = decoder.forward(schedule, rig.parameters, attend, tokens, positions, Keep::everything);
  const PolicyHead head{rig.device.ops(), rig.parameters.acquire_head(schedule).weight,
                        rig.parameters.head(schedule).weight};
  const Slot dhidden = policy_loss(schedule, head, PolicyLoss{}, pass.hidden, rows, lanes);
  decoder.backward(schedule, rig.parameters, rig.parameters, attend, pass, dhidden);

  int64_t weights = 0;  // those of matrix products: the embedding is looked up
  for (const NamedSlice& slice : rig.parameters.slices()) {
    if (slice.shape.size() == 2 && slice.name != "model.embed_tokens.weight") weights += slice.elements();
  }
  int64_t linear = 0, attention = 0;
  for (const Entry& entry : schedule.entries()) {
    CHECK(entry.bytes > 0);
    if (std::string(entry.op).rfind("linear", 0) == 0) linear += entry.flops;
    if (std::string(entry.op).rfind("attention", 0) == 0) attention += entry.flops;
  }
  CHECK(linear == 6 * weights * m);
  // Forward 4 and backward 10 a (query, key) pair, head and dimension.
  CHECK(attention == 14 * (2 * 48 * 49 / 2) * c.num_attention_heads * c.head_dim * c.num_hidden_layers);
  CHECK(schedule.flops() < (linear + attention) * 11 / 10);

  schedule.release(tokens);
  schedule.release(positions);
  CHECK(schedule.slot(DType::u8, {static_cast<int64_t>(schedule.arena_bytes())}).offset == 0);  // all was given back
}

TEST(decoder_forward_without_keeping_needs_little_room) {
  DecoderConfig deep = tiny_config(true);
  deep.num_hidden_layers = 12;
  Rig rig(deep);
  const Decoder decoder(deep, rig.device.ops(), rig.parameters.rope());
  PackedAttend attend(deep, rig.device.ops(), {64});
  const auto room = [&](Keep keep) {
    Schedule schedule;
    const Slot tokens = schedule.slot(DType::i32, {64}), positions = schedule.slot(DType::i32, {64});
    decoder.forward(schedule, rig.parameters, attend, tokens, positions, keep);
    return schedule.arena_bytes();
  };
  CHECK(room(Keep::nothing) * 8 < room(Keep::everything));
}

// The biases alone decide: small random weights move a score of A^2 = 25 a pair by little.
TEST(decoder_previous_token_bias_makes_heads_look_back) {
  DecoderConfig config = tiny_config(true);
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 64;
  Rig rig(config);
  initialise(rig.parameters, *rig.stream, {0.02f, 1, 5.0f});
  const Decoder decoder(config, rig.device.ops(), rig.parameters.rope());
  const int32_t n = 60;
  PackedAttend attend(config, rig.device.ops(), {n});
  const PackedBatch batch = random_batch(config, {n}, 1);
  std::vector<int32_t> positions(n);
  for (int32_t i = 0; i < n; ++i) positions[i] = i;

  Schedule schedule;
  const Slot tokens = schedule.slot(DType::i32, {n}), at = schedule.slot(DType::i32, {n});
  schedule.upload(tokens, batch.tokens.data());
  schedule.upload(at, positions.data());
  const DecoderPass pass = decoder.forward(schedule, rig.parameters, attend, tokens, at, Keep::everything);
  const int width = (4 + 2 * 2) * 64;
  std::vector<float> qkv(static_cast<size_t>(n) * width);
  schedule.download(qkv.data(), pass.layers[0].qkv);
  Executor executor(rig.device, *rig.stream);
  executor.run(schedule);
  rig.stream->synchronize();

  const int distances[] = {1, 2, 1, 3};
  for (int head = 0; head < 4; ++head) {
    for (int t = 3; t < n; ++t) {
      int best = 0;
      double top = -1e300, total = 0, of_best = 0;
      for (int s = 0; s <= t; ++s) {
        double score = 0;
        for (int j = 0; j < 64; ++j) {
          score += static_cast<double>(qkv[t * width + head * 64 + j]) * qkv[s * width + (4 + head / 2) * 64 + j];
        }
        score /= 8;  // sqrt(64)
        total += std::exp(score);
        if (score > top) {
          top = score;
          best = s;
          of_best = std::exp(score);
        }
      }
      CHECK(best == t - distances[head]);
      CHECK(of_best / total > 0.5);
    }
  }
}

TEST(decoder_initialise_is_decided_by_the_seed) {
  Rig one(tiny_config(true)), two(tiny_config(true));
  const auto weights = [](Rig& rig, uint64_t seed) {
    initialise(rig.parameters, *rig.stream, {0.05f, seed, 0.0f});
    return rig.read(rig.parameters.master());
  };
  const std::vector<float> a = weights(one, 1);
  CHECK(a == weights(two, 1));
  CHECK(a != weights(two, 2));
  double sum = 0, square = 0;
  const NamedSlice& embedding = one.parameters.slices()[0];
  const int64_t count = embedding.elements();
  for (int64_t i = 0; i < count; ++i) {
    sum += a[embedding.offset + i];
    square += static_cast<double>(a[embedding.offset + i]) * a[embedding.offset + i];
  }
  CHECK_NEAR(sum / count, 0.0, 5 * 0.05 / std::sqrt(count));                       // five standard errors
  CHECK_NEAR(std::sqrt(square / count), 0.05, 5 * 0.05 / std::sqrt(2.0 * count));  // likewise
  CHECK(one.parameters.version() == 1 && two.parameters.version() == 2);
}

// Tensors of more elements than are made at a time.
TEST(decoder_initialise_makes_each_element_of_its_own_number) {
  DecoderConfig config = tiny_config(false);
  config.vocab_size = 70'000;
  Rig rig(config);
  for (const int threads : {1, 3}) {
    initialise(rig.parameters, *rig.stream, {0.05f, 9, 0.0f, threads});
    const std::vector<float> weights = rig.read(rig.parameters.master());
    for (size_t s = 0; s < rig.parameters.slices().size(); ++s) {
      const NamedSlice& slice = rig.parameters.slices()[s];
      if (slice.shape.size() != 2) continue;
      const int64_t stride = slice.elements() > 100'000 ? 101 : 1;
      for (int64_t i = 0; i < slice.elements(); i += stride)
        CHECK(weights[slice.offset + i] ==
              static_cast<float>(0.05f * normal01(random_bits(9, s), static_cast<uint64_t>(i))));
    }
  }
}

TEST(decoder_says_what_is_wrong_with_a_batch) {
  Rig rig(tiny_config(true));
  const auto message = [&](auto change) {
    PackedBatch batch = random_batch(rig.parameters.config(), {4, 5}, 1);
    change(batch);
    return failure_of([&] { rig.trainer.accumulate(batch, policy(PolicyObjective::ppo_clip), rig.never); });
  };
  CHECK(contains(message([](PackedBatch& b) { b.tokens[3] = 40; }), "tokens[3] is 40"));
  CHECK(contains(message([](PackedBatch& b) { b.lengths[1] = 4; }), "lengths sum to 8"));
  CHECK(contains(message([](PackedBatch& b) { b.lengths = {9, 0}; }), "lengths[1] is 0"));
  CHECK(contains(message([](PackedBatch& b) { b.weight.pop_back(); }), "weight has 8 entries for 9 tokens"));
  CHECK(contains(message([](PackedBatch& b) { b.weight[4] = 1; }), "first of document 1"));
  CHECK(contains(message([](PackedBatch& b) { b.advantage.clear(); }), "needs the lanes advantage"));
  CHECK(contains(failure_of([] {
                   DecoderConfig config = tiny_config(true);
                   config.num_key_value_heads = 3;
                   config.check();
                 }),
                 "num_attention_heads"));
}

}  // namespace tokenring
