#include "model/trainer.h"

#include <cmath>
#include <list>
#include <optional>
#include <string_view>
#include <utility>

#include "core/schedule.h"
#include "model/attend.h"
#include "model/decoder.h"
#include "model/parameters.h"
#include "model/rows.h"
#include "optim/streamed.h"
#include "parallel/context_attend.h"
#include "parallel/gradient_sum.h"
#include "parallel/mesh.h"

namespace tokenring {

namespace {

// Whether an entry adds to gradients, which then sum over tokens.
bool sums_tokens(const Entry& entry) {
  const std::string_view op = entry.op;
  return op == "linear_wgrad" || op == "rmsnorm_backward" || op == "qk_norm_backward" || op == "embedding_backward";
}

std::vector<OptimiserSegment> segments_of(const Parameters& parameters) {
  std::vector<OptimiserSegment> segments;
  for (const Fragment& fragment : parameters.fragments()) {
    const bool decay = parameters.slices()[fragment.slice].decay;
    if (segments.empty() || segments.back().decay != decay) segments.push_back({fragment.offset, 0, decay});
    segments.back().elements = fragment.offset + fragment.elements - segments.back().offset;
  }
  return segments;
}

}  // namespace

struct Trainer::Impl {
  Device& device;
  Parameters& parameters;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Stream> host_stream;  // of copies of checkpoints, if there are any
  Executor executor;
  Decoder decoder;
  AdamWOptimiser optimiser;
  std::optional<StreamedAdamW> streamed;  // where its state is the host's
  std::optional<Offload> offload;
  TrainerOptions options;
  Mesh* mesh;
  std::unique_ptr<Trace> trace;
  std::optional<GradientSum> sum;  // on a mesh of several ranks, or of shares
  // Norm of the weights of a version, by which ranks tell whether theirs are the same.
  double weights_norm = 0;
  int64_t weights_version = -1;

  Impl(Device& device, Parameters& parameters, TrainerOptions options, Mesh* mesh)
      : device(device),
        parameters(parameters),
        stream(device.stream()),
        host_stream(options.offload_checkpoints ? device.stream() : nullptr),
        executor(device, streams_with(*stream, mesh, host_stream.get())),
        decoder(parameters.config(), device.ops(), parameters.rope(), device.ops().mlp_rows()),
        optimiser(device, segments_of(parameters), parameters.elements()),
        options(options),
        mesh(mesh) {
    if (mesh) {
      if (mesh->size() > 1 || parameters.stage() > 0)
        sum.emplace(parameters, parameters.config().num_hidden_layers, *mesh);
    }
    if (host_stream) offload.emplace(device, *host_stream);
    if (parameters.on_host()) streamed.emplace(device, optimiser, parameters.elements(), options.optimiser_part);
    if (!options.trace.empty()) trace = std::make_unique<Trace>(options.trace, mesh ? mesh->rank() : 0);
    executor.trace(trace.get(), 0);
  }

  static Streams streams_with(Stream& compute, Mesh* mesh, Stream* host) {
    Streams streams = mesh ? mesh->streams(compute) : Streams{&compute};
    streams[static_cast<size_t>(Track::host)] = host;
    return streams;
  }

  // Whether other ranks take part in every pass, one for each call.
  bool gathers() const { return parameters.stage() == 3; }

  std::string first_non_finite(Tensor flat) { return parameters.first_non_finite(*stream, flat); }

  void check_weights() {
    const std::string bad = first_non_finite(parameters.master());
    if (!bad.empty()) fail("NON_FINITE", "the weights of ", bad, " are not finite; load or initialise them again");
  }

  // Numbers from the caller; that they are none is the weights' fault if those sampled them.
  void check_lane(const char* name, const RankRows& rows, const std::vector<float>& lane) {
    for (size_t i = 0; i < lane.size(); ++i) {
      if (std::isfinite(lane[i])) continue;
      check_weights();
      fail("NON_FINITE", "batch: ", name, " of token ", rows.token[i], " is ", lane[i], "; it must be a number");
    }
  }

  // What the stream uses until it is synchronised.
  struct Pass {
    int64_t first;  // token of the whole batch
    RankRows rows;
    std::unique_ptr<Attend> attend;
    std::unique_ptr<SequenceRatios> ratios;  // of gspo, where a context group shares the documents
    LossLanes lanes;
  };

