// What a training step keeps: activation checkpointing gives the same bits in less memory, and memory is linear in the
// length of a document. Arenas are sized from schedules, so their bytes are exact and nothing has to run.
#include <string>
#include <utility>

#include "decoder_rig.h"
#include "folder.h"
#include "harness.h"
#include "model/attend.h"
#include "model/checkpoint.h"
#include "model/decoder.h"

namespace tokenring {

namespace {

// The schedule of one training step on a document of `length` tokens that all carry loss, as the trainer builds it.
struct Step {
  Schedule schedule;
  LossRows rows;
  LossLanes lanes;
  PackedAttend attend;
  std::vector<int32_t> ids, places;

  Step(Rig& rig, int32_t length, Keep keep, int64_t mlp_rows = 0)
      : attend(rig.parameters.config(), rig.device.ops(), {length}) {
    const Decoder decoder(rig.parameters.config(), rig.device.ops(), rig.parameters.rope(), mlp_rows);
    for (int32_t i = 0; i < length; ++i) {
      ids.push_back(i % rig.parameters.config().vocab_size);
      places.push_back(i);
      if (i == 0) continue;
      rows.row.push_back(i - 1);
      rows.target.push_back(ids.back());
    }
    rows.weight = rows.advantage = rows.old_logprob = std::vector<float>(rows.row.size(), 1.0f);
    const Slot tokens = schedule.slot(DType::i32, {length}), positions = schedule.slot(DType::i32, {length});
    schedule.upload(tokens, ids.data());
    schedule.upload(positions, places.data());
    const DecoderPass pass = decoder.forward(schedule, rig.parameters, attend, tokens, positions, keep);
    const PolicyHead head{rig.device.ops(), rig.parameters.acquire_head(schedule).weight,
                          rig.parameters.head(schedule).weight};
    const Slot dhidden = policy_loss(schedule, head, PolicyLoss{}, pass.hidden, rows, lanes);
    decoder.backward(schedule, rig.parameters, rig.parameters, attend, pass, dhidden);
    schedule.release(tokens);
    schedule.release(positions);
  }

