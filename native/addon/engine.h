// Where the functions of tokenring/ops compute: one thread an environment, and the device that its calls share.
#pragma once

#include <napi.h>

#include <memory>
#include <type_traits>
#include <utility>

#include "addon/jobs.h"
#include "core/device.h"

namespace tokenring::addon {

// A device and a stream of it for one thread.
struct Compute {
  explicit Compute(std::shared_ptr<Device> device) : device(std::move(device)), stream(this->device->stream()) {}
  std::shared_ptr<Device> device;
  std::unique_ptr<Stream> stream;  // ends before the device
};

class Engine {
 public:
  // The environment's, made on first use.
  static Engine& of(Napi::Env);
  explicit Engine(Napi::Env env) : jobs_(env, "the environment") {}

  // Threads of the CPU backend from now on; 0 = all cores. What is queued keeps the ones it has.
  void set_threads(int threads);
  std::shared_ptr<Device> device();
  // The first GPU that CUDA shows. Failure INVALID_ARGUMENT with the reason if there is none that can be used.
  std::shared_ptr<Device> gpu();

  // Queues work(compute) or work(compute, aborted) -> Result on the device where the tensors lie; the stream is
  // synchronised behind it.
  template <class Result, class Work>
  Napi::Value submit(Napi::Env env, std::shared_ptr<Held> held, Work work) {
    const bool on_gpu = held->on_gpu();
    return submit_on<Result>(env, on_gpu, std::move(held), std::move(work));
  }
  template <class Result, class Work>
  Napi::Value submit_on(Napi::Env env, bool on_gpu, std::shared_ptr<Held> held, Work work) {
    on_gpu ? gpu() : device();
    return jobs_.submit<Result>(
        env, std::move(held),
        [work = std::move(work), compute = on_gpu ? gpu_ : compute_](const std::atomic<bool>& aborted) {
          const Drain drain{*compute->stream};
          const auto run = [&] {
            if constexpr (std::is_invocable_v<const Work&, Compute&>)
              return work(*compute);
            else
              return work(*compute, aborted);
          };
          Result result = run();
          compute->stream->synchronize();
          return result;
        });
  }

 private:
  int threads_ = 0;
  std::shared_ptr<Compute> compute_, gpu_;  // null until needed
  Jobs jobs_;
};

// setThreads(n) of the binding.
Napi::Value set_threads(const Napi::CallbackInfo&);

}  // namespace tokenring::addon