  // This rank's part of a batch; null if no rank of the context group has anything to predict. `every` as in
  // rank_rows().
  std::optional<Pass> pass_of(const PackedBatch& batch, int64_t first, bool every, bool ratios) {
    const DecoderConfig& c = decoder.config();
    RankRows rows = rank_rows(batch, whole(batch.lengths), every);
    if (rows.loss.size() == 0) return {};
    Communicator* context = mesh ? mesh->context() : nullptr;
    if (!context)
      return Pass{first, std::move(rows), std::make_unique<PackedAttend>(c, decoder.ops(), batch.lengths), {}, {}};
    std::vector<Shard> shards = zigzag(batch.lengths, context->size());
    RankRows own = rank_rows(batch, shards[context->rank()], every);
    const AttentionHeads heads{c.num_attention_heads, c.num_key_value_heads, c.head_dim, attention_scale(c)};
    Pass pass{first, std::move(own), nullptr, nullptr, {}};
    pass.attend = std::make_unique<ContextAttend>(decoder.ops(), *context, mesh->node(), heads, std::move(shards));
    if (ratios) {
      std::vector<Run> runs = runs_of(pass.rows, rows);
      pass.ratios = std::make_unique<ContextSequences>(decoder.ops(), *context, std::move(rows.loss), std::move(runs));
    }
    return pass;
  }

  // A ratio that is bounded makes a finite loss of a logprob that is not: all three lanes are looked at. Those of
  // score() have no loss.
  void check_lanes(const Pass& pass) {
    const LossRows& rows = pass.rows.loss;
    const LossLanes& lanes = pass.lanes;
    for (int64_t i = 0; i < rows.size(); ++i) {
      const bool scored = lanes.loss.empty();
      if (std::isfinite(lanes.logprob[i]) && std::isfinite(lanes.entropy[i]) &&
          (scored || std::isfinite(lanes.loss[i])))
        continue;
      check_weights();
      const int64_t token = pass.first + pass.rows.token[i];
      if (scored) fail("NON_FINITE", "the logprob of token ", token, " of the batch is ", lanes.logprob[i]);
      fail("NON_FINITE", "the loss of token ", token, " of the batch is ", lanes.loss[i], " (its logprob is ",
           lanes.logprob[i], ", under the sampling policy ", rows.old_logprob[i], ", its advantage ", rows.advantage[i],
           ", its weight ", rows.weight[i], "); all gradients were dropped");
    }
  }

  void read_lanes(const Pass& pass, LossResult& result) {
    check_lanes(pass);
    const LossLanes& lanes = pass.lanes;
    for (int64_t i = 0; i < pass.rows.loss.size(); ++i) {
      const int64_t token = pass.first + pass.rows.token[i];
      result.logprob[token] = lanes.logprob[i];
      result.entropy[token] = lanes.entropy[i];
      if (lanes.loss.empty()) continue;
      result.flags[token] = lanes.flags[i];
      result.loss += lanes.loss[i];
    }
  }

  struct Inputs {
    Slot tokens, positions;
  };
  static Inputs upload(Schedule& schedule, const RankRows& rows) {
    const int64_t m = static_cast<int64_t>(rows.tokens.size());
    Inputs in{schedule.slot(DType::i32, {m}), schedule.slot(DType::i32, {m})};
    schedule.upload(in.tokens, rows.tokens.data());
    schedule.upload(in.positions, rows.positions.data());
    return in;
  }

  // Tokens of one pass. Documents are independent and their order is kept, so batches can be cut between them: where
  // many fit into the caches, a batch goes through forth and back in parts that do.
  // Where layers are gathered and their gradients summed in each pass, a batch is one: ranks may hold unlike batches.
  int64_t pass_tokens() const {
    if (gathers()) return 0;
    const DecoderConfig& c = decoder.config();
    const int64_t width = 4 * int64_t{c.hidden_size} + 3 * int64_t{c.intermediate_size} +
                          2 * (c.num_attention_heads + int64_t{c.num_key_value_heads}) * c.head_dim;
    const int64_t bytes = width * c.num_hidden_layers * static_cast<int64_t>(size_of(decoder.ops().activation()));
    const int64_t tokens = static_cast<int64_t>(decoder.ops().near_bytes()) / bytes;
    return tokens < kLeastPass ? 0 : tokens * (mesh ? mesh->options().context_parallel : 1);
  }
  static constexpr int64_t kLeastPass = 128;

