// The class Rank of JavaScript around model/rank.h. See lib/ops/binding.ts for what each method does.
#pragma once

#include <napi.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include "addon/call.h"
#include "addon/jobs.h"
#include "addon/results.h"
#include "model/checkpoint.h"
#include "model/rank.h"

namespace tokenring::addon {

class Arguments;

// All but the mesh.
RankOptions read_rank_options(const Arguments& from);
// A rank's place among at most so many, without id and timeout.
MeshOptions read_mesh_shape(const Arguments& from, int32_t most_ranks);

// JavaScript's ids of sessions -> the sampler's. Engine thread only.
using SessionTable = std::unordered_map<int64_t, int64_t>;

class RankObject : public Napi::ObjectWrap<RankObject>, public Closable {
 public:
  static Napi::Function define(Napi::Env);
  explicit RankObject(const Napi::CallbackInfo&);
  ~RankObject() override;

  void close_now() override;

 private:
  // What is known on JavaScript's side about a session, so that wrong use throws at once.
  struct Session {
    int64_t length = 0;
    bool sampling = false;
  };

  Napi::Value disposed(const Napi::CallbackInfo&);
  Napi::Value open(const Napi::CallbackInfo&);
  Napi::Value join(const Napi::CallbackInfo&);
  Napi::Value initialise(const Napi::CallbackInfo&);
  Napi::Value accumulate(const Napi::CallbackInfo&);
  Napi::Value score(const Napi::CallbackInfo&);
  Napi::Value optimise(const Napi::CallbackInfo&);
  Napi::Value drop_gradients(const Napi::CallbackInfo&);
  Napi::Value reset_optimiser(const Napi::CallbackInfo&);
  Napi::Value save(const Napi::CallbackInfo&);
  Napi::Value save_copy(const Napi::CallbackInfo&, const std::string& directory, SaveOptions, const std::string& token);
  Napi::Value end_save(const Napi::CallbackInfo&);
  Napi::Value load(const Napi::CallbackInfo&);
  Napi::Value version(const Napi::CallbackInfo&);
  Napi::Value busy_seconds(const Napi::CallbackInfo&);
  Napi::Value memory(const Napi::CallbackInfo&);
  Napi::Value open_session(const Napi::CallbackInfo&);
  Napi::Value fork_session(const Napi::CallbackInfo&);
  Napi::Value extend_session(const Napi::CallbackInfo&);
  Napi::Value close_session(const Napi::CallbackInfo&);
  Napi::Value sample_session(const Napi::CallbackInfo&);
  Napi::Value usage(const Napi::CallbackInfo&);
  Napi::Value dispose(const Napi::CallbackInfo&);

  // The method with its guards: the receiver is a Rank, and failures become TokenringErrors.
  template <Napi::Value (RankObject::*method)(const Napi::CallbackInfo&)>
  Napi::Value guard(const Napi::CallbackInfo&);

  Rank& live() const;  // Failure DISPOSED after dispose(), INTERNAL before open() has settled
  Session& session(int64_t id);
  Session& idle_session(int64_t id, const char* what);

  // Registers a call: its completion goes to an engine thread.
  template <class Result>
  std::shared_ptr<Completion<Result>> begin(const std::shared_ptr<Call>&);
  // Others take part in what is collective: on a mesh its abort is one of all. A pass adds to the gradients.
  enum class Kind { local, collective, pass };
  // Queues work(rank, aborted) -> Result as a job.
  template <class Result, class Work>
  Napi::Value submit(Napi::Env, Work, Kind = Kind::local);

  RankOptions options_;
  std::shared_ptr<Channel> channel_;
  std::unique_ptr<Rank> rank_;                    // null until open() has settled, and after dispose()
  std::shared_ptr<std::unique_ptr<Rank>> built_;  // where open() puts it; null before
  std::thread builder_;                           // of open(), until that has settled or dispose() takes over
  std::shared_ptr<SessionTable> table_ = std::make_shared<SessionTable>();
  std::unordered_map<int64_t, Session> sessions_;
  int64_t next_session_ = 1;
  std::set<std::shared_ptr<Call>> calls_;  // under way; the object is kept alive while there are any
  std::shared_ptr<Worker> writer_;         // of copies; made when it is needed
  std::thread closer_;                     // waits for the engine thread after dispose()
  Napi::Reference<Napi::Promise> disposal_;
};

template <class Result>
std::shared_ptr<Completion<Result>> RankObject::begin(const std::shared_ptr<Call>& call) {
  calls_.insert(call);
  if (calls_.size() == 1) Ref();
  channel_->begin();
  call->settled = [this, call = call.get(), also = std::move(call->settled)] {
    if (also) also();
    calls_.erase(std::find_if(calls_.begin(), calls_.end(), [&](const auto& held) { return held.get() == call; }));
    if (calls_.empty()) Unref();
  };
  using ToJavaScript = typename Completion<Result>::ToJavaScript;
  return std::make_shared<Completion<Result>>(channel_, call, static_cast<ToJavaScript>(to_js));
}

template <class Result, class Work>
Napi::Value RankObject::submit(Napi::Env env, Work work, Kind kind) {
  Rank& rank = live();
  const auto call = std::make_shared<Call>(env);
  call->is_pass = kind == Kind::pass;
  rank.post([&rank, work = std::move(work), completion = begin<Result>(call)] {
    completion->run([&] { return work(rank, completion->aborted()); });
  });
  if (kind == Kind::local || !rank.mesh()) return job_handle(env, call);
  // Those who wait for this rank, or for whom it waits, cannot go on. An abort() that somebody keeps holds nothing.
  return job_handle(env, call, [call, mesh = std::weak_ptr(rank.mesh())] {
    if (const auto alive = mesh.lock(); alive && !call->over) alive->abort("a call was aborted by its caller");
  });
}

}  // namespace tokenring::addon
