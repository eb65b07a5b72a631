// NaN and infinity, wherever they come from: an error that names the tensor, never numbers that look sound.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <utility>

#include "decoder_rig.h"
#include "harness.h"
#include "model/checkpoint.h"
#include "model/sampler.h"

namespace tokenring {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

DecoderConfig qwen2() { return tiny_config(true); }
DecoderConfig qwen3() {
  DecoderConfig c = tiny_config(false);
  c.attention_bias = false;
  c.qk_norm = true;
  return c;
}

// Documents of random tokens that also hold the first of the vocabulary.
PackedBatch batch_of(const DecoderConfig& config) {
  PackedBatch batch = random_batch(config, {30, 12}, 5);
  for (const size_t i : {0, 10, 31}) batch.tokens[i] = 0;
  return batch;
}

PolicyLoss loss_of(PolicyObjective objective) {
  PolicyLoss loss;
  loss.scalars.objective = objective;
  return loss;
}

AdamW usual() { return {1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, 1.0f}; }

void poison(Rig& rig, const NamedSlice& slice, float value) {
  std::vector<float> master = rig.read(rig.parameters.master());
  master[slice.offset] = value;
  rig.write(rig.parameters.master(), master);
  rig.parameters.publish(*rig.stream);
  rig.stream->synchronize();
}

// What sampling after `prompt` fails with; empty where it does not.
std::string failure_of_sampling(Sampler& sampler, int64_t session, float temperature) {
  std::string message;
  sampler.sample(session, {3, {}, temperature, 1}, [&](SampleResult, std::exception_ptr error) {
    if (error) message = failure_of([&] { std::rethrow_exception(error); });
  });
  while (sampler.busy()) sampler.tick();
  return message;
}

TEST(non_finite_weights_are_named_by_whoever_computes) {
  for (const DecoderConfig& config : {qwen2(), qwen3()}) {
    Rig rig(config);
    rig.randomise(3);
    const std::vector<float> sound = rig.read(rig.parameters.master());
    Sampler sampler(rig.device, rig.parameters, {});
    const PackedBatch batch = batch_of(config);
    const int64_t session = sampler.open();
    sampler.extend(session, batch.tokens.data(), 20);
    for (const NamedSlice& slice : rig.parameters.slices()) {
      for (const float value : {kNan, kInfinity}) {
        rig.write(rig.parameters.master(), sound);
        poison(rig, slice, value);
        const std::string expected = "the weights of " + slice.name + " are not finite";
        const auto named = [&](const std::string& message) {
          return contains(message, "NON_FINITE: ") && contains(message, expected);
        };
        for (const PolicyObjective objective : {PolicyObjective::nll, PolicyObjective::ppo_clip}) {
          CHECK(named(failure_of([&] { rig.trainer.accumulate(batch, loss_of(objective), rig.never); })));
        }
        CHECK(named(failure_of([&] { rig.trainer.score(batch, 1, rig.never); })));
        // An infinite row of the head can give its token the probability 0, which samples like any other.
        if (value == kInfinity) continue;
        for (const float temperature : {1.0f, 0.0f}) CHECK(named(failure_of_sampling(sampler, session, temperature)));
      }
    }
    // Sound weights again: nothing of it stays, in gradients or in pages.
    rig.write(rig.parameters.master(), sound);
    rig.parameters.publish(*rig.stream);
    for (const float g : rig.gradient()) CHECK(g == 0);
    CHECK(failure_of_sampling(sampler, session, 1).empty());
    CHECK(failure_of([&] { rig.trainer.score(batch, 1, rig.never); }).empty());
  }
}

TEST(non_finite_samples_of_finite_weights_end_the_request_and_spare_the_others) {
  Rig rig(qwen3());
  rig.randomise(3);
  Sampler sampler(rig.device, rig.parameters, {});
  const int64_t broken = sampler.open(), sound = sampler.open();
  const std::vector<int32_t> bad = {7, 8, 9}, good = {1, 2, 3};
  sampler.extend(broken, bad.data(), bad.size());
  sampler.extend(sound, good.data(), good.size());
  std::vector<float> master = rig.read(rig.parameters.master());
  for (const NamedSlice& slice : rig.parameters.slices()) {
    if (slice.name != "model.embed_tokens.weight") continue;
    // Token 9's row is finite, its squares are not.
    for (int64_t j = 0; j < slice.shape[1]; ++j) master[slice.offset + 9 * slice.shape[1] + j] = 1e30f;
  }
  rig.write(rig.parameters.master(), master);
  rig.parameters.publish(*rig.stream);
  std::string message;
  bool fine = false;
  sampler.sample(broken, {1, {}, 1, 1}, [&](SampleResult, std::exception_ptr error) {
    message = failure_of([&] { std::rethrow_exception(error); });
  });
  sampler.sample(sound, {1, {}, 1, 1}, [&](SampleResult, std::exception_ptr error) { fine = !error; });
  while (sampler.busy()) sampler.tick();
  CHECK(contains(message, "NON_FINITE: the logprob of a sampled token is nan: the weights are finite"));
  CHECK(fine);
}

TEST(non_finite_steps_name_the_step_and_the_weights_that_they_ruin) {
  const auto first_step = [](AdamW how) {
    Rig rig(qwen3());
    rig.randomise(2);
    rig.trainer.accumulate(batch_of(rig.parameters.config()), loss_of(PolicyObjective::nll), rig.never);
    CHECK(rig.trainer.optimise(usual()).step == 1);
    rig.trainer.accumulate(batch_of(rig.parameters.config()), loss_of(PolicyObjective::nll), rig.never);
    return failure_of([&] { rig.trainer.optimise(how); });
  };
  AdamW how = usual();
  CHECK(first_step(how).empty());
  how.learning_rate = 3e38f;
  std::string message = first_step(how);
  CHECK(contains(message, "NON_FINITE: optimiser step 2 made the weights of model.embed_tokens.weight not finite"));
  // 0 / 0 where a token that never came has no gradient.
  how = usual();
  how.epsilon = 0;
  message = first_step(how);
  CHECK(contains(message, "NON_FINITE: optimiser step 2 made the weights of model.embed_tokens.weight not finite"));
}

TEST(non_finite_gradients_are_named_for_every_tensor) {
  for (const DecoderConfig& config : {qwen2(), qwen3()}) {
    Rig rig(config);
    rig.randomise(2);
    const std::vector<float> before = rig.read(rig.parameters.master());
    for (const NamedSlice& slice : rig.parameters.slices()) {
      for (const float value : {kNan, -kInfinity}) {
        std::vector<float> gradient(static_cast<size_t>(rig.parameters.elements()), 0.0f);
        gradient[slice.offset + slice.elements() - 1] = value;
        rig.write(rig.parameters.gradient(), gradient);
        const std::string message = failure_of([&] { rig.trainer.optimise(usual()); });
        CHECK(contains(message, "NON_FINITE: optimiser step 1: the gradient of " + slice.name + " is not finite"));
        for (const float g : rig.gradient()) CHECK(g == 0);
      }
    }
    CHECK(rig.read(rig.parameters.master()) == before);
  }
  // Gradients that are finite and their norm is not; and a loss that is finite and whose gradients are not.
  Rig rig(qwen2());
  rig.randomise(2);
  rig.write(rig.parameters.gradient(), std::vector<float>(static_cast<size_t>(rig.parameters.elements()), 1e25f));
  CHECK(contains(failure_of([&] { rig.trainer.optimise(usual()); }), "optimiser step 1: the norm of the gradients"));
  PackedBatch batch = batch_of(rig.parameters.config());
  for (float& weight : batch.weight) weight *= 1e37f;
  rig.trainer.accumulate(batch, loss_of(PolicyObjective::nll), rig.never);
  const std::string message = failure_of([&] { rig.trainer.optimise(usual()); });
  CHECK(contains(message, "NON_FINITE: optimiser step 1: "));
  CHECK(rig.trainer.optimise(usual()).gradient_norm == 0);
}

struct Folder {
  std::string path = (std::filesystem::temp_directory_path() / "tokenring-non-finite-XXXXXX").string();
  Folder() { path = mkdtemp(path.data()); }
  ~Folder() { std::filesystem::remove_all(path); }
};

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(non_finite_checkpoints_are_neither_written_nor_read) {
  const Folder folder;
  Rig rig(qwen3());
  rig.randomise(4);
  rig.trainer.accumulate(batch_of(rig.parameters.config()), loss_of(PolicyObjective::nll), rig.never);
  rig.trainer.optimise(usual());
  Stream& stream = *rig.stream;
  const std::string model = folder.path + "/model.safetensors", state = folder.path + "/optimizer.safetensors";
  const auto files = [&] { return std::distance(std::filesystem::directory_iterator(folder.path), {}); };
  for (const DType dtype : {DType::bf16, DType::f32}) {
    save_parameters(rig.parameters, stream, folder.path, dtype);
    save_optimiser(rig.parameters, stream, folder.path);
    const std::string sound = bytes_of(model), sound_state = bytes_of(state);
    const std::vector<float> master = rig.read(rig.parameters.master());
    for (const NamedSlice& slice : rig.parameters.slices()) {
      poison(rig, slice, kNan);
      std::string message = failure_of([&] { save_parameters(rig.parameters, stream, folder.path, dtype); });
      CHECK(contains(message, "NON_FINITE: " + model + ": element 0 of tensor " + slice.name + " is nan"));
      rig.write(rig.parameters.master(), master);

      std::vector<float> moment = rig.read(rig.parameters.second_moment());
      const float kept = std::exchange(moment[slice.offset + slice.elements() - 1], kInfinity);
      rig.write(rig.parameters.second_moment(), moment);
      message = failure_of([&] { save_optimiser(rig.parameters, stream, folder.path); });
      CHECK(contains(message, "NON_FINITE: " + state + ": element " + std::to_string(slice.elements() - 1) +
                                  " of tensor exp_avg_sq." + slice.name + " is inf"));
      moment[slice.offset + slice.elements() - 1] = kept;
      rig.write(rig.parameters.second_moment(), moment);
    }
    CHECK(bytes_of(model) == sound && bytes_of(state) == sound_state && files() == 2);

    // The last element of the file: all other tensors are sound, and none of them is taken.
    const NamedSlice& last = rig.parameters.slices().back();
    const auto damaged = [&](const std::string& path, std::string bytes, size_t size, const char* value) {
      bytes.replace(bytes.size() - size, size, value, size);
      std::ofstream(path, std::ios::binary) << bytes;
    };
    Rig other(qwen3());
    other.randomise(5);
    const std::vector<float> before = other.read(other.parameters.master());
    const bool wide = dtype == DType::f32;
    damaged(model, sound, wide ? 4 : 2, wide ? "\x00\x00\xc0\x7f" : "\xc0\x7f");
    std::string message = failure_of([&] { load_parameters(other.parameters, stream, folder.path); });
    CHECK(contains(message, "CHECKPOINT: " + model + ": element " + std::to_string(last.elements() - 1) +
                                " of tensor " + last.name + " is nan"));
    CHECK(other.read(other.parameters.master()) == before && other.parameters.version() == 1);
    damaged(state, sound_state, 4, "\x00\x00\x80\xff");
    const std::vector<float> moments = rig.read(rig.parameters.first_moment());
    message = failure_of([&] { load_optimiser(rig.parameters, stream, folder.path); });
    CHECK(contains(message, "CHECKPOINT: " + state + ": element ") &&
          contains(message, " of tensor exp_avg_sq." + last.name + " is -inf"));
    CHECK(rig.read(rig.parameters.first_moment()) == moments);
  }
}

TEST(non_finite_weights_are_not_made_at_the_start) {
  Rig rig(qwen2());
  for (const float std : {kNan, kInfinity, 1e31f, -1.0f}) {
    CHECK(contains(failure_of([&] { initialise(rig.parameters, *rig.stream, {std, 1, 0}); }), "initialise: std is"));
  }
  initialise(rig.parameters, *rig.stream, {1e30f, 1, 0});
  for (const float value : rig.read(rig.parameters.master())) CHECK(std::isfinite(value));
  CHECK(contains(failure_of([&] { rig.trainer.score(batch_of(rig.parameters.config()), 1, rig.never); }),
                 "NON_FINITE: the logprob of token 1 of the batch is nan"));
}

}  // namespace
}  // namespace tokenring
