#include "addon/rank.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/communicator.h"
#include "addon/optimise.h"
#include "addon/policy_loss.h"
#include "addon/results.h"
#include "comm/nccl.h"
#include "model/checkpoint.h"
#include "model/parameters.h"

namespace tokenring::addon {
namespace {

// Random, so that no other addon's objects carry it.
constexpr napi_type_tag kRankTag = {0x6d3fb1f0a8c94e57, 0x9e0c51d27b64f813};
constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
constexpr double kUnbounded = std::numeric_limits<double>::infinity();

RopeScaling read_rope_scaling(const Arguments& from) {
  RopeScaling rope;
  const std::string type = from.text("rope_type");
  require(type == "yarn" || type == "llama3", "config.rope_scaling.rope_type must be \"yarn\" or \"llama3\", got \"",
          type, "\"");
  rope.rope_type = type == "yarn" ? RopeScaling::Type::yarn : RopeScaling::Type::llama3;
  rope.original_max_position_embeddings = from.integer("original_max_position_embeddings", 1, kMost);
  if (from.has("truncate")) rope.truncate = from.boolean("truncate");
  const auto read = [&](const char* field, double& value) {
    if (from.has(field)) value = from.number(field, 0, 1e9);
  };
  read("factor", rope.factor);
  read("beta_fast", rope.beta_fast);
  read("beta_slow", rope.beta_slow);
  read("attention_factor", rope.attention_factor);
  read("mscale", rope.mscale);
  read("mscale_all_dim", rope.mscale_all_dim);
  read("low_freq_factor", rope.low_freq_factor);
  read("high_freq_factor", rope.high_freq_factor);
  return rope;
}

DecoderConfig read_config(const Arguments& from) {
  DecoderConfig config;
  config.vocab_size = from.integer("vocab_size", 1, kMost);
  config.hidden_size = from.integer("hidden_size", 1, kMost);
  config.intermediate_size = from.integer("intermediate_size", 1, kMost);
  config.num_hidden_layers = from.integer("num_hidden_layers", 1, kMost);
  config.num_attention_heads = from.integer("num_attention_heads", 1, kMost);
  config.num_key_value_heads = from.integer("num_key_value_heads", 1, kMost);
  config.head_dim = from.integer("head_dim", 1, kMost);
  config.max_position_embeddings = from.integer("max_position_embeddings", 1, kMost);
  config.rope_theta = from.number("rope_theta", 0, 1e30);
  if (from.has("rope_scaling")) config.rope_scaling = read_rope_scaling(from.object("rope_scaling"));
  config.rms_norm_eps = from.real("rms_norm_eps", 0, 1);
  config.tie_word_embeddings = from.boolean("tie_word_embeddings");
  config.attention_bias = from.boolean("attention_bias");
  config.qk_norm = from.has("qk_norm") && from.boolean("qk_norm");
  return config;
}

MomentForm read_moments(const Arguments& from) {
  if (!from.has("optimiserBits")) return MomentForm::float32;
  const int bits = from.integer("optimiserBits", 8, 32);
  require(bits == 8 || bits == 32, "options.optimiserBits must be 8 or 32, got ", bits);
  return bits == 8 ? MomentForm::eight_bit : MomentForm::float32;
}

}  // namespace

MeshOptions read_mesh_shape(const Arguments& from, int32_t most_ranks) {
  MeshOptions mesh;
  mesh.size = from.integer("size", 1, most_ranks);
  mesh.rank = from.integer("rank", 0, mesh.size - 1);
  mesh.context_parallel = from.integer("contextParallel", 1, mesh.size);
  const std::string schedule = from.text("contextSchedule");
  require(schedule == "ring" || schedule == "all_gather" || schedule == "two_level",
          "options.mesh.contextSchedule must be \"ring\", \"all_gather\" or \"two_level\", got \"", schedule, "\"");
  mesh.context_schedule = schedule == "ring"         ? ContextSchedule::ring
                          : schedule == "all_gather" ? ContextSchedule::all_gather
                                                     : ContextSchedule::two_level;
  if (from.has("ranksPerNode")) mesh.ranks_per_node = from.integer("ranksPerNode", 1, most_ranks);
  mesh.shard = from.integer("shard", 0, 3);
  mesh.shard_size = from.integer("shardSize", 1, mesh.size);
  mesh.check();
  return mesh;
}

namespace {

MeshOptions read_mesh(const Arguments& from, bool gpu) {
  MeshOptions mesh = read_mesh_shape(from, gpu ? kMaxNcclRanks : kMaxSharedMemoryRanks);
  mesh.id = id_argument(from, "id");
  mesh.timeout = std::chrono::milliseconds(from.integer("timeout", 1, kMost));
  mesh.check();
  return mesh;
}

}  // namespace

RankOptions read_rank_options(const Arguments& from) {
  RankOptions options;
  options.config = read_config(from.object("config"));
  options.device = from.text("device");
  options.threads = from.integer("threads", 0, 4096);
  const std::string precision = from.text("precision");
  require(precision == "float32" || precision == "bf16", "options.precision must be \"float32\" or \"bf16\", got \"",
          precision, "\"");
  options.precision = precision == "bf16" ? Precision::bf16 : Precision::float32;
  if (from.has("deterministic")) options.deterministic = from.boolean("deterministic");
  options.trainer.activation_checkpointing = from.boolean("activationCheckpointing");
  options.moments = read_moments(from);
  if (from.has("offload")) {
    const std::string what = from.text("offload");
    require(what == "none" || what == "checkpoints" || what == "optimiser" || what == "all",
            "options.offload must be \"none\", \"checkpoints\", \"optimiser\" or \"all\", got \"", what, "\"");
    options.trainer.offload_checkpoints = what == "checkpoints" || what == "all";
    options.offload_optimiser = what == "optimiser" || what == "all";
  }
  if (from.has("trace")) options.trainer.trace = from.text("trace");
  options.sampler.max_batch_tokens = from.integer("maxBatchTokens", 1, kMost);
  options.sampler.max_pages = from.integer("maxPages", 0, kMost);
  return options;
}

namespace {

PackedBatch read_batch(const Arguments& from) {
  PackedBatch batch;
  batch.tokens = from.integers("tokens");
  batch.lengths = from.integers("lengths");
  batch.weight = from.reals("weight");
  batch.advantage = from.reals("advantage");
  batch.old_logprob = from.reals("oldLogprob");
  batch.reference_logprob = from.reals("referenceLogprob");
  return batch;
}

SampleRequest read_request(const Arguments& from) {
  SampleRequest request;
  request.max_tokens = from.integer("maxTokens", 1, kMost);
  request.stop = from.integers("stop");
  request.temperature = from.real("temperature", 0, 1e3);
  request.seed = from.bits("seed");
  require(request.temperature == 0 || request.temperature >= 1e-3f,
          "request.temperature must be 0 (greedy) or at least 0.001, got ", request.temperature);
  return request;
}

}  // namespace

// --- construction and end ------------------------------------------------------------------------------

Napi::Function RankObject::define(Napi::Env env) {
  return DefineClass(env, "Rank",
                     {
                         InstanceAccessor<&RankObject::guard<&RankObject::disposed>>("disposed"),
                         InstanceMethod<&RankObject::guard<&RankObject::open>>("open"),
                         InstanceMethod<&RankObject::guard<&RankObject::join>>("join"),
                         InstanceMethod<&RankObject::guard<&RankObject::initialise>>("initialise"),
                         InstanceMethod<&RankObject::guard<&RankObject::accumulate>>("accumulate"),
                         InstanceMethod<&RankObject::guard<&RankObject::score>>("score"),
                         InstanceMethod<&RankObject::guard<&RankObject::optimise>>("optimise"),
                         InstanceMethod<&RankObject::guard<&RankObject::drop_gradients>>("dropGradients"),
                         InstanceMethod<&RankObject::guard<&RankObject::reset_optimiser>>("resetOptimiser"),
                         InstanceMethod<&RankObject::guard<&RankObject::save>>("save"),
                         InstanceMethod<&RankObject::guard<&RankObject::end_save>>("endSave"),
                         InstanceMethod<&RankObject::guard<&RankObject::load>>("load"),
                         InstanceMethod<&RankObject::guard<&RankObject::version>>("version"),
                         InstanceMethod<&RankObject::guard<&RankObject::busy_seconds>>("busySeconds"),
                         InstanceMethod<&RankObject::guard<&RankObject::memory>>("memory"),
                         InstanceMethod<&RankObject::guard<&RankObject::open_session>>("openSession"),
                         InstanceMethod<&RankObject::guard<&RankObject::fork_session>>("forkSession"),
                         InstanceMethod<&RankObject::guard<&RankObject::extend_session>>("extendSession"),
                         InstanceMethod<&RankObject::guard<&RankObject::close_session>>("closeSession"),
                         InstanceMethod<&RankObject::guard<&RankObject::sample_session>>("sampleSession"),
                         InstanceMethod<&RankObject::guard<&RankObject::usage>>("usage"),
                         InstanceMethod<&RankObject::guard<&RankObject::dispose>>("dispose"),
                     });
}

template <Napi::Value (RankObject::*method)(const Napi::CallbackInfo&)>
Napi::Value RankObject::guard(const Napi::CallbackInfo& info) {
  if (!info.This().As<Napi::Object>().CheckTypeTag(&kRankTag)) {
    throw Napi::TypeError::New(info.Env(), "Illegal invocation: the receiver is not a Rank");
  }
  return guarded(info.Env(), [&] { return (this->*method)(info); });
}

RankObject::RankObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<RankObject>(info), channel_(state_of(info.Env()).channel) {
  guarded(info.Env(), [&] {
    const Arguments from(info[0], "options");
    options_ = read_rank_options(from);
    if (from.has("mesh")) options_.mesh = read_mesh(from.object("mesh"), options_.device != "cpu");
    options_.check();
  });
  info.This().As<Napi::Object>().TypeTag(&kRankTag);
  channel_->add(this);
}

RankObject::~RankObject() { close_now(); }

// The environment ends, or the object was collected undisposed: nobody is left to hear of results.
void RankObject::close_now() {
  for (const auto& call : calls_) call->aborted = true;
  if (builder_.joinable()) builder_.join();
  rank_.reset();
  if (closer_.joinable()) closer_.join();
  if (built_) built_->reset();
  writer_.reset();
  channel_->remove(this);
}

Napi::Value RankObject::open(const Napi::CallbackInfo& info) {
  if (!disposal_.IsEmpty()) live();
  if (built_) fail("INTERNAL", "a rank is opened once");
  const auto call = std::make_shared<Call>(info.Env());
  call->settled = [this] {
    if (!disposal_.IsEmpty()) return;  // dispose() has taken over
    builder_.join();
    rank_ = std::move(*built_);
  };
  built_ = std::make_shared<std::unique_ptr<Rank>>();
  builder_ = std::thread([completion = begin<Nothing>(call), built = built_, options = options_] {
    completion->run([&] {
      *built = std::make_unique<Rank>(options);
      return Nothing{};
    });
  });
  return job_handle(info.Env(), call);
}

Napi::Value RankObject::dispose(const Napi::CallbackInfo& info) {
  if (!disposal_.IsEmpty()) return disposal_.Value();
  const auto call = std::make_shared<Call>(info.Env());
  call->settled = [this] { closer_.join(); };
  disposal_ = Napi::Persistent(call->deferred.Promise());
  sessions_.clear();
  closer_ = std::thread([completion = begin<Nothing>(call), rank = std::move(rank_), builder = std::move(builder_),
                         built = built_]() mutable {
    if (builder.joinable()) {
      builder.join();
      built->reset();
    }
    rank.reset();
    completion->succeed({});
  });
  return disposal_.Value();
}

Napi::Value RankObject::disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !disposal_.IsEmpty());
}

