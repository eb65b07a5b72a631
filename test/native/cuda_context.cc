// Context parallelism on the CUDA backend: two processes, each with an emulated GPU, over shared memory.
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "decoder_rig.h"
#include "emulator/runtime.h"
#include "harness.h"
#include "parallel/mesh.h"

namespace tokenring {
namespace {

constexpr int kRanks = 2;

// What a rank has to tell: its lanes, its loss and, of rank 0, the gradients.
struct Told {
  std::vector<float> logprob, gradient;
  float loss = 0;
};

void send(int pipe, const std::vector<float>& values) {
  const size_t count = values.size(), bytes = count * sizeof(float);
  bool sent = write(pipe, &count, sizeof(count)) == static_cast<ssize_t>(sizeof(count));
  for (size_t at = 0; sent && at < bytes;) {
    const ssize_t n = write(pipe, reinterpret_cast<const char*>(values.data()) + at, bytes - at);
    sent = n > 0;
    at += static_cast<size_t>(n);
  }
  if (!sent) _exit(3);
}

std::vector<float> receive(int pipe) {
  size_t count = 0;
  if (read(pipe, &count, sizeof(count)) != static_cast<ssize_t>(sizeof(count))) return {};
  std::vector<float> values(count);
  for (size_t at = 0, bytes = count * sizeof(float); at < bytes;) {
    const ssize_t n = read(pipe, reinterpret_cast<char*>(values.data()) + at, bytes - at);
    if (n <= 0) return {};
    at += static_cast<size_t>(n);
  }
  return values;
}

// In a process of its own.
void run_rank(const DecoderConfig& config, const PackedBatch& batch, const PolicyLoss& loss, MeshOptions options,
              int pipe) {
  emulator::Emulation gpu(1 + static_cast<uint64_t>(options.rank));
  const auto device = gpu.device();
  Mesh mesh(*device, shared_memory(), options);
  mesh.join();
  Parameters parameters(*device, config);
  Trainer trainer(*device, parameters, {}, &mesh);
  const auto stream = device->stream();
  Rig like(config);
  like.randomise(3, 0.1);
  const std::vector<float> weights = like.read(like.parameters.master());
  stream->copy_to_device(parameters.master().data, weights.data(), weights.size() * sizeof(float));
  parameters.publish(*stream);
  const std::atomic<bool> never{false};
  const LossResult result = trainer.accumulate(batch, loss, never);
  std::vector<float> gradient(weights.size());
  parameters.complete_gradients(*stream);
  stream->copy_to_host(gradient.data(), parameters.gradient().data, gradient.size() * sizeof(float));
  stream->synchronize();
  send(pipe, {static_cast<float>(result.loss)});
  send(pipe, result.logprob);
  send(pipe, gradient);
  mesh.leave();
}

Told on_ranks(const DecoderConfig& config, const PackedBatch& batch, const PolicyLoss& loss, ContextSchedule schedule) {
  MeshOptions options;
  options.id = shared_memory().make_id();
  options.size = options.context_parallel = kRanks;
  options.context_schedule = schedule;
  options.timeout = std::chrono::milliseconds(120'000);
  int pipes[kRanks][2];
  pid_t children[kRanks];
  for (int r = 0; r < kRanks; ++r) {
    CHECK(pipe(pipes[r]) == 0);
    options.rank = r;
    std::cout.flush();
    children[r] = fork();
    if (children[r] != 0) continue;
    try {
      run_rank(config, batch, loss, options, pipes[r][1]);
    } catch (const std::exception& error) {
      std::cout << "  rank " << r << ": " << error.what() << std::endl;
      _exit(1);
    }
    _exit(0);
  }
  Told all{std::vector<float>(batch.tokens.size()), {}, 0};
  for (int r = 0; r < kRanks; ++r) {
    close(pipes[r][1]);
    const std::vector<float> sum = receive(pipes[r][0]), logprob = receive(pipes[r][0]);
    const std::vector<float> gradient = receive(pipes[r][0]);
    close(pipes[r][0]);
    int status = -1;
    waitpid(children[r], &status, 0);
    CHECK(status == 0);
    if (sum.empty() || logprob.size() != all.logprob.size()) continue;
    all.loss += sum[0];
    for (size_t i = 0; i < logprob.size(); ++i) all.logprob[i] += logprob[i];
    all.gradient.resize(gradient.size());
    for (size_t i = 0; i < gradient.size(); ++i) all.gradient[i] += gradient[i];
  }
  return all;
}

TEST(cuda_context_ranks_learn_what_one_rank_does) {
  DecoderConfig hopper = tiny_config(false);
  hopper.hidden_size = 64;
  hopper.head_dim = 64;
  for (const DecoderConfig& config : {hopper, qwen3_config()}) {
    PolicyLoss loss;
    loss.scalars.objective = PolicyObjective::gspo;
    Rig cpu(config);
    cpu.randomise(3, 0.1);
    PackedBatch batch = random_batch(config, {21, 1, 40, 3}, 5);
    set_old_logprobs(batch, cpu.trainer.score(batch, 1.0f, cpu.never).logprob, loss.scalars, 7);
    const LossResult expected = cpu.trainer.accumulate(batch, loss, cpu.never);
    const std::vector<float> gradient = cpu.gradient();
    for (const ContextSchedule schedule : {ContextSchedule::ring, ContextSchedule::all_gather}) {
      const Told got = on_ranks(config, batch, loss, schedule);
      // As of one rank on CUDA against the CPU: see cuda_backend.cc.
      for (size_t i = 0; i < expected.logprob.size(); ++i) CHECK_NEAR(got.logprob[i], expected.logprob[i], 0.03);
      CHECK_NEAR(got.loss, expected.loss, 0.03 * std::abs(expected.loss) + 0.03);
      CHECK(relative_l2(got.gradient, gradient) < 0.02);
    }
  }
}

}  // namespace
}  // namespace tokenring
