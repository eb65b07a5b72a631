// A mesh of emulated GPUs over NCCL's double: the decoder learns what one GPU does, with data in parallel, and with
// documents that lie on two ranks.
#include <cmath>
#include <mutex>

#include "comm_rig.h"
#include "mesh_rig.h"

using namespace tokenring;

namespace {

// Heads for the plain kernels: their keys and values go around the ring.
DecoderConfig small_config() {
  DecoderConfig c = tiny_config(true);
  c.num_hidden_layers = 1;
  return c;
}

struct Step {
  double loss = 0, norm = 0;
  std::vector<float> weights;
};

// One step on a mesh of so many GPUs, each data group with its part of the documents.
Step step_on(const DecoderConfig& config, const std::vector<PackedBatch>& parts, MeshOptions options) {
  const auto& way = comm_rig::ways()[1];
  std::vector<float> weights;
  {
    Rig rig(config);
    rig.randomise(5);
    weights = rig.read(rig.parameters.master());
  }
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
        Parameters parameters(device, config);
        Trainer trainer(device, parameters, {}, &mesh);
        const auto stream = device.stream();
        std::atomic<bool> never{false};
        mesh.join();
        stream->copy_to_device(parameters.master().data, weights.data(), weights.size() * sizeof(float));
        parameters.publish(*stream);
        stream->synchronize();
        PolicyLoss loss;
        loss.scalars.objective = PolicyObjective::ppo_clip;
        loss.chunk_rows = 16;
        const LossResult result = trainer.accumulate(parts[mesh.data_index()], loss, never, true);
        AdamW how;
        how.learning_rate = 1e-2f;
        const OptimiserResult done = trainer.optimise(how);
        std::vector<float> values(weights.size());
        stream->copy_to_host(values.data(), parameters.master().data, values.size() * sizeof(float));
        stream->synchronize();
        std::lock_guard lock(mutex);
        step.loss += result.loss;
        if (r == 0) step.norm = done.gradient_norm;
        CHECK(r == 0 || step.norm == 0 || step.norm == done.gradient_norm);
        after[r] = std::move(values);
      });
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(none_failed(failures));
  for (const auto& each : after) CHECK(each == after[0]);
  step.weights = after[0];
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
  const DecoderConfig config = small_config();
  const auto [first, second, both] = some_batches(config);
  const Step alone = step_on(config, {both}, mesh_of(1));
  for (const ContextSchedule schedule : {ContextSchedule::ring, ContextSchedule::all_gather})
    for (const auto& [size, parts] : {std::pair{2, std::vector{both}}, {4, {first, second}}}) {
      const Step step = step_on(config, parts, mesh_of(size, 2, schedule));
      // Parts of an attention are rounded to bf16 where one GPU rounds the whole.
      CHECK_NEAR(step.loss, alone.loss, 0.01 * std::abs(alone.loss), size, " GPUs");
      CHECK_NEAR(step.norm, alone.norm, 0.02 * alone.norm, size, " GPUs");
      CHECK_NEAR(difference(step, alone), 0.0, 0.03, size, " GPUs");
    }
}