// --- guards and calls ----------------------------------------------------------------------------------

Rank& RankObject::live() const {
  if (!disposal_.IsEmpty()) fail("DISPOSED", "the policy was disposed; create or load another one");
  if (!rank_) fail("INTERNAL", "the rank is not there yet; wait for open()");
  return *rank_;
}

RankObject::Session& RankObject::session(int64_t id) {
  live();
  const auto at = sessions_.find(id);
  require(at != sessions_.end(), "there is no session ", id, "; it was closed or never opened");
  return at->second;
}

RankObject::Session& RankObject::idle_session(int64_t id, const char* what) {
  Session& of = session(id);
  require(!of.sampling, "session ", id, " is sampling; wait for its result before it can be ", what);
  return of;
}

// --- training ------------------------------------------------------------------------------------------

Napi::Value RankObject::join(const Napi::CallbackInfo& info) {
  return submit<Nothing>(
      info.Env(),
      [](Rank& rank, const std::atomic<bool>&) {
        if (rank.mesh()) rank.mesh()->check();
        return Nothing{};
      },
      Kind::collective);
}

Napi::Value RankObject::initialise(const Napi::CallbackInfo& info) {
  const Arguments options(info[0], "options");
  Initialisation how;
  how.std = options.real("std", 0, kUnbounded);
  how.seed = options.bits("seed");
  how.previous_token_bias = options.real("previousTokenBias", 0, kUnbounded);
  how.threads = options_.threads;
  const auto work = [how](Rank& rank, const std::atomic<bool>&) {
    const auto stream = rank.device().stream();
    Mesh::call(rank.mesh().get(), [&] {
      tokenring::initialise(rank.parameters(), *stream, how);
      stream->synchronize();
    });
    return Nothing{};
  };
  return submit<Nothing>(info.Env(), work, Kind::collective);
}

