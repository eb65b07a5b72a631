// A rank: one device, one engine thread with one job queue, one set of parameters that trainer and sampler share.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/device.h"
#include "cpu/device.h"
#include "model/config.h"
#include "model/sampler.h"
#include "model/trainer.h"
#include "parallel/mesh.h"

namespace tokenring {

struct RankOptions {
  DecoderConfig config;
  std::string device = "cpu";
  int32_t threads = 0;  // of the CPU backend; 0 = all cores
  Precision precision = Precision::float32;
  bool deterministic = true;  // of CUDA (cuda/device.h); the CPU backend is always
  MomentForm moments = MomentForm::float32;
  bool offload_optimiser = false;  // masters and moments lie in the host's memory; checkpoints: see TrainerOptions
  TrainerOptions trainer;
  SamplerOptions sampler;
  // One rank among others; absent: alone.
  std::optional<MeshOptions> mesh;

  // Failure INVALID_ARGUMENT that names the field, of the config or of what is offloaded.
  void check() const;
};

class Rank {
 public:
  // Builds everything on the engine thread and waits for it; rethrows the Failure that stopped it. On a mesh it waits
  // for no other rank: that is the first thing the engine thread does, and what it fails with, later calls repeat.
  explicit Rank(RankOptions);
  // Drains: the running job finishes, queued ones are destroyed unrun (their owners turn that into Failure
  // DISPOSED), and requests of the sampler end with Failure DISPOSED. A call that other ranks take part in is aborted,
  // and the mesh with it.
  ~Rank();

  // Queues a job for the engine thread; it must not throw. Between jobs the thread runs the sampler's ticks.
  void post(std::function<void()> job);
  // From any thread; null for a rank alone.
  std::shared_ptr<Mesh> mesh() const;

  // The following may be touched from jobs only.
  // What the thread has spent on earlier jobs and on the sampler's ticks.
  double busy_seconds() const;
  Device& device();
  Parameters& parameters();
  Trainer& trainer();
  Sampler& sampler();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tokenring
