#include "model/rank.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <future>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "comm/nccl.h"
#include "cuda/device.h"
#include "model/parameters.h"

namespace tokenring {

void RankOptions::check() const {
  config.check();
  const bool checkpoints = trainer.offload_checkpoints;
  require(
      device != "cpu" || !(checkpoints || offload_optimiser),
      "offload leaves to the host's memory what a GPU has no room for; device \"cpu\" has all of it there already, so "
      "offload must be \"none\"");
  require(!checkpoints || trainer.activation_checkpointing,
          "offload of checkpoints needs activationCheckpointing: without it there are no checkpoints");
}

namespace {

std::unique_ptr<Device> make_device(const RankOptions& options) {
  require(options.threads >= 0, "threads must be 0 (all cores) or positive, got ", options.threads);
  if (options.device == "cpu") return make_cpu_device(options.threads, options.precision);
  if (options.device == "cuda") return make_cuda_device(options.deterministic);
  int ordinal = 0, end = 0;
  if (std::sscanf(options.device.c_str(), "cuda:%3d%n", &ordinal, &end) == 1 && ordinal >= 0 &&
      end == static_cast<int>(options.device.size()))
    return make_cuda_device(options.deterministic, ordinal);
  fail("INVALID_ARGUMENT", "device must be \"cpu\", \"cuda\" or \"cuda:N\", got \"", options.device, "\"");
}

const Transport& transport_of(const RankOptions& options) {
  return options.device == "cpu" ? shared_memory() : nccl_transport();
}

// What lives on the engine thread, in the order of construction.
struct Engine {
  explicit Engine(const RankOptions& options)
      : device(make_device(options)),
        mesh(options.mesh ? std::make_shared<Mesh>(*device, transport_of(options), options.mesh->with_real_shares())
                          : nullptr),
        parameters(*device, options.config, mesh.get(), options.moments, options.offload_optimiser),
        trainer(*device, parameters, options.trainer, mesh.get()),
        sampler(*device, parameters, options.sampler) {}
  // Others may hold the mesh for longer, to abort it.
  ~Engine() {
    if (mesh) mesh->leave();
  }

  // The sums over ranks take the ranks to hold the same numbers in the same places.
  void join() {
    mesh->join();
    Mesh::call(mesh.get(), [&] {
      mesh->agree({{"the model's parameters", static_cast<double>(parameters.elements())}});
    });
  }

  std::unique_ptr<Device> device;
  std::shared_ptr<Mesh> mesh;
  Parameters parameters;
  Trainer trainer;
  Sampler sampler;
};

}  // namespace

struct Rank::Impl {
  // Runs until stopping: all queued jobs, then one tick of the sampler, so that neither holds up the other for
  // more than one round.
  void loop() {
    if (mesh) count([&] { join(); });
    while (true) {
      std::deque<std::function<void()>> round;
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return stopping || !jobs.empty() || engine->sampler.busy(); });
        if (stopping) return;
        round.swap(jobs);
      }
      for (std::function<void()>& job : round) {
        if (stopping) return;
        count([&] { job(); });
        job = nullptr;  // what the job holds is freed before the next one starts
      }
      count([&] { engine->sampler.tick(); });
    }
  }

  // What it fails with, the mesh says in every call.
  void join() {
    try {
      engine->join();
    } catch (const std::exception&) {
    }
  }

  template <class Work>
  void count(const Work& work) {
    const auto started = std::chrono::steady_clock::now();
    work();
    busy += std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  }

  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::function<void()>> jobs;
  std::atomic<bool> stopping = false;
  std::unique_ptr<Engine> engine;
  std::shared_ptr<Mesh> mesh;
  double busy = 0;  // seconds
  std::thread thread;
};

Rank::Rank(RankOptions options) : impl_(std::make_unique<Impl>()) {
  options.check();
  std::promise<void> built;
  impl_->thread = std::thread([&built, options, impl = impl_.get()] {
    try {
      impl->engine = std::make_unique<Engine>(options);
      impl->mesh = impl->engine->mesh;
    } catch (...) {
      built.set_exception(std::current_exception());
      return;
    }
    built.set_value();
    impl->loop();
    impl->engine.reset();
  });
  try {
    built.get_future().get();
  } catch (...) {
    impl_->thread.join();
    throw;
  }
}

Rank::~Rank() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  if (impl_->mesh) impl_->mesh->close();
  impl_->wake.notify_all();
  impl_->thread.join();
  impl_->jobs.clear();
}

void Rank::post(std::function<void()> job) {
  {
    std::lock_guard lock(impl_->mutex);
    if (impl_->stopping) fail("DISPOSED", "the rank was disposed");
    impl_->jobs.push_back(std::move(job));
  }
  impl_->wake.notify_all();
}

std::shared_ptr<Mesh> Rank::mesh() const { return impl_->mesh; }
double Rank::busy_seconds() const { return impl_->busy; }
Device& Rank::device() { return *impl_->engine->device; }
Parameters& Rank::parameters() { return impl_->engine->parameters; }
Trainer& Rank::trainer() { return impl_->engine->trainer; }
Sampler& Rank::sampler() { return impl_->engine->sampler; }

}  // namespace tokenring
