// What a training step would queue and hold on one rank of a mesh of GPUs, known without any of them: parameters,
// trainer and mesh are built as always, on a GPU and between ranks that are not there.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "core/schedule.h"
#include "model/config.h"
#include "model/trainer.h"
#include "parallel/mesh.h"

namespace tokenring {

struct StepPlanOptions {
  DecoderConfig config;
  MomentForm moments = MomentForm::float32;
  TrainerOptions trainer;
  MeshOptions mesh;  // its id is not used
  // Of one pass of the rank's context group: tokens of each document, and the weight of each token's loss.
  std::vector<int32_t> lengths;
  std::vector<float> weight;
};

// An Entry without what runs it.
struct PlannedEntry {
  std::string op;
  int layer;
  Track track;
  std::array<bool, kTracks> after;
  int64_t bytes, flops;
};

struct StepPlan {
  std::vector<HeldMemory> memory;  // when it was most, over all of the step
  // Forward alone; forward and backward; the same as the last of a step; AdamW.
  std::vector<PlannedEntry> score, accumulate, last, optimise;
};

// Failures as those of what it builds; ABORTED.
StepPlan plan_step(const StepPlanOptions&, const std::atomic<bool>& aborted);

}  // namespace tokenring
