#include "addon/engine.h"

#include "addon/arguments.h"
#include "cpu/device.h"
#include "cuda/device.h"

namespace tokenring::addon {

Engine& Engine::of(Napi::Env env) {
  State& state = state_of(env);
  if (!state.engine) state.engine = std::make_shared<Engine>(env);
  return *state.engine;
}

void Engine::set_threads(int threads) {
  threads_ = threads;
  compute_.reset();
}

std::shared_ptr<Device> Engine::device() {
  if (!compute_) compute_ = std::make_shared<Compute>(make_cpu_device(threads_));
  return compute_->device;
}

std::shared_ptr<Device> Engine::gpu() {
  if (!gpu_) gpu_ = std::make_shared<Compute>(make_cuda_device());
  return gpu_->device;
}

Napi::Value set_threads(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const double threads = number_argument(info[0], "threads", 0, 1024);
    require(threads == static_cast<int>(threads), "threads must be an integer, got ", threads);
    Engine::of(info.Env()).set_threads(static_cast<int>(threads));
    return info.Env().Undefined();
  });
}

}  // namespace tokenring::addon
