// Writing checkpoints.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <vector>

#include "core/device.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/checkpoint.h"
#include "model/checkpoint_files.h"
#include "model/parameters.h"

namespace tokenring {

namespace {

using namespace checkpoint;
using Slices = std::vector<NamedSlice>;

constexpr int64_t kChunk = int64_t{1} << 22;  // elements on their way from the device

// Runs of slices of at most `bytes` each; a larger tensor has a file of its own.
std::vector<Slices> cut_into_shards(const Slices& slices, DType dtype, int64_t bytes) {
  std::vector<Slices> shards(1);
  int64_t held = 0;
  for (const NamedSlice& slice : slices) {
    const int64_t size = slice.elements() * static_cast<int64_t>(size_of(dtype));
    if (held > 0 && held + size > bytes) {
      shards.emplace_back();
      held = 0;
    }
    shards.back().push_back(slice);
    held += size;
  }
  return shards;
}

std::string shard_name(size_t i, size_t count) {
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", i + 1, count);
  return name;
}

std::string weights_name(size_t i, size_t count) { return count == 1 ? kModel : shard_name(i, count); }

void write_index(const std::string& path, const std::string& token, const std::vector<Slices>& shards, DType dtype) {
  std::ostringstream map;
  int64_t bytes = 0;
  const char* separator = "";
  for (size_t i = 0; i < shards.size(); ++i) {
    for (const NamedSlice& slice : shards[i]) {
      map << separator << "\n    " << quote_json(slice.name) << ": \"" << weights_name(i, shards.size()) << '"';
      separator = ",";
      bytes += slice.elements() * static_cast<int64_t>(size_of(dtype));
    }
  }
  const std::string temporary = unfinished(path, token);
  std::ofstream file(temporary);
  file << "{\n  \"metadata\": {\"total_size\": " << bytes << "},\n  \"weight_map\": {" << map.str() << "\n  }\n}\n";
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(temporary, path, error);
  if (!file || error) {
    std::filesystem::remove(temporary, error);
    fail("CHECKPOINT", path, ": cannot be written; is there room, and leave to write?");
  }
}

bool is_shard(const std::string& name) {
  unsigned i = 0, count = 0;
  return std::sscanf(name.c_str(), "model-%5u-of-%5u.safetensors", &i, &count) == 2 && i > 0 &&
         name == shard_name(i - 1, count);
}

// Removes the weights of an earlier save that are none of `names`.
void remove_other_weights(const std::string& directory, const std::set<std::string>& names) {
  std::vector<std::filesystem::path> old;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if ((name == kModel || name == kIndex || is_shard(name)) && names.count(name) == 0) old.push_back(entry.path());
  }
  for (const auto& path : old) std::filesystem::remove(path);
}

// The flat buffers of a rank that a checkpoint is made of.
enum Source { master, first_moment, second_moment };

// One file: its tensors are slices of the sources, by their index.
struct File {
  std::string name;
  std::map<std::string, std::string> metadata;
  std::vector<SafetensorsTensor> tensors;
  struct Origin {
    Source source;
    size_t slice;
  };
  std::vector<Origin> origins;
};

}  // namespace

struct Save::Impl {
  SaveOptions options;
  std::vector<Slices> shards;
  std::vector<File> files;
  std::map<size_t, Fragment> own;  // by slice: what this rank writes
  int64_t begin = 0, end = 0;      // of its flat buffers
  std::vector<float> copies[3];    // of that range
  Tensor flat[3], scale[3];        // scale: of moments in eight bits
  Stream* stream = nullptr;        // null once there are copies

  void plan(Parameters& parameters) {
    const Slices& slices = parameters.slices();
    if (options.weights) {
      shards = cut_into_shards(slices, options.dtype, options.shard_bytes);
      size_t slice = 0;
      for (size_t i = 0; i < shards.size(); ++i) {
        File file{weights_name(i, shards.size()), {{"format", "pt"}}, {}, {}};
        for (const NamedSlice& each : shards[i]) {
          file.tensors.push_back({each.name, options.dtype, each.shape});
          file.origins.push_back({master, slice++});
        }
        files.push_back(std::move(file));
      }
    }
    if (!options.optimiser) return;
    File file{kOptimiser,
              {{"format", "pt"},
               {kStep, std::to_string(parameters.optimiser_step())},
               {kVersion, std::to_string(parameters.version())}},
              {},
              {}};
    for (const Source source : {first_moment, second_moment}) {
      for (size_t slice = 0; slice < slices.size(); ++slice) {
        const char* prefix = source == first_moment ? kFirst : kSecond;
        file.tensors.push_back({prefix + slices[slice].name, DType::f32, slices[slice].shape});
        file.origins.push_back({source, slice});
      }
    }
    files.push_back(std::move(file));
  }

  // Those who hold the same share write equal ranges of it.
  void take_range(const Parameters& parameters) {
    const int64_t holders = parameters.holders(), holder = parameters.holder(), elements = parameters.elements();
    begin = elements * holder / holders;
    end = elements * (holder + 1) / holders;
    for (const Fragment& fragment : parameters.fragments()) {
      const int64_t from = std::max(fragment.offset, begin);
      const int64_t to = std::min(fragment.offset + fragment.elements, end);
      if (from >= to) continue;
      own[fragment.slice] = {fragment.slice, fragment.begin + from - fragment.offset, to - from, from};
    }
  }

