// A mesh of emulated GPUs over NCCL's double: the decoder learns what one GPU does, with data in parallel, and with
// documents that lie on two ranks. And what its groups call their ranks, over NCCL and over shared memory.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <thread>

#include "comm_rig.h"
#include "mesh_rig.h"

using namespace tokenring;

namespace {

// Heads for the plain kernels.
DecoderConfig small_config() {
  DecoderConfig c = tiny_config(true);
  c.num_hidden_layers = 1;
  return c;
}

// Heads for the Hopper kernels.
DecoderConfig hopper_config() {
  DecoderConfig c = small_config();
  c.head_dim = 64;
  return c;
}

struct Step {
  double loss = 0, norm = 0;
  std::vector<float> weights;
};

// One step on a mesh of so many GPUs, each data group with its part of the documents.
Step step_on(const DecoderConfig& config, const std::vector<PackedBatch>& parts, MeshOptions options,
             TrainerOptions of_trainer = {}, bool on_host = false) {
  const auto& way = comm_rig::ways()[1];
  Rig rig(config);
  rig.randomise(5);
  const std::vector<float> weights = rig.read(rig.parameters.master());
  options.id = way.transport.make_id();
  Step step;
  std::mutex mutex;
  std::vector<std::string> failures(static_cast<size_t>(options.size));
  std::vector<std::vector<float>> after(failures.size());
  std::vector<std::thread> threads;
  for (int r = 0; r < options.size; ++r)
    threads.emplace_back([&, r] {
      MeshOptions own = options;
      own.rank = r;
      failures[r] = failure_of([&] {
        comm_rig::Place place(true, static_cast<uint64_t>(r) + 1);
        Device& device = place.device();
        Mesh mesh(device, way.transport, own);
        Parameters parameters(device, config, &mesh, MomentForm::float32, on_host);
        Trainer trainer(device, parameters, of_trainer, &mesh);
        const auto stream = device.stream();
        std::atomic<bool> never{false};
        mesh.join();
        // This rank's share of all weights, there and back.
        std::vector<float> share(static_cast<size_t>(parameters.elements()));
        const auto each_part = [&](const auto& copy) {
          for (const Fragment& f : parameters.fragments())
            copy(rig.parameters.slices()[f.slice].offset + f.begin, f.offset, f.elements);
        };
        each_part([&](int64_t whole, int64_t own, int64_t count) {
          std::copy_n(weights.begin() + whole, count, share.begin() + own);
        });
        stream->copy_to_device(parameters.master().data, share.data(), share.size() * sizeof(float));
        parameters.publish(*stream);
        stream->synchronize();
        PolicyLoss loss;
        loss.scalars.objective = PolicyObjective::ppo_clip;
        loss.chunk_rows = 16;
        const LossResult result = trainer.accumulate(parts[mesh.data_index()], loss, never, true);
        AdamW how;
        how.learning_rate = 1e-2f;
        const OptimiserResult done = trainer.optimise(how);
        stream->copy_to_host(share.data(), parameters.master().data, share.size() * sizeof(float));
        stream->synchronize();
        std::vector<float> values(weights.size());  // zero between the tensors
        for (const NamedSlice& slice : rig.parameters.slices())
          std::fill_n(values.begin() + slice.offset, slice.elements(), NAN);
        each_part([&](int64_t whole, int64_t own, int64_t count) {
          std::copy_n(share.begin() + own, count, values.begin() + whole);
        });
        std::lock_guard lock(mutex);
        step.loss += result.loss;
        if (r == 0) step.norm = done.gradient_norm;
        CHECK(r == 0 || step.norm == 0 || step.norm == done.gradient_norm);
        after[r] = std::move(values);
      });
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(none_failed(failures));
  // Ranks that hold the same hold the same bits.
  step.weights = after[0];
  for (const auto& each : after)
    for (size_t i = 0; i < each.size(); ++i) {
      if (std::isnan(step.weights[i])) step.weights[i] = each[i];
      CHECK(std::isnan(each[i]) || each[i] == step.weights[i]);
    }
  comm_rig::check_faults();
  return step;
}

// Change of the weights against another's, relative.
double difference(const Step& a, const Step& b) { return relative_l2(a.weights, b.weights); }

struct Batches {
  PackedBatch first, second, both;
};

Batches some_batches(const DecoderConfig& config) {
  Batches all{random_batch(config, {13, 5}, 3), random_batch(config, {9, 11, 2}, 4), {}};
  all.both = all.first;
  all.both.lengths.insert(all.both.lengths.end(), all.second.lengths.begin(), all.second.lengths.end());
  all.both.tokens.insert(all.both.tokens.end(), all.second.tokens.begin(), all.second.tokens.end());
  for (auto lane :
       {&PackedBatch::weight, &PackedBatch::advantage, &PackedBatch::old_logprob, &PackedBatch::reference_logprob})
    (all.both.*lane).insert((all.both.*lane).end(), (all.second.*lane).begin(), (all.second.*lane).end());
  return all;
}

}  // namespace

TEST(mesh_nccl_of_data_ranks_learns_what_one_gpu_does) {
  const DecoderConfig config = small_config();
  const auto [first, second, both] = some_batches(config);
  const PackedBatch none;
  const Step alone = step_on(config, {both}, mesh_of(1));
  for (const auto& [size, parts] : {std::pair{2, std::vector{first, second}}, {4, {first, second, none, none}}}) {
    const Step step = step_on(config, parts, mesh_of(size));
    // Activations are bf16 and do not know the ranks; sums of gradients are float32, in another order.
    CHECK_NEAR(step.loss, alone.loss, 1e-5 * std::abs(alone.loss), size, " GPUs");
    CHECK_NEAR(step.norm, alone.norm, 1e-4 * alone.norm, size, " GPUs");
    CHECK_NEAR(difference(step, alone), 0.0, 1e-3, size, " GPUs");
  }
}

// Keys and values, and their gradients, go between the GPUs of a context group, on a stream and a communicator of their
// own beside those of the gradients.
TEST(mesh_nccl_of_context_ranks_learns_what_one_gpu_does) {
  for (const DecoderConfig& config : {small_config(), hopper_config()}) {
    const auto [first, second, both] = some_batches(config);
    const Step alone = step_on(config, {both}, mesh_of(1));
    const auto compare = [&, &both = both](const std::vector<PackedBatch>& parts, const MeshOptions& mesh) {
      const Step step = step_on(config, parts, mesh);
      // What is merged is rounded to bf16 after another sum.
      CHECK_NEAR(step.loss, alone.loss, 0.01 * std::abs(alone.loss), mesh.size, " GPUs");
      CHECK_NEAR(step.norm, alone.norm, 0.02 * alone.norm, mesh.size, " GPUs");
      CHECK_NEAR(difference(step, alone), 0.0, 0.03, mesh.size, " GPUs");
    };
    for (const ContextSchedule schedule : {ContextSchedule::ring, ContextSchedule::all_gather})
      for (const auto& [size, parts] : {std::pair{2, std::vector{both}}, {4, {first, second}}})
        compare(parts, mesh_of(size, 2, schedule));
    compare({both}, mesh_of(4, 4, ContextSchedule::two_level, 2));
  }
}

// Parameters gathered in bf16 and gradients scattered over NCCL, with documents on two GPUs and without.
TEST(mesh_nccl_of_sharded_ranks_learns_what_one_gpu_does) {
  const DecoderConfig config = small_config();
  const auto [first, second, both] = some_batches(config);
  const PackedBatch none;
  const Step alone = step_on(config, {both}, mesh_of(1));
  for (const int stage : {1, 3})
    for (const int shard_size : {2, 4}) {
      MeshOptions mesh = mesh_of(4);
      mesh.shard = stage;
      mesh.shard_size = shard_size;
      const Step step = step_on(config, {first, second, none, none}, mesh);
      CHECK_NEAR(step.loss, alone.loss, 1e-5 * std::abs(alone.loss), "ZeRO-", stage, " over ", shard_size);
      CHECK_NEAR(step.norm, alone.norm, 1e-4 * alone.norm, "ZeRO-", stage, " over ", shard_size);
      CHECK_NEAR(difference(step, alone), 0.0, 1e-3, "ZeRO-", stage, " over ", shard_size);
      mesh.context_parallel = 2;
      const Step shared = step_on(config, {first, second}, mesh);
      CHECK_NEAR(shared.loss, alone.loss, 0.01 * std::abs(alone.loss), "ZeRO-", stage, ", contexts of two");
      CHECK_NEAR(difference(shared, alone), 0.0, 0.03, "ZeRO-", stage, ", contexts of two");
    }
}

// A rank that is missed in one of its groups is named by its number in the mesh, which a person can look up.
TEST(mesh_groups_name_their_ranks_by_their_numbers_in_the_mesh) {
  struct Missed {
    const char* group;
    Communicator* (*of)(Mesh&);
    int waits;
    const char* words;
  };
  const Missed cases[] = {
      {"context", [](Mesh& mesh) { return mesh.context(); }, 6,
       "rank 6 of 8 (rank 2 of its context group, ranks 4 to 7)"},
      {"node", [](Mesh& mesh) { return mesh.node(); }, 4, "rank 4 of 8 (rank 0 of its node, ranks 4 and 5)"},
      {"shard", [](Mesh& mesh) { return mesh.shard(); }, 4, "rank 4 of 8 (rank 0 of its shard group, ranks 4 and 5)"},
      {"replica", [](Mesh& mesh) { return mesh.replica(); }, 7,
       "rank 7 of 8 (rank 3 of its replica group, ranks 1, 3, ..., 7)"},
  };
  for (const comm_rig::Way& way : comm_rig::ways())
    for (const Missed& one : cases) {
      MeshOptions options = mesh_of(8, 4, ContextSchedule::two_level, 2);
      options.shard = 1;
      options.shard_size = 2;
      options.id = way.transport.make_id();
      std::vector<std::string> failures(8);
      std::vector<std::thread> threads;
      std::atomic<int> joined{0};
      for (int r = 0; r < 8; ++r)
        threads.emplace_back([&, r] {
          MeshOptions own = options;
          own.rank = r;
          failures[r] = failure_of([&] {
            comm_rig::Place place(way.gpu, static_cast<uint64_t>(r) + 1);
            Mesh mesh(place.device(), way.transport, own);
            mesh.join();
            // One that left earlier would be missed by those that still join.
            ++joined;
            for (int ms = 0; joined < 8 && ms < 60'000; ++ms) std::this_thread::sleep_for(std::chrono::milliseconds(1));
            if (r != one.waits) return;  // rank 5 among them
            one.of(mesh)->barrier(mesh.context_stream());
            mesh.context_stream().synchronize();
          });
        });
      for (std::thread& thread : threads) thread.join();
      for (int r = 0; r < 8; ++r) CHECK(failures[r].empty() == (r != one.waits));
      // Which of those that have left it has missed first is for timing to say.
      const std::string& said = failures[one.waits];
      CHECK(contains(said, "COMMUNICATOR") &&
            contains(said, std::string(one.words) + " waits in barrier #1 for rank "));
      const size_t at = said.find("for rank ");
      const int named = at == std::string::npos ? -1 : std::stoi(said.substr(at + 9));
      const std::string group = one.group;
      CHECK(named != one.waits && named >= (group == "replica" ? 1 : 4) && named <= 7);
      CHECK(group != "replica" || named % 2 == 1);
      CHECK((group != "node" && group != "shard") || named == 5);
    }
}

// Masters in the host's memory are gathered from there, and checkpoints leave while keys go around.
TEST(mesh_nccl_of_ranks_that_offload_has_the_bits_of_ranks_that_do_not) {
  DecoderConfig config = small_config();
  config.num_hidden_layers = 3;
  const auto [first, second, both] = some_batches(config);
  for (const int stage : {0, 1, 3})
    for (const int context : {1, 2}) {
      MeshOptions mesh = mesh_of(2, context);
      mesh.shard = stage;
      const std::vector<PackedBatch> parts = context == 2 ? std::vector{both} : std::vector{first, second};
      TrainerOptions options{.activation_checkpointing = true};
      const Step here = step_on(config, parts, mesh, options);
      options.offload_checkpoints = true;
      options.optimiser_part = 4096;
      const Step away = step_on(config, parts, mesh, options, true);
      CHECK(away.norm == here.norm && away.loss == here.loss);
      CHECK(std::equal(away.weights.begin(), away.weights.end(), here.weights.begin(), here.weights.end(),
                       [](float a, float b) { return a == b; }));
    }
}