  // Streams with an arena each, for parts of a batch side by side.
  struct Lane {
    explicit Lane(const Impl& of)
        : stream(of.device.lane()), executor(of.device, streams_with(*stream, of.mesh, of.host_stream.get())) {}
    std::unique_ptr<Stream> stream;
    Executor executor;
  };
  std::list<Lane> lanes;

  // Queues forward and backward. The sums over tokens take turns with the part before, if there is one.
  void backpropagate(Executor& on, Pass& of, const PolicyLoss& loss, GradSink& sink, std::shared_ptr<Turn>& turn) {
    Schedule schedule;
    const Inputs in = upload(schedule, of.rows);
    const Keep keep = options.activation_checkpointing ? Keep::checkpoints : Keep::everything;
    Offload* const away = offload ? &*offload : nullptr;
    const DecoderPass pass = decoder.forward(schedule, parameters, *of.attend, in.tokens, in.positions, keep, away);
    const PolicyHead head{device.ops(), parameters.acquire_head(schedule).weight, sink.head(schedule).weight};
    const Slot dhidden = policy_loss(schedule, head, loss, pass.hidden, of.rows.loss, of.lanes, of.ratios.get());
    parameters.release_head(schedule);
    decoder.backward(schedule, parameters, sink, *of.attend, pass, dhidden, away);
    int64_t common = 0, of_head = 0;
    for (const Entry& entry : schedule.entries()) {
      if (sums_tokens(entry)) ++(entry.layer < 0 && common == 0 ? of_head : common);
    }
    const auto mine = std::make_shared<Turn>(of_head, common);
    on.stream().take_turns(mine, std::exchange(turn, mine));
    on.run(schedule);
    on.stream().take_turns(nullptr, nullptr);
    // Run or dropped after a failure: nobody waits for this part any more.
    on.stream().call([end = std::shared_ptr<void>(nullptr, [mine](void*) { mine->finish(); })] {});
  }

  // Queues work for these executors, and waits for it and for what it has sent to other ranks.
  template <class Queue>
  void run(const std::vector<Executor*>& on, const std::atomic<bool>& aborted, const Queue& queue) {
    std::list<Drain> drains;
    std::list<Watch> watches;
    std::vector<Stream*> wires;
    if (mesh) wires = {&mesh->context_stream(), &mesh->gradient_stream()};
    if (host_stream) wires.push_back(host_stream.get());
    for (Stream* wire : wires) drains.emplace_back(*wire);
    for (Executor* each : on) {
      drains.emplace_back(each->stream());
      watches.emplace_back(each->stream(), aborted);
    }
    try {
      queue();
      for (Executor* each : on) each->stream().synchronize();
      for (Stream* wire : wires) wire->synchronize();
      if (trace) trace->flush();
    } catch (const std::exception& error) {
      if (mesh) mesh->abort(error.what());  // before the streams are drained: they may wait for other ranks
      throw;
    }
  }

  // Forward and backward of all parts; with `last`, and the sum over the ranks.
  void backpropagate(std::list<Pass>& passes, const PolicyLoss& loss, bool last, const std::atomic<bool>& aborted) {
    // Parts that exchange keys do so one after the other anyway.
    const size_t count = mesh && mesh->context() ? 1 : static_cast<size_t>(device.lanes());
    std::vector<Executor*> on{&executor};
    if (count > 1 && passes.size() >= 2 * count) {
      while (lanes.size() < count) {
        lanes.emplace_back(*this);
        lanes.back().executor.trace(trace.get(), static_cast<int>(lanes.size()));
      }
      on.clear();
      for (Lane& lane : lanes) on.push_back(&lane.executor);
    }
    run(on, aborted, [&] {
      std::shared_ptr<Turn> turn;
      size_t next = 0;
      for (Pass& pass : passes) {
        const bool sums = last && &pass == &passes.back();
        backpropagate(*on[next++ % on.size()], pass, loss, sums ? static_cast<GradSink&>(*sum) : parameters, turn);
      }
      if (passes.empty() && gathers()) {
        Schedule schedule;
        decoder.idle(schedule, parameters, last ? &static_cast<GradSink&>(*sum) : &parameters);
        executor.run(schedule);
      } else if (passes.empty() && last) {
        queue_sum();
      }
    });
    if (last) parameters.set_gradients_summed(true);
  }

