// What a policy would queue and hold on one rank, known without its device and without the other ranks: parameters,
// trainer, sampler and mesh are built as always, on a device and between ranks that are not there.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "core/schedule.h"
#include "model/rank.h"

namespace tokenring {

struct StepPlanOptions {
  RankOptions rank;  // device: "cpu" or "cuda"; the mesh's id is not used, nor is the trace
  // Of one pass of the rank's context group: tokens of each document, and the weight of each token's loss. Empty: there
  // is no pass.
  std::vector<int32_t> lengths;
  std::vector<float> weight;
  bool training = true;  // false: the pass is scored alone
  // Of the sampler's sessions that this rank has at once: tokens of each, the last of them sampled.
  std::vector<int32_t> sessions;
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
  // When it was most, over all of it: the device's, and the host's for what is offloaded.
  std::vector<HeldMemory> memory, host;
  // Forward alone; forward and backward; the same as the last of a step; AdamW. Empty where they are not made.
  std::vector<PlannedEntry> score, accumulate, last, optimise;
};

// Failures as those of what it builds; ABORTED.
StepPlan plan_step(const StepPlanOptions&, const std::atomic<bool>& aborted);

}  // namespace tokenring
