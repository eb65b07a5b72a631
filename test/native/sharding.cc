// Sharded training on the ranks of a mesh, against one rank that holds everything and against ranks that all do.
#include <algorithm>
#include <cmath>

#include "harness.h"
#include "model/layout.h"
#include "sharding_rig.h"

namespace tokenring {
namespace {

struct Case {
  int size, stage, shard_size;
  int passes = 1;  // of a step
  bool last = false;
  bool checkpointing = false;
};

struct Outcome {
  Tensors weights, gradient;  // after the last step; of the first
  std::vector<double> norm;
  std::vector<std::vector<float>> scored;  // logprobs by document, by the last weights
};

constexpr int kSteps = 3;
const std::vector<int32_t> kLengths = {30, 1, 7, 61, 2, 44, 16, 9};

AdamW clipping() {
  AdamW how;
  how.learning_rate = 1e-3f;
  how.clip_norm = 0.05f;  // far below the norms that are seen, so that these count
  return how;
}

PackedBatch documents_of(const PackedBatch& batch, const std::function<bool(size_t)>& wanted) {
  PackedBatch part;
  size_t begin = 0;
  for (size_t d = 0; d < batch.lengths.size(); ++d) {
    const size_t end = begin + batch.lengths[d];
    if (wanted(d)) {
      part.lengths.push_back(batch.lengths[d]);
      part.tokens.insert(part.tokens.end(), batch.tokens.begin() + begin, batch.tokens.begin() + end);
      for (auto lane :
           {&PackedBatch::weight, &PackedBatch::advantage, &PackedBatch::old_logprob, &PackedBatch::reference_logprob})
        (part.*lane).insert((part.*lane).end(), (batch.*lane).begin() + begin, (batch.*lane).begin() + end);
    }
    begin = end;
  }
  return part;
}

// Documents are dealt out in turn; where there are more ranks and passes than documents, some batches are empty.
Outcome train(const DecoderConfig& config, const Case& how) {
  TrainerOptions options;
  options.activation_checkpointing = how.checkpointing;
  const Tensors weights = random_weights(config);
  Outcome outcome{like(weights), like(weights), std::vector<double>(kSteps), {}};
  outcome.scored.resize(kLengths.size());
  CHECK(none_failed(on_mesh(config, sharded_mesh(how.size, how.stage, how.shard_size), options, [&](MeshRank& k) {
    const int r = k.mesh.rank();
    write_share(k, weights);
    for (int step = 0; step < kSteps; ++step) {
      const PackedBatch batch = random_batch(config, kLengths, 3 + step);
      for (int pass = 0; pass < how.passes; ++pass) {
        const int at = pass * how.size + r, of = how.passes * how.size;
        const PackedBatch part = documents_of(batch, [&](size_t d) { return static_cast<int>(d) % of == at; });
        k.trainer.accumulate(part, PolicyLoss{}, k.never, how.last && pass == how.passes - 1);
      }
      if (step == 0 && how.last && how.size == 1) k.parameters.complete_gradients(*k.stream);
      if (step == 0 && how.last) put_share(k, k.parameters.gradient(), outcome.gradient);
      const OptimiserResult result = k.trainer.optimise(clipping());
      CHECK(result.step == step + 1);
      if (r == 0) outcome.norm[step] = result.gradient_norm;
    }
    put_share(k, k.parameters.master(), outcome.weights);
    const PackedBatch batch = random_batch(config, kLengths, 99);
    const PackedBatch part =
        documents_of(batch, [&](size_t d) { return static_cast<int>(d) % how.size == r && d + 2 < kLengths.size(); });
    const LossResult scored = k.trainer.score(part, 1.0f, k.never);
    for (size_t d = r, begin = 0; d + 2 < kLengths.size(); begin += kLengths[d], d += how.size)
      outcome.scored[d] = {scored.logprob.begin() + begin, scored.logprob.begin() + begin + kLengths[d]};
  })));
  return outcome;
}

std::string text_of(const Case& c) {
  return std::to_string(c.size) + " ranks, stage " + std::to_string(c.stage) + ", groups of " +
         std::to_string(c.shard_size) + ", " + std::to_string(c.passes) + " passes";
}

}  // namespace

TEST(sharding_cuts_every_tensor_between_the_ranks) {
  for (const DecoderConfig& config : {tiny_config(true), odd_config(false), odd_config(true), qwen3_config()}) {
    const Layout whole(config);
    for (const int parts : {1, 2, 3, 8, 64}) {
      const Layout layout(config, parts);
      CHECK(layout.slices.size() == whole.slices.size() && layout.elements % (64 * parts) == 0);
      std::vector<int64_t> covered(layout.slices.size());
      for (int index = 0; index < parts; ++index) {
        const Share share(layout, index);
        CHECK(share.elements * parts == layout.elements);
        int64_t end = 0;
        for (const Fragment& f : share.fragments) {
          const NamedSlice& slice = layout.slices[f.slice];
          CHECK(f.begin == covered[f.slice] && f.offset >= end && f.offset + f.elements <= share.elements);
          covered[f.slice] += f.elements;
          end = f.offset + f.elements;
          if (parts == 1) CHECK(f.offset == slice.offset && f.elements == slice.elements());
        }
      }
      for (size_t i = 0; i < covered.size(); ++i) CHECK(covered[i] == layout.slices[i].elements());
      for (const Block& block : layout.blocks) CHECK(block.elements % (64 * parts) == 0);
    }
  }
}

// One pass a step: the sums over ranks are the same, number by number. A tied embedding adds the head's part before its
// own at stage 3, and after it else.
TEST(sharding_learns_what_ranks_that_hold_everything_do) {
  for (const DecoderConfig& config : {tiny_config(true), odd_config(false), odd_config(true), qwen3_config()}) {
    const Outcome alone = train(config, {1, 0, 1, 1, true});
    for (const int size : {2, 4}) {
      const Outcome whole = train(config, {size, 0, 0, 1, true});
      CHECK_NEAR(worst(whole.weights, alone.weights), 0.0, 1e-5, size, " ranks");
      for (const int stage : {1, 3}) {
        const Case how{size, stage, size, 1, true};
        const Outcome sharded = train(config, how);
        if (stage == 1 || !config.tie_word_embeddings) {
          CHECK(same(sharded.gradient, whole.gradient) && same(sharded.weights, whole.weights));
          CHECK(sharded.norm == whole.norm && sharded.scored == whole.scored);
        }
        for (int step = 0; step < kSteps; ++step)
          CHECK_NEAR(sharded.norm[step], alone.norm[step], 1e-5 * alone.norm[step], text_of(how));
        CHECK_NEAR(worst(sharded.gradient, alone.gradient), 0.0, 1e-5, text_of(how));
        CHECK_NEAR(worst(sharded.weights, alone.weights), 0.0, 1e-5, text_of(how));
        for (size_t d = 0; d < alone.scored.size(); ++d)
          for (size_t i = 0; i < alone.scored[d].size(); ++i)
            CHECK_NEAR(sharded.scored[d][i], alone.scored[d][i], 1e-4, text_of(how));
      }
    }
  }
}

TEST(sharding_takes_any_groups_and_passes) {
  for (const DecoderConfig& config : {odd_config(false), qwen3_config()}) {
    const Outcome alone = train(config, {1, 0, 1});
    for (const Case& how : {Case{4, 1, 2, 1}, Case{4, 3, 2, 1}, Case{4, 3, 2, 3}, Case{4, 1, 2, 3}, Case{3, 3, 3, 2},
                            Case{2, 3, 1, 2}, Case{2, 1, 1, 2}, Case{6, 3, 2, 2, false, true}}) {
      Case early = how;
      early.last = true;
      const Outcome a = train(config, how), b = train(config, early);
      CHECK(same(a.weights, b.weights) && a.norm == b.norm);
      CHECK_NEAR(worst(a.weights, alone.weights), 0.0, 1e-5, text_of(how));
      for (int step = 0; step < kSteps; ++step)
        CHECK_NEAR(a.norm[step], alone.norm[step], 1e-5 * alone.norm[step], text_of(how));
    }
  }
}

// What a rank holds at stage 3: its share of four flat buffers, and room for two layers and an edge.
TEST(sharding_lets_memory_fall_with_the_ranks) {
  struct Held {
    int64_t share, weights, gradients, moments;
  };
  const auto held = [](int layers, int size, int stage) {
    DecoderConfig config = tiny_config(false);
    config.num_hidden_layers = layers;
    Held first{};
    CHECK(none_failed(on_mesh(config, sharded_mesh(size, stage, size), {}, [&](MeshRank& k) {
      write_share(k, random_weights(config));
      k.trainer.accumulate(random_batch(config, {9, 20}, 1), PolicyLoss{}, k.never, true);
      k.trainer.optimise({});
      const Held mine{4 * k.parameters.elements(), k.device.held("weights"), k.device.held("gradients"),
                      k.device.held("moments")};
      if (k.mesh.rank() == 0) first = mine;
    })));
    return first;
  };
  Held small{}, large{}, whole = held(12, 1, 0);
  for (const int size : {1, 2, 4, 8}) {
    small = held(4, size, 3);
    large = held(12, size, 3);
    CHECK(large.moments == 2 * large.share && small.moments == 2 * small.share);
    // Beside the shares, rooms whose size the depth does not change.
    CHECK(large.weights - large.share == small.weights - small.share);
    CHECK(large.gradients - large.share == small.gradients - small.share);
    const int64_t padding = 4 * 64 * size * (2 * 12 + 3);
    CHECK(large.share * size >= whole.share && large.share * size <= whole.share + padding);
    const Held optimiser = held(12, size, 1);
    CHECK(optimiser.share == large.share && optimiser.moments == 2 * large.share);
    CHECK(optimiser.gradients == size * optimiser.share + optimiser.share);
  }
  const auto sum = [](const Held& h) { return h.weights + h.gradients + h.moments; };
  CHECK(sum(large) * 4 < sum(whole));  // of 8 ranks
}

TEST(sharding_names_a_gradient_that_is_not_finite_on_all_ranks) {
  for (const int stage : {1, 3}) {
    const DecoderConfig config = odd_config(false);
    const Tensors weights = random_weights(config);
    Tensors after = like(weights);
    const std::vector<std::string> failures = on_mesh(config, sharded_mesh(4, stage, 2), {}, [&](MeshRank& k) {
      write_share(k, weights);
      const PackedBatch batch = random_batch(config, {12, 5}, 1 + k.mesh.rank());
      k.trainer.accumulate(batch, PolicyLoss{}, k.never);
      // What one rank has collected of the second layer: its sum over the ranks, or its share of it.
      const Bucket bucket = k.parameters.buckets(1).front();
      if (k.mesh.rank() == 2) (stage == 1 ? bucket.whole : bucket.part).f32()[5] = INFINITY;
      const std::string failure = failure_of([&] { k.trainer.optimise({}); });
      CHECK(contains(failure, "NON_FINITE: optimiser step 1: the gradient of model.layers.1.self_attn.q_proj.weight"));
      // The mesh is whole: all go on from the weights as they were.
      put_share(k, k.parameters.master(), after);
      k.trainer.accumulate(batch, PolicyLoss{}, k.never, true);
      CHECK(k.trainer.optimise({}).step == 1);
    });
    CHECK(none_failed(failures) && same(after, weights));
  }
}

TEST(sharding_ends_on_all_ranks_when_one_fails) {
  const DecoderConfig config = tiny_config(false);
  const std::vector<std::string> failures = on_mesh(config, sharded_mesh(3, 3, 3), {}, [&](MeshRank& k) {
    write_share(k, random_weights(config));
    PackedBatch batch = random_batch(config, {12, 5}, 1);
    if (k.mesh.rank() == 1) batch.weight[3] = NAN;
    k.trainer.accumulate(batch, PolicyLoss{}, k.never, true);
    k.trainer.optimise({});
  });
  CHECK(contains(failures[1], "NON_FINITE: batch: weight of token 3"));
  for (const int r : {0, 2}) CHECK(contains(failures[r], "COMMUNICATOR") && contains(failures[r], "weight of token 3"));
}

}  // namespace tokenring
