// A rank: one device, one engine thread with one job queue, one set of parameters that trainer and sampler share.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "core/device.h"
#include "model/config.h"
#include "model/sampler.h"
#include "model/trainer.h"

namespace tokenring {

struct RankOptions {
  DecoderConfig config;
  std::string device = "cpu";
  int32_t threads = 0;  // of the CPU backend; 0 = all cores
  SamplerOptions sampler;
};

class Rank {
 public:
  explicit Rank(RankOptions);
  ~Rank();  // drains: running jobs finish, queued ones end with Failure DISPOSED

  // Queues a job for the engine thread. Between jobs the thread runs the sampler's ticks.
  void post(std::function<void()> job);

  // The following may be touched from jobs only.
  Device& device();
  Parameters& parameters();
  Trainer& trainer();
  Sampler& sampler();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tokenring
