// The decoders of Qwen2, Qwen3 and Llama against a float64 decoder and Hugging Face's own (scripts/fixtures/decoder.py
// made the files).
//
// Relative L2 of the logits and the lanes: 1e-5, where some tens of roundings of 6e-8 through two layers come to 1e-6.
// The gradient of each tensor: twice what Hugging Face's model in PyTorch's float32 is off by (the worst of four orders
// of its sums). Moves of the weights: 1e-4, since Adam divides each gradient by its own size, which turns the relative
// error of the smallest into one of the move.
#include <fstream>
#include <sstream>

#include "decoder_rig.h"
#include "harness.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/attend.h"
#include "model/checkpoint.h"
#include "model/decoder.h"

namespace tokenring {

namespace {

struct Fixture {
  std::string directory;
  DecoderConfig config;
  SafetensorsReader expected;

  // Relative to the repository's root, where the tests run.
  explicit Fixture(const std::string& name)
      : directory("test/fixtures/decoder/" + name), expected(directory + "/expected.safetensors") {
    std::stringstream text;
    text << std::ifstream(directory + "/config.json").rdbuf();
    const Json json = parse_json(text.str(), directory + "/config.json");
    const auto number = [&](const char* key) { return json.find(key)->number; };
    config.vocab_size = static_cast<int32_t>(number("vocab_size"));
    config.hidden_size = static_cast<int32_t>(number("hidden_size"));
    config.intermediate_size = static_cast<int32_t>(number("intermediate_size"));
    config.num_hidden_layers = static_cast<int32_t>(number("num_hidden_layers"));
    config.num_attention_heads = static_cast<int32_t>(number("num_attention_heads"));
    config.num_key_value_heads = static_cast<int32_t>(number("num_key_value_heads"));
    config.head_dim = static_cast<int32_t>(number("head_dim"));
    config.max_position_embeddings = static_cast<int32_t>(number("max_position_embeddings"));
    read_rope(json);
    config.rms_norm_eps = static_cast<float>(number("rms_norm_eps"));
    const Json* tied = json.find("tie_word_embeddings");
    config.tie_word_embeddings = tied && tied->boolean;
    const std::string& type = json.find("model_type")->string;
    config.attention_bias = type == "qwen2";
    config.qk_norm = type == "qwen3";
  }

  // Both dialects: rope_theta beside rope_scaling, and rope_parameters.
  void read_rope(const Json& json) {
    const Json* rope = json.find("rope_parameters");
    const Json& outer = rope ? *rope : json;
    config.rope_theta = outer.find("rope_theta")->number;
    if (!rope) rope = json.find("rope_scaling");
    if (!rope) return;
    const std::string& type = rope->find("rope_type")->string;
    RopeScaling& r = config.rope_scaling;
    r.rope_type = type == "yarn"     ? RopeScaling::Type::yarn
                  : type == "llama3" ? RopeScaling::Type::llama3
                                     : RopeScaling::Type::none;
    const auto read = [&](const char* key, auto& value) {
      if (const Json* found = rope->find(key)) value = static_cast<std::decay_t<decltype(value)>>(found->number);
    };
    read("factor", r.factor);
    read("original_max_position_embeddings", r.original_max_position_embeddings);
    read("beta_fast", r.beta_fast);
    read("beta_slow", r.beta_slow);
    read("mscale", r.mscale);
    read("mscale_all_dim", r.mscale_all_dim);
    read("low_freq_factor", r.low_freq_factor);
    read("high_freq_factor", r.high_freq_factor);
    if (const Json* truncate = rope->find("truncate")) r.truncate = truncate->boolean;
  }