  void queue_sum() {
    Schedule schedule;
    sum->add(schedule);
    executor.run(schedule);
  }

  // Of all of it, whichever rank holds what.
  double norm(Tensor flat) {
    return AdamWOptimiser::norm_of(parameters.sum_over_shares(optimiser.sum_of_squares(*stream, flat)));
  }

  double norm_of_weights() {
    if (weights_version != parameters.version()) {
      weights_norm = norm(parameters.master());
      weights_version = parameters.version();
    }
    return weights_norm;
  }

  // The gradients of the step, complete and of all ranks.
  void gather_gradients(const AdamW& how) {
    if (!sum) return parameters.complete_gradients(*stream);
    const double norm = norm_of_weights();
    if (!parameters.gradients_summed()) queue_sum();
    stream->wait(mesh->gradient_stream());
    // Behind the sums: a rank that has failed since it queued its own is heard of here.
    mesh->agree({{"the optimiser's step", static_cast<double>(parameters.optimiser_step())},
                 {"the version of the weights", static_cast<double>(parameters.version())},
                 {"the norm of the weights", norm},
                 {"learningRate", how.learning_rate},
                 {"beta1", how.beta1},
                 {"beta2", how.beta2},
                 {"epsilon", how.epsilon},
                 {"weightDecay", how.weight_decay},
                 {"clipNorm", how.clip_norm}});
  }

  LossResult accumulate(const PackedBatch&, const PolicyLoss&, const std::atomic<bool>& aborted, bool last);
  LossResult score(const PackedBatch&, float temperature, const std::atomic<bool>& aborted);
  OptimiserResult step(const AdamW&);

  // Marks where a call begins that all ranks make, if only to find that they have nothing to do.
  void mark(const char* call) {
    if (!trace) return;
    Trace::Span& span = trace->add(call);
    span.start = span.end = Trace::now();
  }

