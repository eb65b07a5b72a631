#include "model/trainer.h"

#include <cmath>

#include "core/schedule.h"
#include "model/attend.h"
#include "model/decoder.h"
#include "model/parameters.h"

namespace tokenring {

namespace {

std::vector<int32_t> positions_of(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> positions;
  for (const int32_t length : lengths) {
    for (int32_t i = 0; i < length; ++i) positions.push_back(i);
  }
  return positions;
}

// Lanes are aligned with the tokens they are about; the hidden state that predicts token i is row i - 1.
LossRows rows_of(const PackedBatch& batch, bool every) {
  LossRows rows;
  size_t token = 0;
  for (const int32_t length : batch.lengths) {
    const int32_t first = static_cast<int32_t>(rows.row.size());
    ++token;  // the first has no prediction
    for (int32_t i = 1; i < length; ++i, ++token) {
      if (!every && (batch.weight.empty() || batch.weight[token] == 0.0f)) continue;
      rows.row.push_back(static_cast<int32_t>(token) - 1);
      rows.target.push_back(batch.tokens[token]);
      if (every) continue;
      rows.weight.push_back(batch.weight[token]);
      rows.advantage.push_back(batch.advantage.empty() ? 0.0f : batch.advantage[token]);
      rows.old_logprob.push_back(batch.old_logprob.empty() ? 0.0f : batch.old_logprob[token]);
      rows.reference_logprob.push_back(batch.reference_logprob.empty() ? 0.0f : batch.reference_logprob[token]);
    }
    if (static_cast<int32_t>(rows.row.size()) > first) rows.begin.push_back(first);
  }
  rows.begin.push_back(static_cast<int32_t>(rows.row.size()));
  return rows;
}

std::vector<OptimiserSegment> segments_of(const Parameters& parameters) {
  std::vector<OptimiserSegment> segments;
  for (const NamedSlice& slice : parameters.slices()) {
    if (segments.empty() || segments.back().decay != slice.decay) segments.push_back({slice.offset, 0, slice.decay});
    segments.back().elements = slice.offset + slice.elements() - segments.back().offset;
  }
  return segments;
}

}  // namespace

struct Trainer::Impl {
  Device& device;
  Parameters& parameters;
  std::unique_ptr<Stream> stream;
  Executor executor;
  Decoder decoder;
  AdamWOptimiser optimiser;
  TrainerOptions options;

  Impl(Device& device, Parameters& parameters, TrainerOptions options)
      : device(device),
        parameters(parameters),
        stream(device.stream()),
        executor(device, *stream),
        decoder(parameters.config(), device.ops(), parameters.rope()),
        optimiser(device, segments_of(parameters), parameters.elements()),
        options(options) {}

  std::string first_non_finite(Tensor flat) { return parameters.first_non_finite(*stream, flat); }

  void check_weights() {
    const std::string bad = first_non_finite(parameters.master());
    if (!bad.empty()) fail("NON_FINITE", "the weights of ", bad, " are not finite; load or initialise them again");
  }

  // Numbers from the caller; that they are none is the weights' fault if those sampled them.
  void check_lane(const char* name, const LossRows& rows, const std::vector<float>& lane) {
    for (size_t i = 0; i < lane.size(); ++i) {
      if (std::isfinite(lane[i])) continue;
      check_weights();
      fail("NON_FINITE", "batch: ", name, " of token ", rows.row[i] + 1, " is ", lane[i], "; it must be a number");
    }
  }

  // A ratio that is bounded makes a finite loss of a logprob that is not: all three lanes are looked at. `loss` is
  // empty for score().
  void check_lanes(const LossRows& rows, const LossLanes& lanes) {
    for (int64_t i = 0; i < rows.size(); ++i) {
      const bool scored = lanes.loss.empty();
      if (std::isfinite(lanes.logprob[i]) && std::isfinite(lanes.entropy[i]) &&
          (scored || std::isfinite(lanes.loss[i])))
        continue;
      check_weights();
      const int32_t token = rows.row[i] + 1;
      if (scored) fail("NON_FINITE", "the logprob of token ", token, " of the batch is ", lanes.logprob[i]);
      fail("NON_FINITE", "the loss of token ", token, " of the batch is ", lanes.loss[i], " (its logprob is ",
           lanes.logprob[i], ", under the sampling policy ", rows.old_logprob[i], ", its advantage ", rows.advantage[i],
           ", its weight ", rows.weight[i], "); all gradients were dropped");
    }
  }

  struct Inputs {
    Slot tokens, positions;
  };
  static Inputs upload(Schedule& schedule, const PackedBatch& batch, const std::vector<int32_t>& positions) {
    const int64_t m = static_cast<int64_t>(batch.tokens.size());
    Inputs in{schedule.slot(DType::i32, {m}), schedule.slot(DType::i32, {m})};
    schedule.upload(in.tokens, batch.tokens.data());
    schedule.upload(in.positions, positions.data());
    return in;
  }