Napi::Value RankObject::accumulate(const Napi::CallbackInfo& info) {
  PackedBatch batch = read_batch(Arguments(info[0], "batch"));
  const PolicyLoss loss = policy_loss_argument(Arguments(info[1], "loss"));
  const bool last = boolean_argument(info[2], "last");
  batch.check(options_.config.vocab_size, options_.config.positions(), live().mesh() != nullptr);
  auto work = [batch = std::move(batch), loss, last](Rank& rank, const std::atomic<bool>& aborted) {
    return rank.trainer().accumulate(batch, loss, aborted, last);
  };
  return submit<LossResult>(info.Env(), std::move(work), Kind::pass);
}

Napi::Value RankObject::score(const Napi::CallbackInfo& info) {
  PackedBatch batch = read_batch(Arguments(info[0], "batch"));
  const float temperature = static_cast<float>(check_temperature(number_argument(info[1], "temperature", 0, 1e3)));
  batch.check(options_.config.vocab_size, options_.config.positions(), live().mesh() != nullptr);
  auto work = [batch = std::move(batch), temperature](Rank& rank, const std::atomic<bool>& aborted) {
    return rank.trainer().score(batch, temperature, aborted);
  };
  return submit<LossResult>(info.Env(), std::move(work), Kind::collective);
}