  void drop_gradients() {
    parameters.zero_gradients(*stream);
    stream->synchronize();
  }
};

Trainer::Trainer(Device& device, Parameters& parameters, TrainerOptions options, Mesh* mesh)
    : impl_(std::make_unique<Impl>(device, parameters, options, mesh)) {}
Trainer::~Trainer() = default;

LossResult Trainer::Impl::accumulate(const PackedBatch& batch, const PolicyLoss& loss, const std::atomic<bool>& aborted,
                                     bool last) {
  const DecoderConfig& config = decoder.config();
  batch.check(config.vocab_size, config.positions(), mesh != nullptr);
  loss.check();
  const bool empty = batch.tokens.empty();
  require(loss.scalars.objective == PolicyObjective::nll || empty ||
              (!batch.advantage.empty() && !batch.old_logprob.empty()),
          "accumulate: this objective needs the lanes advantage and old_logprob");
  require(loss.scalars.kl_coef == 0 || empty || !batch.reference_logprob.empty(),
          "accumulate: kl_coef needs the lane reference_logprob");
  require(!parameters.gradients_summed(),
          "accumulate: the gradients are summed over the ranks already; optimise or drop them before more are added");

  LossResult result(batch.tokens.size());
  const RankRows rows = rank_rows(batch, whole(batch.lengths), false);
  last = last && sum;
  if (rows.loss.size() == 0 && !last && !gathers()) return result;
  try {
    check_lane("weight", rows, rows.loss.weight);
    check_lane("advantage", rows, rows.loss.advantage);
    check_lane("old_logprob", rows, rows.loss.old_logprob);
    check_lane("reference_logprob", rows, rows.loss.reference_logprob);
    std::list<Pass> passes;
    int64_t first = 0;
    for (const PackedBatch& part : batch.parts(pass_tokens(), decoder.ops().cut_rows())) {
      const bool ratios = loss.scalars.objective == PolicyObjective::gspo;
      if (std::optional<Pass> pass = pass_of(part, first, false, ratios)) passes.push_back(std::move(*pass));
      first += static_cast<int64_t>(part.tokens.size());
    }
    backpropagate(passes, loss, last, aborted);
    for (const Pass& pass : passes) read_lanes(pass, result);
  } catch (...) {
    drop_gradients();  // what is there is a part of a batch, or worse
    throw;
  }
  return result;
}

LossResult Trainer::Impl::score(const PackedBatch& batch, float temperature, const std::atomic<bool>& aborted) {
  const DecoderConfig& config = decoder.config();
  batch.check(config.vocab_size, config.positions(), mesh != nullptr);
  require(std::isfinite(temperature) && temperature > 0, "score: temperature is ", temperature, "; it must be above 0");
  LossResult result(batch.tokens.size());
  std::optional<Pass> of = pass_of(batch, 0, true, false);
  if (!of && !gathers()) return result;

  Schedule schedule;
  if (of) {
    const Inputs in = upload(schedule, of->rows);
    const DecoderPass pass = decoder.forward(schedule, parameters, *of->attend, in.tokens, in.positions, Keep::nothing);
    const PolicyHead head{device.ops(), parameters.acquire_head(schedule).weight, Tensor{}};
    policy_score(schedule, head, temperature, 0, pass.hidden, of->rows.loss, of->lanes);
    parameters.release_head(schedule);
  } else {
    decoder.idle(schedule, parameters, nullptr);
  }
  run({&executor}, aborted, [&] { executor.run(schedule); });
  if (of) read_lanes(*of, result);
  return result;
}

// From gradients that are complete; all ranks of a mesh hold the same, and fail alike.
OptimiserResult Trainer::Impl::step(const AdamW& how) {
  Parameters& p = parameters;
  const int64_t step = p.optimiser_step() + 1;
  const double norm = this->norm(p.gradient());
  if (!std::isfinite(norm)) {
    const std::string bad = p.first_non_finite(*stream, p.gradient(), true);
    drop_gradients();
    if (mesh) mesh->fails_alike();
    fail("NON_FINITE", "optimiser step ", step, ": ",
         bad.empty() ? "the norm of the gradients overflows" : "the gradient of " + bad + " is not finite",
         "; all gradients were dropped and the weights are as before");
  }
  const int64_t begun = Trace::now();
  if (streamed) {
    const double squares = streamed->step(*stream, how, step, norm, p.optimiser_state(),
                                          [&](int64_t offset, Tensor weights) { p.round(*stream, offset, weights); });
    // Before publish(), whose gathers go over the same communicator from another stream.
    weights_norm = AdamWOptimiser::norm_of(p.sum_over_shares(squares));
  } else {
    optimiser.step(*stream, how, step, norm, p.optimiser_state());
  }
  p.finish_step(*stream);
  p.set_optimiser_step(step);
  p.publish(*stream, streamed.has_value());
  if (streamed) weights_version = p.version();
  // Finite gradients can still make weights that are not: a learning rate that overflows, an epsilon of 0.
  if (!std::isfinite(norm_of_weights())) {
    const std::string bad = p.first_non_finite(*stream, p.master(), true);
    if (!bad.empty()) {
      if (mesh) mesh->fails_alike();
      fail("NON_FINITE", "optimiser step ", step, " made the weights of ", bad, " not finite (learning rate ",
           how.learning_rate, ", epsilon ", how.epsilon, "); load an earlier checkpoint");
    }
  }
  stream->synchronize();
  if (trace) {
    Trace::Span& span = trace->add("adamw");
    span.start = begun;
    span.end = Trace::now();
    trace->flush();
  }
  return OptimiserResult{norm, step, p.version()};
}

LossResult Trainer::accumulate(const PackedBatch& batch, const PolicyLoss& loss, const std::atomic<bool>& aborted,
                               bool last) {
  impl_->mark("accumulate");
  return Mesh::call(impl_->mesh, [&] { return impl_->accumulate(batch, loss, aborted, last); });
}

LossResult Trainer::score(const PackedBatch& batch, float temperature, const std::atomic<bool>& aborted) {
  impl_->mark("score");
  return Mesh::call(impl_->mesh, [&] { return impl_->score(batch, temperature, aborted); });
}

OptimiserResult Trainer::optimise(const AdamW& how) {
  how.check();
  impl_->mark("optimise");
  return Mesh::call(impl_->mesh, [&] {
    impl_->gather_gradients(how);
    return impl_->step(how);
  });
}

void Trainer::drop_gradients() { impl_->drop_gradients(); }

void Trainer::reset_optimiser() {
  impl_->parameters.reset_optimiser(*impl_->stream);
  impl_->stream->synchronize();
}

}  // namespace tokenring