  // Some elements of a source: of the copy, or read into `room`.
  const float* values(Source source, int64_t offset, int64_t count, std::vector<float>& room) const {
    if (!flat[source]) {  // moments before the first step
      room.assign(static_cast<size_t>(count), 0.0f);
      return room.data();
    }
    if (!stream) return copies[source].data() + (offset - begin);
    room.resize(static_cast<size_t>(count));
    read_flat(*stream, flat[source], scale[source], source == second_moment, offset, count, room.data());
    return room.data();
  }

  bool has_part_of(const File& file) const {
    return std::any_of(file.origins.begin(), file.origins.end(),
                       [&](const File::Origin& origin) { return own.count(origin.slice) > 0; });
  }

  void write(const File& file, const std::string& directory, const std::string& token) const {
    SafetensorsWriter writer(in_directory(directory, file.name), token, file.tensors, file.metadata);
    std::vector<float> room;
    for (size_t t = 0; t < file.tensors.size(); ++t) {
      const auto at = own.find(file.origins[t].slice);
      if (at == own.end()) continue;
      const Fragment& fragment = at->second;
      for (int64_t done = 0; done < fragment.elements; done += kChunk) {
        const int64_t count = std::min(kChunk, fragment.elements - done), first = fragment.begin + done;
        const float* from = values(file.origins[t].source, fragment.offset + done, count, room);
        check_finite("NON_FINITE", writer.path(), file.tensors[t].name, from, count, first);
        writer.write(t, first, count, from);
      }
    }
    writer.sync();
  }
};

Save::Save(Parameters& parameters, Stream& stream, SaveOptions options, bool copy) : impl_(std::make_unique<Impl>()) {
  require(options.shard_bytes > 0, "save: shard_bytes is ", options.shard_bytes, "; it must be at least 1");
  impl_->options = options;
  impl_->plan(parameters);
  impl_->take_range(parameters);
  if (options.weights) impl_->flat[master] = parameters.master();
  if (options.optimiser && parameters.has_moments()) {
    const OptimiserState state = parameters.optimiser_state();
    impl_->flat[first_moment] = state.first_moment;
    impl_->flat[second_moment] = state.second_moment;
    impl_->scale[first_moment] = state.first_scale;
    impl_->scale[second_moment] = state.second_scale;
  }
  impl_->stream = copy ? nullptr : &stream;
  if (!copy) return;
  for (const Source source : {master, first_moment, second_moment}) {
    if (!impl_->flat[source]) continue;
    std::vector<float>& to = impl_->copies[source];
    to.resize(static_cast<size_t>(impl_->end - impl_->begin));
    read_flat(stream, impl_->flat[source], impl_->scale[source], source == second_moment, impl_->begin,
              impl_->end - impl_->begin, to.data());
  }
}
Save::~Save() = default;

void Save::write(const std::string& directory, const std::string& token) const {
  try {
    for (const File& file : impl_->files)
      if (impl_->has_part_of(file)) impl_->write(file, directory, token);
  } catch (...) {
    discard(directory, token);
    throw;
  }
}

void Save::commit(const std::string& directory, const std::string& token) const {
  std::set<std::string> names;
  for (const File& file : impl_->files) {
    finish_file(in_directory(directory, file.name), token);
    names.insert(file.name);
  }
  if (!impl_->options.weights) return;
  // One file alone has an index, too, where the optimiser's lies beside it: vLLM reads every file of tensors that it
  // finds, unless an index says which.
  if (impl_->shards.size() > 1 || impl_->options.optimiser) {
    write_index(in_directory(directory, kIndex), token, impl_->shards, impl_->options.dtype);
    names.insert(kIndex);
  }
  remove_other_weights(directory, names);
}

void Save::discard(const std::string& directory, const std::string& token) const noexcept {
  for (const File& file : impl_->files) {
    std::error_code ignored;
    std::filesystem::remove(unfinished(in_directory(directory, file.name), token), ignored);
  }
}

void save(Parameters& parameters, Stream& stream, const std::string& directory, const SaveOptions& options) {
  const Save save(parameters, stream, options, false);
  const std::string token = std::to_string(parameters.of_first(getpid()));
  try {
    parameters.agree([&] { save.write(directory, token); });
    parameters.agree([&] {
      if (parameters.is_first()) save.commit(directory, token);
    });
  } catch (...) {
    if (parameters.is_first()) save.discard(directory, token);
    throw;
  }
}

void save_parameters(Parameters& parameters, Stream& stream, const std::string& directory, DType dtype,
                     int64_t shard_bytes) {
  save(parameters, stream, directory, {dtype, shard_bytes, true, false});
}

void save_optimiser(Parameters& parameters, Stream& stream, const std::string& directory) {
  save(parameters, stream, directory, {DType::f32, kShardBytes, false, true});
}

}  // namespace tokenring