  int64_t bytes() const { return static_cast<int64_t>(schedule.arena_bytes()); }
  int count(const std::string& op) const {
    int n = 0;
    for (const Entry& entry : schedule.entries()) n += op == entry.op;
    return n;
  }
};

DecoderConfig demo_config() {
  DecoderConfig c;
  c.vocab_size = 512;
  c.hidden_size = 128;
  c.intermediate_size = 384;
  c.num_hidden_layers = 4;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.head_dim = 64;
  c.max_position_embeddings = 32768;
  return c;
}

}  // namespace

TEST(checkpointing_gives_the_same_bits) {
  for (const Precision precision : {Precision::float32, Precision::bf16})
    for (const DecoderConfig& config : {tiny_config(true), tiny_config(false), qwen3_config()}) {
      Rig plain(config, precision), frugal(config, precision, {.activation_checkpointing = true});
      plain.randomise(3);
      frugal.randomise(3);
      PolicyLoss loss;
      loss.chunk_rows = 16;
      for (int step = 0; step < 2; ++step) {
        const PackedBatch batch = random_batch(plain.parameters.config(), {17, 1, 90, 8}, 5 + step);
        const LossResult a = plain.trainer.accumulate(batch, loss, plain.never);
        const LossResult b = frugal.trainer.accumulate(batch, loss, frugal.never);
        CHECK(a.loss == b.loss && a.logprob == b.logprob && a.entropy == b.entropy);
        const std::vector<float> gradient = plain.gradient();
        CHECK(gradient == frugal.gradient());
        CHECK(gradient != std::vector<float>(gradient.size(), 0.0f));
        plain.trainer.optimise({});
        frugal.trainer.optimise({});
        CHECK(plain.read(plain.parameters.master()) == frugal.read(frugal.parameters.master()));
      }
    }
}

TEST(checkpointing_computes_products_again_but_never_attention) {
  Rig rig(qwen3_config());
  const int layers = rig.parameters.config().num_hidden_layers;
  Step plain(rig, 100, Keep::everything), frugal(rig, 100, Keep::checkpoints);
  CHECK(plain.count("attention_forward") == layers && frugal.count("attention_forward") == layers);
  CHECK(frugal.count("attention_backward") == layers);
  // qkv, o and gate_up of each layer; down is not needed again.
  CHECK(frugal.count("linear_forward") == plain.count("linear_forward") + 3 * layers);
  for (Step* step : {&plain, &frugal})  // all was given back
    CHECK(step->schedule.slot(DType::u8, {step->bytes()}).offset == 0);
}

// A layer that is kept whole holds 2 residuals, 2 norms, q, k and v, what attention gave, gate, up and their product:
// of the demo, 4 * 128 + 512 + 256 + 3 * 384 floats a token. Checkpoints are 128 + 256 of them.
TEST(checkpointing_keeps_a_sixth_of_each_layer) {
  DecoderConfig config = demo_config();
  const auto grows_by = [&](Keep keep) {
    const auto bytes = [&](int layers) {
      config.num_hidden_layers = layers;
      Rig rig(config);
      return Step(rig, 4096, keep).bytes();
    };
    return bytes(12) - bytes(4);
  };
  const int64_t token = 8 * 4096 * static_cast<int64_t>(sizeof(float));
  // Above that, the statistics: rstd twice and lse of 4 heads. Some of them fill gaps.
  const auto check = [&](Keep keep, int64_t rows, int64_t statistics) {
    const int64_t bytes = grows_by(keep);
    CHECK(bytes >= token * rows && bytes <= token * (rows + statistics));
  };
  check(Keep::everything, 4 * 128 + 512 + 256 + 3 * 384, 6);
  check(Keep::checkpoints, 128 + 256, 4);
}

TEST(the_mlp_in_parts_has_the_same_bits) {
  for (const Precision precision : {Precision::float32, Precision::bf16})
    for (const Keep keep : {Keep::everything, Keep::checkpoints}) {
      std::vector<std::vector<float>> gradients, logprobs;
      for (const int64_t parts : {0, 1, 3, 64}) {
        Rig rig(tiny_config(false), precision);
        rig.randomise(3);
        Step step(rig, 50, keep, parts * rig.device.ops().cut_rows());
        Executor executor(rig.device, *rig.stream);
        executor.run(step.schedule);
        rig.stream->synchronize();
        gradients.push_back(rig.gradient());
        logprobs.push_back(step.lanes.logprob);
      }
      CHECK(gradients[0] != std::vector<float>(gradients[0].size(), 0.0f));
      for (size_t i = 1; i < gradients.size(); ++i) CHECK(gradients[i] == gradients[0] && logprobs[i] == logprobs[0]);
    }
}

// Gate, up, their product and the gradients of all: six of its width a token, of which only a part's are there.
TEST(the_mlp_in_parts_needs_the_memory_of_a_part) {
  Rig rig(demo_config());
  const int64_t whole = Step(rig, 32768, Keep::checkpoints).bytes(), part = 1024;
  const int64_t token = 6 * 384 * static_cast<int64_t>(sizeof(float));
  const int64_t saved = whole - Step(rig, 32768, Keep::checkpoints, part).bytes();
  // Less what attention needs then, which had room in it.
  CHECK(saved > (32768 - part) * token / 2);
  CHECK(Step(rig, 32768, Keep::everything, part).bytes() == Step(rig, 32768, Keep::everything).bytes());
}

TEST(training_memory_is_linear_in_the_length) {
  Rig rig(demo_config());
  for (const Keep keep : {Keep::everything, Keep::checkpoints}) {
    const int64_t short_one = Step(rig, 4096, keep).bytes(), long_one = Step(rig, 32768, keep).bytes();
    CHECK(long_one <= 8 * short_one);
    CHECK(long_one > 7 * short_one);  // the logits of a chunk are all that does not grow
  }
}

// Gradients come with the first backward pass, moments with the first step; asked for before it, they are saved as
// zeros.
TEST(gradients_and_moments_are_made_when_they_are_needed) {
  for (const bool tied : {true, false}) {
    Rig rig(tiny_config(tied)), other(tiny_config(tied));
    rig.randomise(3);
    const PackedBatch batch = random_batch(rig.parameters.config(), {17, 9}, 5);
    const int64_t flat = rig.parameters.elements() * static_cast<int64_t>(sizeof(float));
    rig.trainer.score(batch, 1.0f, rig.never);
    rig.trainer.drop_gradients();
    rig.trainer.reset_optimiser();
    CHECK(rig.device.held("gradients") == 0);
    rig.trainer.accumulate(batch, {}, rig.never);
    rig.trainer.reset_optimiser();
    Folder folder;
    save_optimiser(rig.parameters, *rig.stream, folder.path);
    CHECK(rig.device.held("gradients") >= flat && rig.device.held("moments") == 0);
    rig.trainer.accumulate(batch, {}, rig.never);
    rig.trainer.optimise({});
    CHECK(rig.device.held("moments") == 2 * flat);
    const int64_t before = rig.device.bytes;
    rig.trainer.accumulate(batch, {}, rig.never);
    rig.trainer.optimise({});
    CHECK(rig.device.bytes == before);

    other.randomise(3);
    other.trainer.accumulate(batch, {}, other.never);
    other.trainer.optimise({});
    load_optimiser(other.parameters, *other.stream, folder.path);
    for (const Tensor& moments : {other.parameters.first_moment(), other.parameters.second_moment()})
      CHECK(other.read(moments) == std::vector<float>(static_cast<size_t>(other.parameters.elements()), 0.0f));
  }
}

}  // namespace tokenring
