// Batches that go through the trainer in parts, side by side: the gradients are those of one pass after the other.
#include "decoder_rig.h"
#include "harness.h"

using namespace tokenring;

namespace {

// Wide enough that a batch of some hundred tokens is cut.
DecoderConfig wide_config() {
  DecoderConfig c = tiny_config(true);
  c.intermediate_size = 4000;
  c.max_position_embeddings = 256;
  return c;
}

PackedBatch batch_of(const std::vector<int32_t>& lengths) {
  PackedBatch batch;
  batch.lengths = lengths;
  for (const int32_t length : lengths)
    for (int32_t i = 0; i < length; ++i) {
      batch.tokens.push_back((7 * i + length) % 40);
      batch.weight.push_back(i % 5 ? 0.01f : 0.0f);
    }
  return batch;
}

struct Outcome {
  std::vector<float> gradient, logprob;
  double loss;
};

Outcome accumulate(int threads, const std::vector<PackedBatch>& batches, TrainerOptions options, int32_t chunk_rows) {
  const auto device = make_cpu_device(threads);
  const auto stream = device->stream();
  Parameters parameters(*device, wide_config());
  std::vector<float> weights(static_cast<size_t>(parameters.elements()));
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = 0.02f * static_cast<float>(static_cast<int>(i % 13) - 6);
  stream->copy_to_device(parameters.master().data, weights.data(), weights.size() * sizeof(float));
  parameters.publish(*stream);
  stream->synchronize();
  Trainer trainer(*device, parameters, options);
  const std::atomic<bool> never{false};
  PolicyLoss loss;
  loss.chunk_rows = chunk_rows;
  Outcome outcome{std::vector<float>(weights.size()), {}, 0};
  for (const PackedBatch& batch : batches) {
    const LossResult result = trainer.accumulate(batch, loss, never);
    outcome.logprob.insert(outcome.logprob.end(), result.logprob.begin(), result.logprob.end());
    outcome.loss += result.loss;
  }
  const Tensor gradient = parameters.gradient();
  stream->copy_to_host(outcome.gradient.data(), gradient.data, gradient.bytes());
  stream->synchronize();
  return outcome;
}

}  // namespace

TEST(trainer_parts_side_by_side_give_the_bits_of_one_after_the_other) {
  const std::vector<int32_t> lengths{90, 130, 7, 200, 64, 1, 150, 40, 33, 110, 128, 95};
  std::vector<PackedBatch> single;
  for (const int32_t length : lengths) single.push_back(batch_of({length}));
  for (const bool checkpointing : {false, true}) {
    const Outcome expected = accumulate(1, single, {checkpointing}, 0);
    for (const int threads : {1, 2, 3})
      for (const int32_t chunk_rows : {0, 50}) {
        const Outcome outcome = accumulate(threads, {batch_of(lengths)}, {checkpointing}, chunk_rows);
        CHECK(outcome.gradient == expected.gradient);
        CHECK(outcome.logprob == expected.logprob);
        CHECK_NEAR(outcome.loss, expected.loss, 1e-9 * std::abs(expected.loss));
      }
  }
}

TEST(trainer_parts_fail_together) {
  const auto device = make_cpu_device(2);
  Parameters parameters(*device, wide_config());
  Trainer trainer(*device, parameters);
  const PackedBatch batch = batch_of({200, 200, 200, 200, 200, 200});
  for (int i = 0; i < 3; ++i) {
    const std::atomic<bool> aborted{true};
    CHECK_FAILS("ABORTED", trainer.accumulate(batch, PolicyLoss{}, aborted));
    const std::atomic<bool> never{false};
    CHECK(std::isfinite(trainer.accumulate(batch, PolicyLoss{}, never).loss));
  }
}

TEST(batch_parts_keep_documents_and_order) {
  const PackedBatch batch = batch_of({90, 130, 7, 200, 64, 300, 1});
  const auto lengths = [&](int64_t tokens, int64_t unit) {
    std::vector<std::vector<int32_t>> lengths;
    PackedBatch again;
    for (const PackedBatch& part : batch.parts(tokens, unit)) {
      lengths.push_back(part.lengths);
      again.tokens.insert(again.tokens.end(), part.tokens.begin(), part.tokens.end());
      again.weight.insert(again.weight.end(), part.weight.begin(), part.weight.end());
      CHECK(part.advantage.empty());
    }
    CHECK(again.tokens == batch.tokens && again.weight == batch.weight);
    return lengths;
  };
  using Lengths = std::vector<std::vector<int32_t>>;
  CHECK((lengths(0, 1) == Lengths{{90, 130, 7, 200, 64, 300, 1}}));
  CHECK((lengths(200, 1) == Lengths{{90, 130}, {7, 200}, {64, 300}, {1}}));
  CHECK((lengths(1, 1) == Lengths{{90}, {130}, {7}, {200}, {64}, {300}, {1}}));
  CHECK((lengths(200, 20) == Lengths{{90, 130}, {7, 200, 64, 300, 1}}));
}
