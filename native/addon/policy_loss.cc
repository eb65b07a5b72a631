#include "addon/policy_loss.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "addon/engine.h"
#include "addon/operands.h"
#include "addon/results.h"
#include "addon/state.h"
#include "loss/row_loss.h"

namespace tokenring::addon {

double check_temperature(double temperature) {
  require(temperature > 0, "temperature must be greater than 0");
  return temperature;
}

PolicyLoss policy_loss_argument(const Arguments& from) {
  PolicyLoss loss;
  const std::string name = from.text("objective");
  const std::pair<const char*, PolicyObjective> objectives[] = {{"nll", PolicyObjective::nll},
                                                                {"ppo_clip", PolicyObjective::ppo_clip},
                                                                {"gspo", PolicyObjective::gspo},
                                                                {"cispo", PolicyObjective::cispo}};
  const auto found = std::find_if(std::begin(objectives), std::end(objectives),
                                  [&](const auto& objective) { return name == objective.first; });
  require(found != std::end(objectives), "loss.objective must be \"nll\", \"ppo_clip\", \"gspo\" or \"cispo\", got \"",
          name, "\"");
  loss.scalars.objective = found->second;
  loss.scalars.clip_low = from.real("clipLow", 0, 1);
  loss.scalars.clip_high = from.real("clipHigh", 0, 1e6);
  loss.scalars.dual_clip = from.real("dualClip", 0, 1e6);
  loss.scalars.kl_coef = from.real("klCoef", 0, 1e6);
  loss.scalars.entropy_coef = from.real("entropyCoef", 0, 1e6);
  loss.temperature = static_cast<float>(check_temperature(from.number("temperature", 0, 1e3)));
  loss.chunk_rows = from.integer("chunkRows", 0, std::numeric_limits<int32_t>::max());
  loss.check();
  return loss;
}

namespace {

// The lanes as JavaScript gives them: one entry a row of hidden states or logits.
struct RowLanes {
  Tensor targets, weight, advantage, old_logprob, reference_logprob, lengths;
};

// Those of the rows that carry loss. Runs when the call does.
LossRows rows_of(const RowLanes& lanes, int64_t vocabulary) {
  LossRows rows;
  const int64_t count = lanes.targets.elements();
  int64_t document = 0, end = lanes.lengths ? 0 : count;
  bool fresh = true;  // the document has no entry yet
  for (int64_t i = 0; i < count; ++i) {
    while (i == end) {
      end += lanes.lengths.i32()[document++];
      fresh = true;
    }
    const float weight = lanes.weight.f32()[i];
    require(std::isfinite(weight), "policyLoss: weight[", i, "] is ", weight);
    if (weight == 0) continue;
    const int32_t target = lanes.targets.i32()[i];
    require(target >= 0 && target < vocabulary, "policyLoss: targets[", i, "] is ", target,
            ", outside the vocabulary of ", vocabulary);
    if (std::exchange(fresh, false)) rows.begin.push_back(static_cast<int32_t>(rows.size()));
    rows.row.push_back(static_cast<int32_t>(i));
    rows.target.push_back(target);
    rows.weight.push_back(weight);
    if (lanes.advantage) rows.advantage.push_back(lanes.advantage.f32()[i]);
    if (lanes.old_logprob) rows.old_logprob.push_back(lanes.old_logprob.f32()[i]);
    if (lanes.reference_logprob) rows.reference_logprob.push_back(lanes.reference_logprob.f32()[i]);
  }
  rows.begin.push_back(static_cast<int32_t>(rows.size()));
  return rows;
}

void check_lengths(const Tensor& lengths, int64_t rows) {
  int64_t sum = 0;
  for (int64_t i = 0; i < lengths.elements(); ++i) {
    const int32_t length = lengths.i32()[i];
    require(length >= 0, "policyLoss: lengths[", i, "] is ", length);
    sum += length;
  }
  require(sum == rows, "policyLoss: the lengths sum to ", sum, ", but there are ", rows, " rows");
}

}  // namespace

Napi::Value policy_loss(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Operands from(Arguments(info[0], "options"));
    const PolicyLoss loss = policy_loss_argument(Arguments(info[1], "loss"));
    const bool fused = from.has("hidden");
    const DType f32 = DType::f32;
    const auto optional = [&](const char* field, DType dtype, std::initializer_list<int64_t> shape) {
      return from.has(field) ? from.tensor(field, dtype, shape) : Tensor{};
    };
    const Tensor input = from.tensor(fused ? "hidden" : "logits", f32, {kAny, kAny});
    const int64_t count = input.shape[0], width = input.shape[1];
    const Tensor head = fused ? from.tensor("head", f32, {kAny, width}) : Tensor{};
    const int64_t vocabulary = fused ? head.shape[0] : width;
    const Tensor gradient = optional(fused ? "dhidden" : "dlogits", f32, {count, width});
    const Tensor dhead = fused ? optional("dhead", f32, {vocabulary, width}) : Tensor{};
    require(!fused || from.has("dhidden") == from.has("dhead"), "policyLoss: give both dhidden and dhead, or neither");
    require(vocabulary > 0 && width > 0, "policyLoss: the ", fused ? "head" : "logits", " must have columns and rows");
    require(!fused || !from.held()->on_gpu(),
            "policyLoss: hidden states in a GPU's memory are not taken; give logits, or hidden states in the host's");
    const auto lane = [&](const char* field, DType dtype, int64_t entries) {
      return from.has(field) ? from.host_tensor(field, dtype, {entries}) : Tensor{};
    };
    const RowLanes lanes{.targets = from.host_tensor("targets", DType::i32, {count}),
                         .weight = from.host_tensor("weight", f32, {count}),
                         .advantage = lane("advantage", f32, count),
                         .old_logprob = lane("oldLogprob", f32, count),
                         .reference_logprob = lane("referenceLogprob", f32, count),
                         .lengths = lane("lengths", DType::i32, kAny)};
    return Engine::of(info.Env()).submit<LossResult>(info.Env(), from.held(), [=](Compute& on, const auto& aborted) {
      if (lanes.lengths) check_lengths(lanes.lengths, count);
      const LossRows rows = rows_of(lanes, vocabulary);
      const LossLanes out =
          fused ? loss_of_hidden(*on.device, *on.stream, loss, rows, input, head, gradient, dhead, aborted)
                : loss_of_logits(*on.device, *on.stream, loss, rows, input, gradient);
      LossResult result(static_cast<size_t>(count));
      for (int64_t i = 0; i < rows.size(); ++i) {
        const int32_t row = rows.row[i];
        result.logprob[row] = out.logprob[i];
        result.entropy[row] = out.entropy[i];
        result.flags[row] = out.flags[i];
        result.loss += out.loss[i];
      }
      return result;
    });
  });
}

}  // namespace tokenring::addon