Napi::Value RankObject::optimise(const Napi::CallbackInfo& info) {
  const AdamW options = adamw_argument(Arguments(info[0], "options"));
  // Those of which JavaScript has not heard yet.
  std::vector<std::shared_ptr<Call>> passes;
  std::copy_if(calls_.begin(), calls_.end(), std::back_inserter(passes), [](const auto& c) { return c->is_pass; });
  auto work = [options, passes](Rank& rank, const std::atomic<bool>&) {
    for (const auto& pass : passes)
      if (pass->failed) fail("ABORTED", "optimise: a pass that it was queued behind failed; the weights are as before");
    return rank.trainer().optimise(options);
  };
  return submit<OptimiserResult>(info.Env(), std::move(work), Kind::collective);
}

Napi::Value RankObject::drop_gradients(const Napi::CallbackInfo& info) {
  return submit<Nothing>(info.Env(), [](Rank& rank, const std::atomic<bool>&) {
    rank.trainer().drop_gradients();
    return Nothing{};
  });
}

Napi::Value RankObject::reset_optimiser(const Napi::CallbackInfo& info) {
  return submit<Nothing>(info.Env(), [](Rank& rank, const std::atomic<bool>&) {
    rank.trainer().reset_optimiser();
    return Nothing{};
  });
}

Napi::Value RankObject::version(const Napi::CallbackInfo& info) {
  return submit<int64_t>(info.Env(), [](Rank& rank, const std::atomic<bool>&) { return rank.parameters().version(); });
}

Napi::Value RankObject::busy_seconds(const Napi::CallbackInfo& info) {
  return submit<double>(info.Env(), [](Rank& rank, const std::atomic<bool>&) { return rank.busy_seconds(); });
}

// --- sessions ------------------------------------------------------------------------------------------

Napi::Value RankObject::open_session(const Napi::CallbackInfo& info) {
  Rank& rank = live();
  require(
      !rank.mesh() || rank.mesh()->options().shard != 3,
      "a session needs whole weights, and this policy's are sharded over ranks (shard: 3); sample from a policy with "
      "shard 0 or 1, or from an engine of its own");
  const int64_t id = next_session_++;
  rank.post([&rank, id, table = table_] { (*table)[id] = rank.sampler().open(); });
  sessions_[id] = {};
  return to_js(info.Env(), id);
}

