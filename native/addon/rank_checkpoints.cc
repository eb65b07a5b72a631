// How a Rank of JavaScript saves and loads.
#include <algorithm>
#include <cctype>
#include <memory>
#include <string>

#include "addon/arguments.h"
#include "addon/rank.h"
#include "addon/results.h"
#include "model/checkpoint.h"
#include "model/parameters.h"
#include "parallel/mesh.h"

namespace tokenring::addon {
namespace {

SaveOptions read_save_options(const Arguments& from) {
  const std::string dtype = from.text("dtype");
  require(dtype == "f32" || dtype == "bf16", "options.dtype must be \"f32\" or \"bf16\", got \"", dtype, "\"");
  const int64_t shard_bytes = static_cast<int64_t>(from.number("shardBytes", 1, 9007199254740991.0));
  return {dtype == "f32" ? DType::f32 : DType::bf16, shard_bytes, true, from.boolean("optimiser")};
}

// Becomes part of the names of files.
std::string read_token(const Arguments& from) {
  const std::string token = from.text("token");
  const bool plain =
      std::all_of(token.begin(), token.end(), [](unsigned char c) { return std::isalnum(c) || c == '-'; });
  require(!token.empty() && token.size() <= 64 && plain,
          "options.token must be 1 to 64 letters, digits and \"-\", got \"", token, "\"");
  return token;
}

}  // namespace

// Copies what this rank writes, and lets a thread of its own write it.
Napi::Value RankObject::save_copy(const Napi::CallbackInfo& info, const std::string& directory, SaveOptions how,
                                  const std::string& token) {
  Rank& rank = live();
  const auto call = std::make_shared<Call>(info.Env());
  if (!writer_) writer_ = std::make_shared<Worker>();
  rank.post([&rank, directory, how, token, writer = writer_, completion = begin<Nothing>(call)] {
    try {
      if (completion->aborted()) fail("ABORTED", "the call was aborted by its caller before it ran");
      const auto stream = rank.device().stream();
      const auto save = std::make_shared<Save>(rank.parameters(), *stream, how, true);
      writer->post([save, directory, token, completion] {
        completion->run([&] {
          save->write(directory, token);
          return Nothing{};
        });
      });
    } catch (...) {
      completion->fail(std::current_exception());
    }
  });
  return job_handle(info.Env(), call);
}

Napi::Value RankObject::save(const Napi::CallbackInfo& info) {
  const std::string directory = text_argument(info[0], "directory");
  const Arguments options(info[1], "options");
  const SaveOptions how = read_save_options(options);
  if (options.has("token")) return save_copy(info, directory, how, read_token(options));
  const auto work = [=](Rank& rank, const std::atomic<bool>&) {
    const auto stream = rank.device().stream();
    Mesh::call(rank.mesh().get(), [&] { tokenring::save(rank.parameters(), *stream, directory, how); });
    return Nothing{};
  };
  return submit<Nothing>(info.Env(), work, Kind::collective);
}

Napi::Value RankObject::end_save(const Napi::CallbackInfo& info) {
  const std::string directory = text_argument(info[0], "directory");
  const Arguments options(info[1], "options");
  const SaveOptions how = read_save_options(options);
  const std::string token = read_token(options);
  const bool keep = options.boolean("keep");
  return submit<Nothing>(info.Env(), [=](Rank& rank, const std::atomic<bool>&) {
    const auto stream = rank.device().stream();
    const Save save(rank.parameters(), *stream, how, false);
    if (keep)
      save.commit(directory, token);
    else
      save.discard(directory, token);
    return Nothing{};
  });
}

Napi::Value RankObject::load(const Napi::CallbackInfo& info) {
  const std::string directory = text_argument(info[0], "directory");
  const bool optimiser = Arguments(info[1], "options").boolean("optimiser");
  const auto work = [=](Rank& rank, const std::atomic<bool>&) {
    const auto stream = rank.device().stream();
    Mesh::call(rank.mesh().get(), [&] {
      load_parameters(rank.parameters(), *stream, directory);
      if (optimiser) load_optimiser(rank.parameters(), *stream, directory);
      stream->synchronize();
    });
    return Version{rank.parameters().version()};
  };
  return submit<Version>(info.Env(), work, Kind::collective);
}

}  // namespace tokenring::addon