  std::vector<float> values(const std::string& name) const {
    std::vector<float> out(static_cast<size_t>(expected.entries().at(name).elements()));
    expected.read(name, out.data());
    return out;
  }
  std::vector<int32_t> integers(const std::string& name) const {
    const std::vector<float> wide = values(name);
    return std::vector<int32_t>(wide.begin(), wide.end());
  }
  bool has(const std::string& name) const { return expected.entries().count(name) != 0; }
  PackedBatch batch() const {
    PackedBatch batch{integers("tokens"), integers("lengths"), values("weight"), {}, {}};
    if (has("advantage")) {
      batch.advantage = values("advantage");
      batch.old_logprob = values("old_logprob");
    }
    return batch;
  }
  PolicyLoss loss(PolicyObjective objective) const {
    PolicyLoss loss;
    loss.scalars.objective = objective;
    if (has("clip")) {
      loss.scalars.clip_low = values("clip")[0];
      loss.scalars.clip_high = values("clip")[1];
    }
    loss.temperature = values("temperature")[0];
    loss.chunk_rows = 32;
    return loss;
  }
};

std::vector<float> slice_of(const std::vector<float>& flat, const NamedSlice& slice) {
  return {flat.begin() + slice.offset, flat.begin() + slice.offset + slice.elements()};
}

void check_logits(const std::string& name) {
  const Fixture fixture(name);
  Rig rig(fixture.config);
  load_parameters(rig.parameters, *rig.stream, fixture.directory);
  const PackedBatch batch = fixture.batch();
  const int64_t m = static_cast<int64_t>(batch.tokens.size());
  std::vector<int32_t> positions, every;
  for (const int32_t length : batch.lengths) {
    for (int32_t i = 0; i < length; ++i) positions.push_back(i);
  }
  for (int32_t i = 0; i < m; ++i) every.push_back(i);
  const Decoder decoder(fixture.config, rig.device.ops(), rig.parameters.rope());
  PackedAttend attend(fixture.config, rig.device.ops(), batch.lengths);
  std::vector<float> got(static_cast<size_t>(m) * fixture.config.vocab_size);
  Schedule schedule;
  const Slot tokens = schedule.slot(DType::i32, {m}), at = schedule.slot(DType::i32, {m});
  const Slot index = schedule.slot(DType::i32, {m});
  schedule.upload(tokens, batch.tokens.data());
  schedule.upload(at, positions.data());
  schedule.upload(index, every.data());
  const DecoderPass pass = decoder.forward(schedule, rig.parameters, attend, tokens, at, Keep::nothing);
  schedule.download(got.data(), decoder.logits(schedule, rig.parameters, pass.hidden, index));
  Executor executor(rig.device, *rig.stream);
  executor.run(schedule);
  rig.stream->synchronize();
  CHECK(relative_l2(got, fixture.values("logits")) < 1e-5);

  const LossResult scores = rig.trainer.score(batch, fixture.values("temperature")[0], rig.never);
  CHECK(relative_l2(scores.logprob, fixture.values("logprob")) < 1e-5);
  CHECK(relative_l2(scores.entropy, fixture.values("entropy")) < 1e-5);
}

void check_gradients(const Fixture& fixture, Rig& rig, PolicyObjective objective, const std::string& kind) {
  const LossResult result = rig.trainer.accumulate(fixture.batch(), fixture.loss(objective), rig.never);
  const double expected = fixture.values("loss." + kind)[0];
  CHECK_NEAR(result.loss, expected, 1e-5 * std::abs(expected));
  if (objective == PolicyObjective::ppo_clip) CHECK(result.flags == fixture.integers("flags"));
  const std::vector<float> gradient = rig.gradient();
  for (const NamedSlice& slice : rig.parameters.slices()) {
    const double off = relative_l2(slice_of(gradient, slice), fixture.values("gradient." + kind + "." + slice.name));
    const double peer = fixture.values("error." + kind + "." + slice.name)[0];
    CHECK_NEAR(off, 0, 2 * peer);
  }
  rig.trainer.drop_gradients();
}

void check_model(const std::string& name) {
  check_logits(name);
  const Fixture fixture(name);
  Rig rig(fixture.config);
  load_parameters(rig.parameters, *rig.stream, fixture.directory);
  check_gradients(fixture, rig, PolicyObjective::nll, "nll");
}

void check_training(const std::string& name) {
  const Fixture fixture(name);
  Rig rig(fixture.config);
  load_parameters(rig.parameters, *rig.stream, fixture.directory);
  const PackedBatch batch = fixture.batch();
  const std::pair<PolicyObjective, std::string> objectives[] = {{PolicyObjective::nll, "nll"},
                                                                {PolicyObjective::ppo_clip, "ppo_clip"}};
  for (const auto& [objective, kind] : objectives) check_gradients(fixture, rig, objective, kind);

  const std::vector<float> start = rig.read(rig.parameters.master());
  const std::vector<float> how = fixture.values("adamw"), norms = fixture.values("gradient_norms");
  for (int step = 0; step < 2; ++step) {
    rig.trainer.accumulate(batch, fixture.loss(objectives[step].first), rig.never);
    const OptimiserResult result = rig.trainer.optimise({how[0], how[1], how[2], how[3], how[4], how[5]});
    CHECK_NEAR(result.gradient_norm, norms[step], 1e-5 * norms[step]);
  }
  const std::vector<float> end = rig.read(rig.parameters.master());
  for (const NamedSlice& slice : rig.parameters.slices()) {
    std::vector<float> move = slice_of(end, slice), expected = fixture.values("updated." + slice.name);
    const std::vector<float> from = slice_of(start, slice);
    for (size_t i = 0; i < move.size(); ++i) {
      move[i] -= from[i];
      expected[i] -= from[i];
    }
    CHECK(relative_l2(move, expected) < 1e-4);
  }
}

// bf16 lands no farther from float32 than PyTorch's autocast does (scripts/fixtures/bf16.py), which rounds what is
// between the layers too. Some luck is in how roundings add up: half as far again is let pass.
void check_bf16(const std::string& name) {
  const Fixture fixture(name);
  Rig rig(fixture.config, Precision::bf16);
  load_parameters(rig.parameters, *rig.stream, fixture.directory);
  const PackedBatch batch = fixture.batch();
  std::stringstream text;
  text << std::ifstream(fixture.directory + "/bf16.json").rdbuf();
  const Json theirs = parse_json(text.str(), "bf16.json");
  const auto check = [&](const std::string& what, const std::vector<float>& got) {
    const double error = relative_l2(got, fixture.values(what)), limit = theirs.find(what)->number;
    CHECK_NEAR(error, 0.0, 1.5 * limit, what, ": PyTorch is off by ", limit);
    CHECK(error > 0.05 * limit);  // else it is not bf16 that ran
  };
  check("logprob", rig.trainer.score(batch, fixture.values("temperature")[0], rig.never).logprob);
  rig.trainer.accumulate(batch, fixture.loss(PolicyObjective::nll), rig.never);
  const std::vector<float> gradient = rig.gradient();
  for (const NamedSlice& slice : rig.parameters.slices())
    check("gradient.nll." + slice.name, slice_of(gradient, slice));
}

}  // namespace

TEST(fixture_qwen2_yarn) { check_model("qwen2-yarn"); }
TEST(fixture_qwen3) { check_model("qwen3"); }
TEST(fixture_qwen3_yarn) { check_model("qwen3-yarn"); }
TEST(fixture_llama) { check_model("llama"); }
TEST(fixture_llama3) { check_model("llama3"); }
TEST(fixture_tied_logits) { check_logits("tied"); }
TEST(fixture_untied_logits) { check_logits("untied"); }
TEST(fixture_tied_gradients_and_two_adamw_steps) { check_training("tied"); }
TEST(fixture_tied_bf16) { check_bf16("tied"); }
TEST(fixture_untied_bf16) { check_bf16("untied"); }
TEST(fixture_untied_gradients_and_two_adamw_steps) { check_training("untied"); }

}  // namespace tokenring
