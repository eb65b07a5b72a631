// Checkpoints and the optimiser's state in the host's memory, on the emulated GPU: the bits of a step that has all of
// it on the device, in less of its memory; and each wait for a copy is missed where it is left out.
#include <cstring>
#include <functional>
#include <map>

#include "core/moment_codes.h"
#include "cuda/device.h"
#include "decoder_rig.h"
#include "emulator/runtime.h"
#include "folder.h"
#include "harness.h"
#include "model/checkpoint.h"
#include "parallel/mesh.h"

namespace tokenring {
namespace {

using emulator::Emulation;
using emulator::Order;

// Heads for the Hopper kernels, with biases, the head apart; for the plain ones, normed, the head tied.
DecoderConfig deep_config(bool hopper) {
  DecoderConfig c = hopper ? tiny_config(false) : qwen3_config();
  if (hopper) c.hidden_size = 64;
  c.head_dim = hopper ? 64 : 16;
  c.num_hidden_layers = 4;
  return c;
}

struct How {
  MomentForm moments = MomentForm::float32;
  bool checkpoints = false, optimiser = false;
};

// A few parts, of which the last is shorter.
constexpr int64_t kPart = 24 * kMomentBlock;

TrainerOptions options_of(const How& how) {
  TrainerOptions options{.activation_checkpointing = true};
  options.offload_checkpoints = how.checkpoints;
  options.optimiser_part = kPart;
  return options;
}

using Bytes = std::vector<std::byte>;

Bytes bytes_of(Stream& stream, Tensor tensor) {
  Bytes bytes(tensor ? tensor.bytes() : 0);
  if (!tensor) return bytes;
  stream.copy_to_host(bytes.data(), tensor.data, bytes.size());
  stream.synchronize();
  return bytes;
}

// Masters, moments and their scales.
std::vector<Bytes> state_of(Parameters& parameters, Stream& stream) {
  const OptimiserState s = parameters.optimiser_state();
  std::vector<Bytes> all;
  for (const Tensor& tensor : {s.weight, s.first_moment, s.second_moment, s.first_scale, s.second_scale})
    all.push_back(bytes_of(stream, tensor));
  return all;
}

struct Result {
  std::vector<Bytes> state;
  std::vector<float> logprob;
  std::vector<double> norm;
  bool operator==(const Result&) const = default;
};

Result train(Device& device, const DecoderConfig& config, const How& how, Mesh* mesh = nullptr) {
  Parameters parameters(device, config, mesh, how.moments, how.optimiser);
  Trainer trainer(device, parameters, options_of(how), mesh);
  const auto stream = device.stream();
  const std::atomic<bool> never{false};
  initialise(parameters, *stream, {0.1f, 3, 0.0f});
  Result result;
  AdamW adamw;
  adamw.learning_rate = 1e-2f;
  for (int step = 0; step < 2; ++step) {
    trainer.accumulate(random_batch(config, {21, 1, 40}, 5 + step), PolicyLoss{}, never);
    // The second pass of a step finds what the first has put on the host.
    trainer.accumulate(random_batch(config, {30}, 7 + step), PolicyLoss{}, never, step == 0);
    result.norm.push_back(trainer.optimise(adamw).gradient_norm);
  }
  result.logprob = trainer.score(random_batch(config, {9, 17}, 8), 1.0f, never).logprob;
  result.state = state_of(parameters, *stream);
  return result;
}

Result train_alone(const DecoderConfig& config, const How& how, uint64_t seed, Order order = Order::drawn) {
  Emulation gpu(seed);
  gpu.order(order);
  const auto device = gpu.device();
  return train(*device, config, how);
}

size_t sum(const std::vector<HeldMemory>& held, const std::string& purpose = {}) {
  size_t all = 0;
  for (const HeldMemory& one : held) all += purpose.empty() || one.purpose == purpose ? one.bytes : 0;
  return all;
}

// --- planted faults ----------------------------------------------------------------------------------------------

// Waits of one stream for another since `count` was set, of which number `left_out` does not happen.
struct Waits {
  int64_t count = 0, left_out = -1;
  int (*real)(cuda::CudaStream, cuda::CudaEvent) = nullptr;
} waits;

// CHECKs that `work`, which is given an emulated GPU and calls the function that it is given before the part that the
// test is about, comes to `expected` with all waits and not without any one of them, whichever stream is late. Returns
// how many there are.
template <class Outcome>
int64_t check_that_each_wait_is_needed(
    const Outcome& expected, const std::function<Outcome(Device&, const std::function<void()>& begin)>& work) {
  const auto run = [&](Order order, int64_t left_out) {
    Emulation gpu(1);
    gpu.order(order);
    waits = Waits{.real = gpu.runtime.stream_wait};
    gpu.runtime.stream_wait = [](cuda::CudaStream stream, cuda::CudaEvent event) {
      return waits.count++ == waits.left_out ? 0 : waits.real(stream, event);
    };
    const auto device = gpu.device();
    return work(*device, [&] { waits = Waits{0, left_out, waits.real}; });
  };
  constexpr Order kOrders[] = {Order::oldest_first, Order::youngest_first};
  for (const Order order : kOrders) CHECK(run(order, -1) == expected);
  const int64_t all = waits.count;
  for (int64_t left_out = 0; left_out < all; ++left_out) {
    bool noticed = false;
    for (const Order order : kOrders) {
      try {
        noticed = noticed || !(run(order, left_out) == expected);
      } catch (const Failure&) {
        noticed = true;
      }
    }
    if (!noticed) harness::report(__FILE__, __LINE__, "nobody misses wait ", left_out, " of ", all);
  }
  return all;
}

}  // namespace

TEST(cuda_offload_has_the_bits_of_a_step_on_the_device) {
  for (const bool hopper : {true, false})
    for (const MomentForm moments : {MomentForm::float32, MomentForm::eight_bit}) {
      const DecoderConfig config = deep_config(hopper);
      const Result expected = train_alone(config, {moments}, 1);
      CHECK(expected.state[0].size() / sizeof(float) > 2 * kPart);
      CHECK(train_alone(config, {moments, true, false}, 2) == expected);
      CHECK(train_alone(config, {moments, false, true}, 3) == expected);
      for (const Order order : {Order::drawn, Order::oldest_first, Order::youngest_first})
        CHECK(train_alone(config, {moments, true, true}, 4, order) == expected);
    }
}

TEST(cuda_offload_has_the_bits_of_shares_on_the_device) {
  for (const bool hopper : {true, false})
    for (const int stage : {1, 3}) {
      const DecoderConfig config = deep_config(hopper);
      std::vector<Result> results;
      for (const bool away : {false, true}) {
        Emulation gpu(away ? 2 : 1);
        const auto device = gpu.device();
        MeshOptions options;
        options.id = shared_memory().make_id();
        options.shard = stage;
        options.shard_size = 1;
        Mesh mesh(*device, shared_memory(), options);
        mesh.join();
        results.push_back(train(*device, config, {MomentForm::eight_bit, away, away}, &mesh));
      }
      CHECK(results[0] == results[1]);
    }
}

// What is saved from the host's memory is what is saved from the device's, and either goes on from it.
TEST(cuda_offload_saves_and_loads_what_the_device_does) {
  const DecoderConfig config = deep_config(true);
  for (const MomentForm moments : {MomentForm::float32, MomentForm::eight_bit}) {
    const Folder folder;
    const auto step = [&](Rig& rig) {
      rig.trainer.accumulate(random_batch(config, {21}, 5), PolicyLoss{}, rig.never);
      rig.trainer.optimise({.learning_rate = 1e-2f});
      return state_of(rig.parameters, *rig.stream);
    };
    std::vector<Bytes> saved, next;
    {
      Emulation gpu(1);
      Rig rig(gpu.device(), config, options_of({moments, true, true}), moments, true);
      rig.randomise(3, 0.1);
      saved = step(rig);
      save(rig.parameters, *rig.stream, folder.path, {.optimiser = true});
      next = step(rig);
    }
    for (const bool away : {true, false}) {
      Emulation gpu(2);
      Rig rig(gpu.device(), config, options_of({moments, away, away}), moments, away);
      load_parameters(rig.parameters, *rig.stream, folder.path);
      load_optimiser(rig.parameters, *rig.stream, folder.path);
      CHECK(state_of(rig.parameters, *rig.stream) == saved);
      CHECK(step(rig) == next);
      rig.trainer.reset_optimiser();
      const std::vector<Bytes> reset = state_of(rig.parameters, *rig.stream);
      CHECK(reset[0] == next[0]);
      for (size_t i = 1; i < reset.size(); ++i) CHECK(reset[i] == Bytes(reset[i].size()));
    }
  }
}

TEST(cuda_offload_leaves_two_layers_and_some_parts_on_the_device) {
  DecoderConfig config = deep_config(false);
  config.num_hidden_layers = 8;
  config.intermediate_size = 16;  // so that checkpoints are most of what a pass holds
  const auto held = [&](const How& how) {
    Emulation gpu(1);
    const auto device = gpu.device();
    train(*device, config, how);
    return std::pair{device->most_held(), device->most_held_of_host()};
  };
  const auto [all, none] = held({});
  CHECK(none.empty());
  const auto [device, host] = held({MomentForm::float32, true, true});
  const int64_t elements = Layout(config).elements, tokens = 62;
  // What a layer keeps of a token: its input and attention's output in bf16, and a float32 a head.
  const int64_t width = config.hidden_size + config.num_attention_heads * config.head_dim;
  const auto layer = static_cast<size_t>(tokens * (2 * width + 4 * config.num_attention_heads));
  CHECK(sum(host, "checkpoints") >= 7 * layer && sum(host, "checkpoints") < 7 * (layer + 3 * 256));
  CHECK(sum(host, "weights") == static_cast<size_t>(4 * elements));
  CHECK(sum(host, "moments") == static_cast<size_t>(8 * elements));
  CHECK(sum(device, "moments") == 0 && sum(device, "optimiser parts") == size_t{2 * 12 * kPart});
  CHECK(sum(device, "gradients") == sum(all, "gradients"));
  // Two bytes of each parameter, and vectors, in place of six.
  CHECK(sum(device, "weights") < sum(all, "weights") * 2 / 5);
  // Those of two layers at a time in place of eight; at most the slots of a third, by where holes are.
  CHECK(sum(device, "activations") + 5 * layer <= sum(all, "activations"));
}

TEST(cuda_offload_of_checkpoints_needs_each_of_its_waits) {
  const DecoderConfig config = deep_config(false);
  const PackedBatch batch = random_batch(config, {21, 40}, 5);
  const std::function<std::vector<float>(bool, Device&, const std::function<void()>&)> pass =
      [&](bool away, Device& device, const std::function<void()>& begin) {
        Parameters parameters(device, config);
        Trainer trainer(device, parameters, options_of({.checkpoints = away}));
        const auto stream = device.stream();
        const std::atomic<bool> never{false};
        initialise(parameters, *stream, {0.1f, 3, 0.0f});
        begin();
        trainer.accumulate(batch, PolicyLoss{}, never);
        parameters.complete_gradients(*stream);
        std::vector<float> gradient(static_cast<size_t>(parameters.elements()));
        stream->copy_to_host(gradient.data(), parameters.gradient().data, gradient.size() * sizeof(float));
        stream->synchronize();
        return gradient;
      };
  const std::vector<float> expected = [&] {
    Emulation gpu(1);
    const auto device = gpu.device();
    return pass(false, *device, [] {});
  }();
  // Of four layers three go there and back: a copy waits for compute and compute for the copy, each way.
  CHECK(check_that_each_wait_is_needed<std::vector<float>>(
            expected, [&](Device& device, const std::function<void()>& begin) { return pass(true, device, begin); }) ==
        4 * 3);
}

TEST(cuda_offload_of_the_optimiser_needs_each_of_its_waits) {
  const DecoderConfig config = deep_config(false);
  int64_t parts = 0;
  const std::function<std::vector<Bytes>(bool, Device&, const std::function<void()>&)> step =
      [&](bool away, Device& device, const std::function<void()>& begin) {
        // Before the trainer's streams, so that it may be the first to go on.
        const auto stream = device.stream();
        Parameters parameters(device, config, nullptr, MomentForm::eight_bit, away);
        Trainer trainer(device, parameters, options_of({.optimiser = away}));
        initialise(parameters, *stream, {0.1f, 3, 0.0f});
        parts = (parameters.elements() + kPart - 1) / kPart;
        for (int i = 0; i < 2; ++i) {
          std::vector<float> gradient(static_cast<size_t>(parameters.elements()));
          for (size_t at = 0; at < gradient.size(); ++at)
            gradient[at] = static_cast<float>(normal01(static_cast<uint64_t>(i), at));
          stream->copy_to_device(parameters.gradient().data, gradient.data(), gradient.size() * sizeof(float));
          stream->synchronize();
          if (i > 0) begin();  // moments are not zero any more
          trainer.optimise({.learning_rate = 1e-2f});
        }
        std::vector<Bytes> state = state_of(parameters, *stream);
        // The copies that were made of the weights on their way, too.
        const std::atomic<bool> never{false};
        const std::vector<float> logprob = trainer.score(random_batch(config, {17}, 8), 1.0f, never).logprob;
        state.emplace_back(logprob.size() * sizeof(float));
        std::memcpy(state.back().data(), logprob.data(), state.back().size());
        return state;
      };
  const std::vector<Bytes> expected = [&] {
    Emulation gpu(1);
    const auto device = gpu.device();
    return step(false, *device, [] {});
  }();
  const int64_t count = check_that_each_wait_is_needed<std::vector<Bytes>>(
      expected, [&](Device& device, const std::function<void()>& begin) { return step(true, device, begin); });
  // An update waits for its part, which waits for the one that was in its slot; the copy out waits for the update, and
  // the end of the step for the last of those.
  CHECK(parts > 3 && count == parts + (parts - 2) + parts + 1);
}

}  // namespace tokenring