Napi::Value RankObject::fork_session(const Napi::CallbackInfo& info) {
  const int64_t parent = session_id(info[0]);
  const Session copy = idle_session(parent, "forked");
  Rank& rank = live();
  const int64_t id = next_session_++;
  rank.post([&rank, parent, id, table = table_] { (*table)[id] = rank.sampler().fork(table->at(parent)); });
  sessions_[id] = copy;
  return to_js(info.Env(), id);
}

Napi::Value RankObject::extend_session(const Napi::CallbackInfo& info) {
  const int64_t id = session_id(info[0]);
  std::vector<int32_t> tokens = integers_argument(info[1], "tokens");
  Session& to = idle_session(id, "extended");
  for (size_t i = 0; i < tokens.size(); ++i) {
    require(tokens[i] >= 0 && tokens[i] < options_.config.vocab_size, "tokens[", i, "] is ", tokens[i],
            ", outside the vocabulary of ", options_.config.vocab_size);
  }
  const int64_t length = to.length + static_cast<int64_t>(tokens.size());
  require(length <= options_.config.positions(), "session ", id, " of ", to.length, " tokens cannot take ",
          tokens.size(), " more: the model's context is ", options_.config.positions());
  Rank& rank = live();
  rank.post([&rank, id, tokens = std::move(tokens), table = table_] {
    rank.sampler().extend(table->at(id), tokens.data(), tokens.size());
  });
  to.length = length;
  return info.Env().Undefined();
}

Napi::Value RankObject::close_session(const Napi::CallbackInfo& info) {
  if (!rank_) return info.Env().Undefined();  // disposing the rank closed it
  const int64_t id = session_id(info[0]);
  session(id);
  Rank& rank = live();
  rank.post([&rank, id, table = table_] {
    rank.sampler().close(table->at(id));
    table->erase(id);
  });
  sessions_.erase(id);
  return info.Env().Undefined();
}

Napi::Value RankObject::sample_session(const Napi::CallbackInfo& info) {
  const int64_t id = session_id(info[0]);
  SampleRequest request = read_request(Arguments(info[1], "request"));
  Session& from = idle_session(id, "sampled again");
  require(from.length > 0, "session ", id, " holds no tokens; extend it before sampling");
  require(from.length < options_.config.positions(), "session ", id, " is full: the model's context is ",
          options_.config.positions());
  Rank& rank = live();
  const auto call = std::make_shared<Call>(info.Env());
  // Filled on the engine thread before the call settles, read after it on this one.
  const auto sampled = std::make_shared<int64_t>(0);
  call->settled = [this, id, sampled] {
    const auto at = sessions_.find(id);
    if (at == sessions_.end()) return;
    at->second.sampling = false;
    at->second.length += *sampled;
  };
  const auto completion = begin<SampleResult>(call);
  from.sampling = true;
  rank.post([&rank, id, request = std::move(request), completion, sampled, table = table_] {
    const auto done = [completion, sampled](SampleResult result, std::exception_ptr error) {
      if (error) return completion->fail(error);
      *sampled = static_cast<int64_t>(result.tokens.size());
      completion->succeed(std::move(result));
    };
    try {
      if (completion->aborted()) throw Failure("ABORTED", "sampling was aborted by its caller before it began");
      rank.sampler().sample(table->at(id), request, done);
    } catch (...) {
      completion->fail(std::current_exception());
    }
  });
  const auto cancel = [this, call, id] {
    // Nothing to cancel in a settled call (which also keeps this object alive no longer), a disposed rank or a
    // closed session.
    if (call->over || !rank_ || !sessions_.contains(id)) return;
    rank_->post([rank = rank_.get(), id, table = table_] { rank->sampler().cancel(table->at(id)); });
  };
  return job_handle(info.Env(), call, cancel);
}

Napi::Value RankObject::memory(const Napi::CallbackInfo& info) {
  return submit<MostHeld>(info.Env(), [](Rank& rank, const std::atomic<bool>&) {
    return MostHeld{rank.device().most_held(), rank.device().most_held_of_host()};
  });
}

Napi::Value RankObject::usage(const Napi::CallbackInfo& info) {
  return submit<Sampler::Usage>(info.Env(),
                                [](Rank& rank, const std::atomic<bool>&) { return rank.sampler().usage(); });
}

}  // namespace tokenring::addon
