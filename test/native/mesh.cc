// Training on the ranks of a mesh against one rank that holds every document.
#include "parallel/mesh.h"

#include <cmath>
#include <mutex>

#include "harness.h"
#include "mesh_rig.h"
#include "ops_fixture.h"

using namespace tokenring;

namespace {

PolicyLoss clipped() {
  PolicyLoss loss;
  loss.scalars.objective = PolicyObjective::ppo_clip;
  return loss;
}

PackedBatch part_of(const PackedBatch& batch, const std::vector<size_t>& documents) {
  PackedBatch part;
  size_t begin = 0;
  for (size_t d = 0; d < batch.lengths.size(); ++d) {
    const size_t end = begin + batch.lengths[d];
    if (std::find(documents.begin(), documents.end(), d) != documents.end()) {
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

struct Outcome {
  std::vector<float> gradient, weights;
  std::vector<std::vector<float>> logprob;  // by document
  double loss = 0, norm = 0;
};

void split(const PackedBatch& batch, const std::vector<size_t>& documents, const LossResult& result, Outcome& to) {
  size_t begin = 0;
  for (size_t i = 0; i < documents.size(); ++i) {
    const size_t end = begin + batch.lengths[i];
    to.logprob[documents[i]] = {result.logprob.begin() + begin, result.logprob.begin() + end};
    begin = end;
  }
  to.loss += result.loss;
}

const std::vector<int32_t> kLengths = {30, 1, 7, 61, 2, 44, 16, 9, 25};

std::vector<float> some_weights(const DecoderConfig& config) {
  Rig rig(config);
  rig.randomise(5);
  return rig.read(rig.parameters.master());
}

Outcome alone(const DecoderConfig& config, const PackedBatch& batch, const PolicyLoss& loss, const AdamW& how) {
  Rig rig(config);
  rig.randomise(5);
  Outcome outcome;
  outcome.logprob.resize(batch.lengths.size());
  std::vector<size_t> every;
  for (size_t d = 0; d < batch.lengths.size(); ++d) every.push_back(d);
  split(batch, every, rig.trainer.accumulate(batch, loss, rig.never), outcome);
  outcome.gradient = rig.gradient();
  outcome.norm = rig.trainer.optimise(how).gradient_norm;
  outcome.weights = rig.read(rig.parameters.master());
  return outcome;
}

// Documents are dealt out in turn, in two micro-batches a rank; the last rank of many gets none in the second.
Outcome on_ranks(const DecoderConfig& config, const PackedBatch& batch, const PolicyLoss& loss, const AdamW& how,
                 int size, bool last) {
  const std::vector<float> weights = some_weights(config);
  Outcome outcome;
  outcome.logprob.resize(batch.lengths.size());
  std::mutex mutex;
  std::vector<std::vector<float>> all_weights(size);
  CHECK(none_failed(on_mesh(config, mesh_of(size), {}, [&](MeshRank& k) {
    const int r = k.mesh.rank();
    k.write(weights);
    for (const int half : {0, 1}) {
      std::vector<size_t> documents;
      for (size_t d = 0; d < batch.lengths.size(); ++d)
        if (static_cast<int>(d) % size == r && (d < batch.lengths.size() / 2) == (half == 0)) documents.push_back(d);
      const PackedBatch part = part_of(batch, documents);
      const LossResult result = k.trainer.accumulate(part, loss, k.never, last && half == 1);
      std::lock_guard lock(mutex);
      split(part, documents, result, outcome);
    }
    if (size == 1) k.parameters.complete_gradients(*k.stream);
    k.stream->synchronize();
    if (last && r == size - 1) outcome.gradient = k.read(k.parameters.gradient());
    const OptimiserResult result = k.trainer.optimise(how);
    CHECK(result.step == 1 && result.version == k.parameters.version());
    std::lock_guard lock(mutex);
    if (r == 0) outcome.norm = result.gradient_norm;
    all_weights[r] = k.read(k.parameters.master());
  })));
  for (const std::vector<float>& each : all_weights) CHECK(fixture::same_bits(each, all_weights[0]));
  outcome.weights = all_weights[0];
  return outcome;
}

}  // namespace

TEST(mesh_of_data_ranks_learns_what_one_rank_does) {
  AdamW how;
  how.learning_rate = 1e-3f;
  for (const DecoderConfig& config : {tiny_config(true), tiny_config(false), qwen3_config()}) {
    const PackedBatch batch = random_batch(config, kLengths, 3);
    const Outcome expected = alone(config, batch, clipped(), how);
    Rig rig(config);
    for (const int size : {1, 2, 4, 8}) {
      const Outcome early = on_ranks(config, batch, clipped(), how, size, true);
      const Outcome late = on_ranks(config, batch, clipped(), how, size, false);
      // Rows know nothing of the ranks; sums over tokens go in another order.
      for (size_t d = 0; d < kLengths.size(); ++d) CHECK(fixture::same_bits(early.logprob[d], expected.logprob[d]));
      CHECK_NEAR(early.loss, expected.loss, 1e-6 * std::abs(expected.loss), size, " ranks");
      CHECK_NEAR(early.norm, expected.norm, 1e-5 * expected.norm, size, " ranks");
      CHECK_NEAR(worst_tensor(rig.parameters, early.gradient, expected.gradient), 0.0, 1e-5, size, " ranks");
      CHECK(fixture::same_bits(early.weights, late.weights) && early.norm == late.norm);
      if (size == 1) {
        CHECK(fixture::same_bits(early.weights, expected.weights) && early.norm == expected.norm);
        CHECK(fixture::same_bits(early.gradient, expected.gradient));
      }
    }
  }
}

TEST(mesh_groups_are_those_of_its_layout) {
  MeshOptions options = mesh_of(8, 4, ContextSchedule::two_level, 2);
  options.shard = 1;
  options.shard_size = 4;
  options.id = shared_memory().make_id();
  std::vector<std::thread> threads;
  for (int r = 0; r < 8; ++r)
    threads.emplace_back([&, r] {
      MeshOptions own = options;
      own.rank = r;
      const auto device = make_cpu_device(1);
      Mesh mesh(*device, shared_memory(), own);
      mesh.join();
      CHECK(mesh.context_index() == r % 4 && mesh.data_index() == r / 4);
      // Every rank adds its own bit: who is in the group shows.
      const auto members = [&](Communicator* group, Stream& stream) {
        std::vector<int32_t> x{1 << r};
        group->all_reduce(stream, tensor(x.data(), DType::i32, {1}), Reduction::sum);
        stream.synchronize();
        return x[0];
      };
      CHECK(members(&mesh.world(), mesh.gradient_stream()) == 0xFF);
      CHECK(members(mesh.context(), mesh.context_stream()) == 15 << r / 4 * 4);
      CHECK(members(mesh.node(), mesh.context_stream()) == 3 << r / 2 * 2);
      CHECK(members(mesh.shard(), mesh.gradient_stream()) == 15 << r / 4 * 4);
      CHECK(members(mesh.replica(), mesh.gradient_stream()) == 0x11 << r % 4);
    });
  for (std::thread& thread : threads) thread.join();
}

TEST(mesh_refuses_what_cannot_be) {
  const auto bad = [](auto change) {
    MeshOptions options = mesh_of(4);
    change(options);
    return failure_of([&] { options.check(); });
  };
  CHECK(contains(bad([](MeshOptions& o) { o.rank = 4; }), "INVALID_ARGUMENT: mesh: rank is 4"));
  CHECK(contains(bad([](MeshOptions& o) { o.context_parallel = 3; }), "contextParallel is 3; it must divide the 4"));
  CHECK(contains(bad([](MeshOptions& o) {
                   o.context_parallel = 4, o.context_schedule = ContextSchedule::two_level, o.ranks_per_node = 3;
                 }),
                 "ranksPerNode is 3; of two_level it must divide contextParallel, 4, or be a multiple"));
  CHECK(contains(bad([](MeshOptions& o) { o.shard = 2; }), "shard is 2; it must be 0, 1 or 3"));
  CHECK(contains(bad([](MeshOptions& o) { o.shard_size = 3; }), "shardSize is 3; it must divide the 4"));
  CHECK(contains(bad([](MeshOptions& o) { o.timeout = std::chrono::milliseconds(0); }), "timeout is 0"));
  // Ranks that were given different meshes.
  MeshOptions options = mesh_of(2);
  options.id = shared_memory().make_id();
  std::vector<std::string> failures(2);
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r)
    threads.emplace_back([&, r] {
      MeshOptions own = options;
      own.rank = r;
      own.context_parallel = 1 + r;
      const auto device = make_cpu_device(1);
      failures[r] = failure_of([&] { Mesh(*device, shared_memory(), own).join(); });
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& text : failures)
    CHECK(contains(text, "COMMUNICATOR") && contains(text, "contextParallel: rank 0 has 1, rank 1 has 2"));
}

namespace {

struct Steps {
  std::vector<std::string> failures;
  std::vector<std::vector<float>> before, after;  // weights by rank
};

// Every rank accumulates and optimises; `disturb` changes what one of them does.
Steps disturbed(int size, bool last, const std::function<void(MeshRank&, PackedBatch&, AdamW&)>& disturb) {
  const DecoderConfig config = tiny_config(true);
  const std::vector<float> weights = some_weights(config);
  Steps steps;
  steps.before.resize(size);
  steps.after.resize(size);
  steps.failures = on_mesh(config, mesh_of(size), {}, [&](MeshRank& k) {
    k.write(weights);
    PackedBatch batch = random_batch(config, {20, 13}, 10 + k.mesh.rank());
    AdamW how;
    steps.before[k.mesh.rank()] = k.read(k.parameters.master());
    struct Read {
      MeshRank& k;
      std::vector<float>& to;
      ~Read() { to = k.read(k.parameters.master()); }
    } const read{k, steps.after[k.mesh.rank()]};
    disturb(k, batch, how);
    k.trainer.accumulate(batch, clipped(), k.never, last);
    k.trainer.optimise(how);
  });
  return steps;
}

}  // namespace

TEST(mesh_failure_of_one_rank_is_one_of_all_and_weights_stay) {
  for (const bool last : {true, false})
    for (const int size : {2, 4}) {
      const Steps number = disturbed(size, last, [](MeshRank& k, PackedBatch& batch, AdamW&) {
        if (k.mesh.rank() == 1) batch.advantage[5] = NAN, batch.weight[5] = 1;
      });
      for (int r = 0; r < size; ++r) {
        CHECK(contains(number.failures[r], r == 1 ? "NON_FINITE: batch: advantage of token 5" : "COMMUNICATOR"));
        CHECK(contains(number.failures[r], "advantage of token 5"));
        CHECK(fixture::same_bits(number.before[r], number.after[r]));
      }
      // The loss is not finite, which shows only when everything has been summed.
      const Steps loss = disturbed(size, last, [](MeshRank& k, PackedBatch& batch, AdamW&) {
        if (k.mesh.rank() == 0) batch.old_logprob[5] = -3e38f, batch.advantage[5] = -3e38f, batch.weight[5] = 1;
      });
      for (int r = 0; r < size; ++r) {
        CHECK(contains(loss.failures[r], r == 0 ? "NON_FINITE: the loss of token 5" : "COMMUNICATOR"));
        CHECK(contains(loss.failures[r], "the loss of token 5"));
        CHECK(fixture::same_bits(loss.before[r], loss.after[r]));
      }
      const Steps aborted = disturbed(size, last, [last](MeshRank& k, PackedBatch& batch, AdamW&) {
        if (k.mesh.rank() != 1) return;
        k.never = true;
        k.trainer.accumulate(batch, clipped(), k.never, last);
      });
      const Steps left = disturbed(size, last, [](MeshRank& k, PackedBatch&, AdamW&) {
        if (k.mesh.rank() == 1) fail("INTERNAL", "gone");
      });
      const Steps options = disturbed(size, last, [](MeshRank& k, PackedBatch&, AdamW& how) {
        if (k.mesh.rank() == 1) how.learning_rate = 0.5f;
      });
      const Steps diverged = disturbed(size, last, [](MeshRank& k, PackedBatch&, AdamW&) {
        std::vector<float> weights = k.read(k.parameters.master());
        if (k.mesh.rank() == 1) weights[7] += 1;
        k.write(weights);
      });
      for (int r = 0; r < size; ++r) {
        CHECK(contains(aborted.failures[r], r == 1 ? "ABORTED" : "COMMUNICATOR"));
        CHECK(r == 1 || contains(aborted.failures[r], "rank 1"));
        CHECK(r == 1 || contains(left.failures[r], "rank 1, which has left"));
        CHECK(contains(options.failures[r], "disagree about learningRate: rank 0 has 1e-06, rank 1 has 0.5"));
        CHECK(contains(diverged.failures[r], "disagree about the norm of the weights"));
        CHECK(fixture::same_bits(aborted.before[r], aborted.after[r]));
        CHECK(fixture::same_bits(options.before[r], options.after[r]));
      }
    }
}

TEST(mesh_gradients_that_are_not_finite_fail_alike_and_break_nothing) {
  const DecoderConfig config = tiny_config(true);
  const std::vector<float> weights = some_weights(config);
  for (const bool last : {true, false}) {
    CHECK(none_failed(on_mesh(config, mesh_of(3), {}, [&](MeshRank& k) {
      k.write(weights);
      PackedBatch batch = random_batch(config, {20, 13}, 10 + k.mesh.rank());
      // Finite, but not their squares.
      for (float& weight : batch.weight) weight *= 1e30f;
      k.trainer.accumulate(batch, PolicyLoss{}, k.never, last);
      CHECK(contains(failure_of([&] { k.trainer.optimise({}); }), "NON_FINITE: optimiser step 1"));
      CHECK(fixture::same_bits(k.read(k.parameters.master()), weights));
      batch = random_batch(config, {20, 13}, 10 + k.mesh.rank());
      k.trainer.accumulate(batch, clipped(), k.never, last);
      CHECK(k.trainer.optimise({}).step == 1);
    })));
  }
}

TEST(mesh_sums_once_a_step) {
  const DecoderConfig config = tiny_config(true);
  const std::vector<float> weights = some_weights(config);
  CHECK(none_failed(on_mesh(config, mesh_of(2), {}, [&](MeshRank& k) {
    k.write(weights);
    const PackedBatch batch = random_batch(config, {20, 13}, 10 + k.mesh.rank());
    k.trainer.accumulate(batch, clipped(), k.never, true);
    k.trainer.drop_gradients();
    k.trainer.accumulate(batch, clipped(), k.never, true);
    const double norm = k.trainer.optimise({}).gradient_norm;
    CHECK(norm > 0);
    k.trainer.accumulate(PackedBatch{}, clipped(), k.never, false);
    k.trainer.accumulate(PackedBatch{}, clipped(), k.never, true);
    CHECK(k.trainer.optimise({}).gradient_norm == 0);
  })));
  const auto failures = on_mesh(config, mesh_of(2), {}, [&](MeshRank& k) {
    k.write(weights);
    const PackedBatch batch = random_batch(config, {20, 13}, 10 + k.mesh.rank());
    k.trainer.accumulate(batch, clipped(), k.never, true);
    k.trainer.accumulate(batch, clipped(), k.never, true);
  });
  for (const std::string& text : failures) CHECK(contains(text, "summed over the ranks already"));
}