  LossLanes backpropagate(const PackedBatch& batch, const LossRows& rows, const PolicyLoss& loss,
                          const std::atomic<bool>& aborted) {
    const std::vector<int32_t> positions = positions_of(batch.lengths);
    PackedAttend attend(decoder.config(), decoder.ops(), batch.lengths);
    LossLanes lanes;
    Schedule schedule;
    const Inputs in = upload(schedule, batch, positions);
    const Keep keep = options.activation_checkpointing ? Keep::checkpoints : Keep::everything;
    const DecoderPass pass = decoder.forward(schedule, parameters, attend, in.tokens, in.positions, keep);
    const PolicyHead head{device.ops(), parameters.acquire_edge(schedule).head, parameters.edge(schedule).head};
    const Slot dhidden = policy_loss(schedule, head, loss, pass.hidden, rows, lanes);
    parameters.release_edge(schedule);
    decoder.backward(schedule, parameters, parameters, attend, pass, dhidden);

    const Drain drain{*stream};
    executor.run(schedule, aborted);
    stream->synchronize();
    return lanes;
  }
};

Trainer::Trainer(Device& device, Parameters& parameters, TrainerOptions options)
    : impl_(std::make_unique<Impl>(device, parameters, options)) {}
Trainer::~Trainer() = default;

LossResult Trainer::accumulate(const PackedBatch& batch, const PolicyLoss& loss, const std::atomic<bool>& aborted) {
  const DecoderConfig& config = impl_->decoder.config();
  batch.check(config.vocab_size, config.positions());
  loss.check();
  require(loss.scalars.objective == PolicyObjective::nll || (!batch.advantage.empty() && !batch.old_logprob.empty()),
          "accumulate: this objective needs the lanes advantage and old_logprob");
  require(loss.scalars.kl_coef == 0 || !batch.reference_logprob.empty(),
          "accumulate: kl_coef needs the lane reference_logprob");

  const size_t tokens = batch.tokens.size();
  LossResult result{0, std::vector<float>(tokens), std::vector<float>(tokens), std::vector<int32_t>(tokens)};
  const LossRows rows = rows_of(batch, false);
  if (rows.size() == 0) return result;
  try {
    impl_->check_lane("weight", rows, rows.weight);
    impl_->check_lane("advantage", rows, rows.advantage);
    impl_->check_lane("old_logprob", rows, rows.old_logprob);
    impl_->check_lane("reference_logprob", rows, rows.reference_logprob);
    const LossLanes lanes = impl_->backpropagate(batch, rows, loss, aborted);
    impl_->check_lanes(rows, lanes);
    for (int64_t i = 0; i < rows.size(); ++i) {
      const int64_t token = rows.row[i] + 1;
      result.logprob[token] = lanes.logprob[i];
      result.entropy[token] = lanes.entropy[i];
      result.flags[token] = lanes.flags[i];
      result.loss += lanes.loss[i];
    }
  } catch (...) {
    drop_gradients();  // what is there is a part of a batch, or worse
    throw;
  }
  return result;
}

LossResult Trainer::score(const PackedBatch& batch, float temperature, const std::atomic<bool>& aborted) {
  const DecoderConfig& config = impl_->decoder.config();
  batch.check(config.vocab_size, config.positions());
  require(std::isfinite(temperature) && temperature > 0, "score: temperature is ", temperature, "; it must be above 0");
  const size_t tokens = batch.tokens.size();
  LossResult result{0, std::vector<float>(tokens), std::vector<float>(tokens), std::vector<int32_t>(tokens)};
  const LossRows rows = rows_of(batch, true);
  if (rows.size() == 0) return result;

  const std::vector<int32_t> positions = positions_of(batch.lengths);
  PackedAttend attend(config, impl_->decoder.ops(), batch.lengths);
  LossLanes lanes;
  Schedule schedule;
  const Impl::Inputs in = Impl::upload(schedule, batch, positions);
  const DecoderPass pass =
      impl_->decoder.forward(schedule, impl_->parameters, attend, in.tokens, in.positions, Keep::nothing);
  const PolicyHead head{impl_->device.ops(), impl_->parameters.acquire_edge(schedule).head, Tensor{}};
  policy_score(schedule, head, temperature, 0, pass.hidden, rows, lanes);
  impl_->parameters.release_edge(schedule);
  {
    const Drain drain{*impl_->stream};
    impl_->executor.run(schedule, aborted);
    impl_->stream->synchronize();
  }
  impl_->check_lanes(rows, lanes);
  for (int64_t i = 0; i < rows.size(); ++i) {
    const int64_t token = rows.row[i] + 1;
    result.logprob[token] = lanes.logprob[i];
    result.entropy[token] = lanes.entropy[i];
  }
  return result;
}

OptimiserResult Trainer::optimise(const AdamW& how) {
  how.check();
  Parameters& p = impl_->parameters;
  Stream& stream = *impl_->stream;
  p.complete_gradients(stream);
  const int64_t step = p.optimiser_step() + 1;
  const double norm = impl_->optimiser.norm(stream, p.gradient());
  if (!std::isfinite(norm)) {
    const std::string bad = impl_->first_non_finite(p.gradient());
    drop_gradients();
    fail("NON_FINITE", "optimiser step ", step, ": ",
         bad.empty() ? "the norm of the gradients overflows" : "the gradient of " + bad + " is not finite",
         "; all gradients were dropped and the weights are as before");
  }
  impl_->optimiser.step(stream, how, step, norm, {p.master(), p.gradient(), p.first_moment(), p.second_moment()});
  p.set_optimiser_step(step);
  p.publish(stream);
  // Finite gradients can still make weights that are not: a learning rate that overflows, an epsilon of 0.
  if (!std::isfinite(impl_->optimiser.norm(stream, p.master()))) {
    const std::string bad = impl_->first_non_finite(p.master());
    if (!bad.empty()) {
      fail("NON_FINITE", "optimiser step ", step, " made the weights of ", bad, " not finite (learning rate ",
           how.learning_rate, ", epsilon ", how.epsilon, "); load an earlier checkpoint");
    }
  }
  stream.synchronize();
  return OptimiserResult{norm, step, p.version()};
}

void Trainer::drop_gradients() {
  impl_->parameters.zero_gradients(*impl_->stream);
  impl_->stream->synchronize();
}

void Trainer::reset_optimiser() {
  impl_->parameters.reset_optimiser(*impl_->stream);
  impl_->stream->synchronize();
}

}  // namespace tokenring
