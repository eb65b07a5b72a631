#include "loss/row_loss.h"

#include <cmath>

namespace tokenring {
namespace {

void check(const PolicyLoss& loss, const LossRows& rows) {
  loss.check();
  if (rows.size() == 0) return;
  require(loss.scalars.objective == PolicyObjective::nll || (!rows.advantage.empty() && !rows.old_logprob.empty()),
          "policyLoss: this objective needs advantage and oldLogprob");
  require(loss.scalars.kl_coef == 0 || !rows.reference_logprob.empty(), "policyLoss: klCoef needs referenceLogprob");
}

// A ratio that is bounded makes a finite loss of a logprob that is not: all lanes are looked at.
void check_finite(const LossRows& rows, const LossLanes& lanes) {
  for (int64_t i = 0; i < rows.size(); ++i) {
    if (std::isfinite(lanes.logprob[i]) && std::isfinite(lanes.entropy[i]) && std::isfinite(lanes.loss[i])) continue;
    fail("NON_FINITE", "policyLoss: the loss of row ", rows.row[i], " is ", lanes.loss[i], " (its logprob is ",
         lanes.logprob[i], ", its weight ", rows.weight[i], "); the gradients are of no use");
  }
}

// d loss / d logprob and d loss / d entropy, per entry.
struct Slopes {
  std::vector<float> logprob, entropy;
};

// From the logprobs and entropies of `lanes` to its losses and flags.
Slopes scalar_stage(Device& device, Stream& stream, const PolicyScalars& how, const LossRows& rows, LossLanes& lanes) {
  const int64_t count = rows.size();
  if (count == 0) return {};
  Slopes slopes{std::vector<float>(count), std::vector<float>(how.entropy_coef != 0 ? count : 0)};
  lanes.loss.resize(count);
  lanes.flags.resize(count);
  Schedule schedule;
  const auto lane = [&](bool wanted, DType dtype, const void* host, int64_t entries) {
    if (!wanted) return Slot{};
    const Slot slot = schedule.slot(dtype, {entries});
    if (host) schedule.upload(slot, host);
    return slot;
  };
  const bool ratio = how.objective != PolicyObjective::nll, sequence = how.objective == PolicyObjective::gspo;
  const Slot logprob = lane(true, DType::f32, lanes.logprob.data(), count);
  const Slot entropy = lane(true, DType::f32, lanes.entropy.data(), count);
  const Slot weight = lane(true, DType::f32, rows.weight.data(), count);
  const Slot old = lane(ratio, DType::f32, rows.old_logprob.data(), count);
  const Slot advantage = lane(ratio, DType::f32, rows.advantage.data(), count);
  const Slot reference = lane(how.kl_coef != 0, DType::f32, rows.reference_logprob.data(), count);
  const Slot of_sequence = lane(sequence, DType::f32, nullptr, count);
  const Slot begin = lane(sequence, DType::i32, rows.begin.data(), static_cast<int64_t>(rows.begin.size()));
  const Slot g = lane(true, DType::f32, nullptr, count), value = lane(true, DType::f32, nullptr, count);
  const Slot entropy_g = lane(how.entropy_coef != 0, DType::f32, nullptr, count);
  const Slot flags = lane(true, DType::i32, nullptr, count);
  schedule.add("policy_scalars", -1, 7 * 4 * count, 8 * count, [=, &ops = device.ops()](const Frame& f) {
    if (sequence) ops.sequence_log_ratio(f.stream, f[logprob], f[old], f[begin], f[of_sequence]);
    ops.policy_scalars(f.stream, how,
                       {.logprob = f[logprob],
                        .weight = f[weight],
                        .old = f[old],
                        .advantage = f[advantage],
                        .sequence = f[of_sequence],
                        .reference = f[reference],
                        .entropy = f[entropy],
                        .g = f[g],
                        .entropy_g = f[entropy_g],
                        .loss = f[value],
                        .flags = f[flags]});
  });
  schedule.download(slopes.logprob.data(), g);
  if (entropy_g) schedule.download(slopes.entropy.data(), entropy_g);
  schedule.download(lanes.loss.data(), value);
  schedule.download(lanes.flags.data(), flags);
  Executor executor(device, stream);
  const Drain drain{stream};
  executor.run(schedule);
  stream.synchronize();
  return slopes;
}

}  // namespace

LossLanes loss_of_hidden(Device& device, Stream& stream, const PolicyLoss& loss, const LossRows& rows, Tensor hidden,
                         Tensor head, Tensor dhidden, Tensor dhead, const std::atomic<bool>& aborted) {
  check(loss, rows);
  const Ops& ops = device.ops();
  const int64_t v = head.shape[0], h = head.shape[1];
  LossLanes lanes;
  const Buffer panels(device, ops.weight_bytes(v, h));
  const Weight weight{v, h, panels.data()};
  Executor executor(device, stream);
  const Drain drain{stream};
  ops.prepare_weight(stream, head, weight);
  Schedule schedule;
  const Slot x = schedule.slot(DType::f32, {hidden.shape[0], h});
  schedule.upload(x, hidden.data);
  if (dhidden) {
    schedule.download(dhidden.data, policy_loss(schedule, {ops, weight, dhead}, loss, x, rows, lanes));
  } else {
    policy_score(schedule, {ops, weight, Tensor{}}, loss.temperature, loss.chunk_rows, x, rows, lanes);
  }
  executor.run(schedule, aborted);
  stream.synchronize();
  if (!dhidden) scalar_stage(device, stream, loss.scalars, rows, lanes);
  check_finite(rows, lanes);
  return lanes;
}

LossLanes loss_of_logits(Device& device, Stream& stream, const PolicyLoss& loss, const LossRows& rows, Tensor logits,
                         Tensor dlogits) {
  check(loss, rows);
  const Ops& ops = device.ops();
  const int64_t m = logits.shape[0];
  // Lanes of all rows of the logits; those that carry no loss keep token 0 and slopes of 0.
  const Buffer memory(device, static_cast<size_t>(6 * m) * sizeof(float));
  const Drain drain{stream};
  const auto lane = [&](int i, DType dtype) { return tensor(static_cast<float*>(memory.data()) + i * m, dtype, {m}); };
  const Tensor targets = lane(0, DType::i32), lse = lane(1, DType::f32), logprob = lane(2, DType::f32);
  const Tensor entropy = lane(3, DType::f32), g = lane(4, DType::f32), entropy_g = lane(5, DType::f32);
  std::vector<int32_t> target(m);
  for (int64_t i = 0; i < rows.size(); ++i) target[rows.row[i]] = rows.target[i];
  stream.copy_to_device(targets.data, target.data(), targets.bytes());
  const float scale = 1.0f / loss.temperature;
  ops.logits_statistics(stream, logits, targets, scale, lse, logprob, entropy);
  std::vector<float> all_logprob(m), all_entropy(m);
  stream.copy_to_host(all_logprob.data(), logprob.data, logprob.bytes());
  stream.copy_to_host(all_entropy.data(), entropy.data, entropy.bytes());
  stream.synchronize();

  LossLanes lanes;
  for (const int32_t row : rows.row) {
    lanes.logprob.push_back(all_logprob[row]);
    lanes.entropy.push_back(all_entropy[row]);
  }
  const Slopes slopes = scalar_stage(device, stream, loss.scalars, rows, lanes);
  check_finite(rows, lanes);
  if (!dlogits) return lanes;
  const bool of_entropy = !slopes.entropy.empty();
  std::vector<float> all_g(m), all_entropy_g(m);
  for (int64_t i = 0; i < rows.size(); ++i) {
    all_g[rows.row[i]] = slopes.logprob[i];
    if (of_entropy) all_entropy_g[rows.row[i]] = slopes.entropy[i];
  }
  stream.copy_to_device(g.data, all_g.data(), g.bytes());
  stream.copy_to_device(entropy_g.data, all_entropy_g.data(), entropy_g.bytes());
  if (dlogits.data != logits.data) stream.copy_on_device(dlogits.data, logits.data, logits.bytes());
  ops.logits_gradient(stream, dlogits, targets, lse, g, entropy, of_entropy ? entropy_g : Tensor{}, scale);
  stream.synchronize();
  return lanes;
}

}  // namespace tokenring
