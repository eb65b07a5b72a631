// Decoding by CUDA graphs on the emulated GPU: replays have the bits of what is queued one by one, and what must not be
// baked into a graph is noticed.
#include <cstdlib>
#include <set>

#include "cuda/device.h"
#include "cuda/module.h"
#include "decoder_rig.h"
#include "emulator/ptx.h"
#include "emulator/runtime.h"
#include "harness.h"
#include "model/sampler.h"

namespace tokenring {
namespace {

using emulator::Emulation;

// Until the end of a scope, streams that are made keep no recordings.
struct WithoutGraphs {
  WithoutGraphs() { setenv("TOKENRING_CUDA_GRAPHS", "0", 1); }
  ~WithoutGraphs() { unsetenv("TOKENRING_CUDA_GRAPHS"); }
};

DecoderConfig config_of(bool hopper) {
  DecoderConfig c = tiny_config(false);
  if (hopper) c.hidden_size = c.head_dim = 64;
  c.max_position_embeddings = 1200;
  return c;
}

struct Sampled {
  std::vector<SampleResult> results;
  int64_t launches = 0, graphs = 0;
  bool operator==(const Sampled& other) const {
    if (results.size() != other.results.size()) return false;
    for (size_t i = 0; i < results.size(); ++i)
      if (results[i].tokens != other.results[i].tokens || results[i].logprobs != other.results[i].logprobs)
        return false;
    return true;
  }
};

struct Turn {
  int prompt, tokens;
  int at = 0;  // the tick before which it comes
};

// Sessions that come and end at their own times: batches of changing sizes, prompts between decoded tokens, which make
// the arena larger while recordings are there.
Sampled sample(std::unique_ptr<Device> device, const DecoderConfig& config, const std::vector<Turn>& turns) {
  Sampled sampled{std::vector<SampleResult>(turns.size())};
  size_t ended = 0;
  std::exception_ptr failed;
  Rig rig(std::move(device), config);
  rig.randomise(3, 0.1);
  Sampler sampler(rig.device, rig.parameters, {});
  const emulator::RuntimeCounts before = Emulation::counts();
  for (int tick = 0; ended < turns.size(); ++tick) {
    for (size_t i = 0; i < turns.size(); ++i) {
      if (turns[i].at != tick) continue;
      std::vector<int32_t> prompt;
      for (int n = 0; n < turns[i].prompt; ++n)
        prompt.push_back(static_cast<int32_t>(uniform01(i, n) * config.vocab_size));
      const int64_t session = sampler.open();
      sampler.extend(session, prompt.data(), prompt.size());
      sampler.sample(session, {turns[i].tokens, {}, i % 2 ? 0.0f : 1.0f, 11 + i},
                     [&, i](SampleResult result, std::exception_ptr error) {
                       if (error) failed = error;
                       sampled.results[i] = std::move(result);
                       ++ended;
                     });
    }
    sampler.tick();
  }
  if (failed) std::rethrow_exception(failed);
  sampled.launches = Emulation::counts().launches - before.launches;
  sampled.graphs = Emulation::counts().graphs - before.graphs;
  return sampled;
}

const std::vector<Turn> kTurns = {{5, 14}, {9, 6}, {66, 9}, {3, 8, 4}, {90, 5, 9}};

TEST(cuda_graphs_have_the_bits_of_eager_decoding) {
  for (const bool hopper : {true, false}) {
    const DecoderConfig config = config_of(hopper);
    const auto eager = [&] {
      const WithoutGraphs none;
      Emulation gpu(1);
      return sample(gpu.device(), config, kTurns);
    }();
    CHECK(eager.graphs == 0);
    for (const uint64_t seed : {1, 2, 3}) {
      Emulation gpu(seed);
      const Sampled replayed = sample(gpu.device(), config, kTurns);
      CHECK(replayed == eager);
      // Of some 14 ticks, five have a size that was not there before, or come after one that took memory.
      CHECK(replayed.graphs >= 5);
    }
  }
}

// Keys are split over blocks from 1024 on, which the launch has to foresee.
TEST(cuda_graphs_follow_a_session_through_its_length) {
  DecoderConfig config = config_of(true);
  config.num_hidden_layers = 1;
  const std::vector<Turn> turns = {{1020, 10}};
  const auto eager = [&] {
    const WithoutGraphs none;
    Emulation gpu(1);
    return sample(gpu.device(), config, turns);
  }();
  Emulation gpu(2);
  const Sampled replayed = sample(gpu.device(), config, turns);
  CHECK(replayed == eager);
  CHECK(replayed.graphs >= 6);
}

TEST(cuda_graphs_launch_once_what_was_launched_one_by_one) {
  Emulation gpu(1);
  const std::vector<Turn> once = {{5, 3}}, longer = {{5, 23}};
  const Sampled few = sample(gpu.device(), config_of(true), once);
  const Sampled many = sample(gpu.device(), config_of(true), longer);
  CHECK(many.graphs == few.graphs + 20);
  CHECK(many.launches == few.launches);
}

// --- faults --------------------------------------------------------------------------------------------------------

cuda::Runtime right;
cuda::CudaEvent never;

// What is queued so far has run.
void run_queued() {
  for (int i = 0; i < 2000; ++i) right.event_query(never);
}

std::vector<std::unique_ptr<emulator::Memory>> baked;

// Rows that are where they were when the launch was queued, as numbers of the host would be.
cuda::PagedHeads as_they_are_now(cuda::PagedHeads at) {
  run_queued();
  const size_t bytes = static_cast<size_t>(at.row_count) * sizeof(cuda::PagedRow);
  baked.push_back(std::make_unique<emulator::Memory>(bytes));
  std::memcpy(baked.back()->data(), at.rows, bytes);
  at.rows = static_cast<const cuda::PagedRow*>(baked.back()->data());
  return at;
}

TEST(cuda_graphs_with_a_number_of_the_host_baked_in_are_noticed) {
  static const cuda::Kernels kernels = TOKENRING_KERNEL_TABLE;
  const DecoderConfig config = config_of(true);
  const auto with = [&](const cuda::Kernels& of) {
    Emulation gpu(1);
    right = gpu.runtime;
    right.event_create(&never);
    return sample(cuda::make_device({&gpu.runtime, &of, &gpu.lt, emulator::encode_tiled}, true), config, kTurns);
  };
  const Sampled expected = with(kernels);
  // Keys that were never written may also end it, as numbers that are not finite.
  const auto as_expected = [&](const cuda::Kernels& of) {
    bool same = false;
    try {
      same = with(of) == expected;
    } catch (const Failure&) {
    }
    baked.clear();
    return same;
  };
  cuda::Kernels append = kernels, attend = kernels;
  append.kv_append = [](cuda::CudaStream stream, const cuda::PagedHeads& at, const cuda::Bf16* qkv, cuda::Bf16* pool) {
    cuda::kv_append(stream, as_they_are_now(at), qkv, pool);
  };
  attend.attention_decode = [](cuda::CudaStream stream, const cuda::PagedHeads& at, int most_keys, float scale,
                               const cuda::Bf16* qkv, const cuda::Bf16* pool, cuda::Bf16* out, void* workspace) {
    cuda::attention_decode(stream, as_they_are_now(at), most_keys, scale, qkv, pool, out, workspace);
  };
  CHECK(!as_expected(append));
  CHECK(!as_expected(attend));
  // The plants themselves change nothing where nothing is replayed.
  const WithoutGraphs none;
  CHECK(as_expected(append));
  CHECK(as_expected(attend));
}

TEST(cuda_graphs_refuse_what_they_cannot_hold) {
  Emulation gpu(1);
  const auto device = gpu.device();
  const auto stream = device->stream(), other = device->stream();
  const Buffer x(*device, 256);
  float number = 1;
  const Tensor to = tensor(x.data(), DType::f32, {1});
  const auto message = [&](const std::function<void()>& work) { return failure_of([&] { stream->record(work); }); };
  CHECK(contains(message([&] { stream->synchronize(); }), "INTERNAL: waiting for the stream has no place"));
  CHECK(contains(message([&] { stream->copy_to_device(x.data(), &number, 4); }), "a copy from the host"));
  CHECK(contains(message([&] { stream->copy_to_host(&number, x.data(), 4); }), "a copy to the host"));
  CHECK(contains(message([&] { stream->wait(*other); }), "waiting for another stream"));
  CHECK(contains(message([&] { stream->call([] {}); }), "a call of the host"));
  CHECK(contains(message([&] { Buffer(*device, 64); }), "an allocation failed with cudaError 900"));
  // It goes on after each of them.
  device->ops().zero(*stream, to);
  stream->copy_to_host(&number, x.data(), 4);
  stream->synchronize();
  CHECK(number == 0);
  // A recording does not run, and holds until memory changes.
  const float two = 2;
  stream->copy_to_device(x.data(), &two, 4);
  const auto zeroing = stream->record([&] { device->ops().zero(*stream, to); });
  stream->copy_to_host(&number, x.data(), 4);
  stream->synchronize();
  CHECK(number == 2 && zeroing->holds());
  zeroing->replay(*stream);
  stream->copy_to_host(&number, x.data(), 4);
  stream->synchronize();
  CHECK(number == 0);
  { const Buffer more(*device, 64); }
  CHECK(!zeroing->holds());
}

TEST(cuda_graphs_are_in_the_memory_that_a_device_holds) {
  Emulation gpu(1, size_t{1} << 20);
  const auto device = gpu.device();
  const auto stream = device->stream();
  const Buffer x(*device, 256, "activations");
  const auto graphs = [&] {
    size_t bytes = 0;
    for (const HeldMemory& one : device->most_held()) bytes += one.purpose == "CUDA graphs" ? one.bytes : 0;
    return bytes;
  };
  const auto zeroing = [&](int times) {
    return stream->record([&, times] {
      for (int i = 0; i < times; ++i) device->ops().zero(*stream, tensor(x.data(), DType::f32, {64}));
    });
  };
  auto first = zeroing(1), second = zeroing(4);
  CHECK(graphs() == 5 * emulator::kGraphNodeBytes);
  const std::string full = failure_of([&] { Buffer(*device, size_t{1} << 20, "workspace"); });
  CHECK(contains(full, "OUT_OF_MEMORY") && contains(full, "CUDA graphs 0.0 MiB"));
  // What is gone is not counted when more is held than ever before.
  first.reset();
  second.reset();
  const Buffer more(*device, 4096, "activations");
  CHECK(graphs() == 0);
}

// --- the emulated runtime --------------------------------------------------------------------------------------------

TEST(cuda_emulator_captures_as_cuda_does) {
  Emulation gpu(1);
  const cuda::Runtime& r = gpu.runtime;
  cuda::CudaStream a, b;
  cuda::CudaEvent fork, back, outside;
  r.stream_create(&a);
  r.stream_create(&b);
  for (cuda::CudaEvent* event : {&fork, &back, &outside}) r.event_create(event);
  void* memory = nullptr;
  r.allocate(&memory, 1024);
  cuda::CudaGraph graph = nullptr;
  const auto capture = [&](const std::function<void()>& work) {
    CHECK(r.capture_begin(a) == 0);
    work();
    return r.capture_end(a, &graph);
  };
  auto* bytes = static_cast<unsigned char*>(memory);
  int host = 0;
  void* more = nullptr;
  CHECK(r.event_record(outside, b) == 0);
  CHECK(capture([&] { CHECK(r.allocate(&more, 64) == 900); }) == 901);
  CHECK(capture([&] { CHECK(r.free(memory) == 900); }) == 901);
  CHECK(capture([&] { CHECK(r.stream_synchronize(a) == 900); }) == 901);
  CHECK(capture([&] { CHECK(r.copy(memory, &host, 4, a) == 900); }) == 901);
  CHECK(capture([&] { CHECK(r.stream_wait(a, outside) == 905); }) == 901);
  CHECK(capture([&] { CHECK(r.event_record(fork, a) == 0 && r.event_query(fork) == 907); }) == 901);
  CHECK(graph == nullptr);
  // Another stream joins and has to come back.
  const auto on_both = [&](bool comes_back) {
    return capture([&] {
      r.fill(bytes, 1, 16, a);
      r.event_record(fork, a);
      r.stream_wait(b, fork);
      r.copy(bytes + 16, bytes, 16, b);
      r.event_record(back, b);
      r.copy(bytes + 32, bytes, 16, a);
      if (comes_back) r.stream_wait(a, back);
      r.copy(bytes + 48, bytes + 16, 16, a);
    });
  };
  CHECK(on_both(false) == 904 && graph == nullptr);
  CHECK(on_both(true) == 0 && graph != nullptr);
  CHECK(r.capture_end(a, &graph) == 401);
  CHECK(on_both(true) == 0);
  r.fill(bytes, 0, 1024, a);
  r.stream_synchronize(a);
  CHECK(bytes[0] == 0);  // nothing ran
  for (int i = 0; i < 4; ++i) {
    r.fill(bytes, 0, 1024, a);
    CHECK(r.graph_launch(graph, a) == 0);
    r.stream_synchronize(a);
    CHECK(std::set<int>(bytes, bytes + 64) == std::set<int>{1});
    CHECK(bytes[64] == 0);
  }
  r.graph_destroy(graph);
}

}  // namespace
}  // namespace tokenring
