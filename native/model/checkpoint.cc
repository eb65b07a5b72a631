#include "model/checkpoint.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <vector>

#include "core/device.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/parameters.h"

namespace tokenring {

namespace {

constexpr const char* kModel = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kOptimiser = "optimizer.safetensors";
constexpr const char* kFirst = "exp_avg.";
constexpr const char* kSecond = "exp_avg_sq.";
constexpr const char* kStep = "step";
constexpr const char* kVersion = "version";

std::string in_directory(const std::string& directory, const std::string& file) {
  return (std::filesystem::path(directory) / file).string();
}

// The files of a checkpoint, and which of them holds a tensor.
class Shards {
 public:
  explicit Shards(const std::string& directory) {
    const std::string whole = in_directory(directory, kModel), index = in_directory(directory, kIndex);
    if (std::filesystem::exists(whole)) {
      add(whole);
      return;
    }
    std::ifstream file(index);
    if (!file) fail("CHECKPOINT", directory, ": holds neither ", kModel, " nor ", kIndex);
    std::stringstream text;
    text << file.rdbuf();
    const Json json = parse_json(text.str(), index);
    const Json* map = json.find("weight_map");
    if (!map || map->kind != Json::Kind::object) fail("CHECKPOINT", index, ": there is no weight_map");
    std::set<std::string> names;
    for (const auto& [tensor, shard] : map->object) {
      if (shard.kind != Json::Kind::string || shard.string.empty() || shard.string.find('/') != std::string::npos) {
        fail("CHECKPOINT", index, ": tensor ", tensor, " is not mapped to a file of this directory");
      }
      names.insert(shard.string);
    }
    for (const std::string& name : names) add(in_directory(directory, name));
    for (const auto& [tensor, shard] : map->object) {
      if (!find(tensor)) fail("CHECKPOINT", index, ": ", shard.string, " does not hold tensor ", tensor);
    }
  }

  const SafetensorsReader* find(const std::string& tensor) const {
    const auto at = holder_.find(tensor);
    return at == holder_.end() ? nullptr : at->second;
  }
  const std::map<std::string, const SafetensorsReader*>& tensors() const { return holder_; }

 private:
  void add(const std::string& path) {
    readers_.push_back(std::make_unique<SafetensorsReader>(path));
    for (const auto& [name, entry] : readers_.back()->entries()) holder_[name] = readers_.back().get();
  }

  std::vector<std::unique_ptr<SafetensorsReader>> readers_;
  std::map<std::string, const SafetensorsReader*> holder_;
};

// What checkpoints of this family may hold beside the weights.
bool ignorable(const std::string& name, const DecoderConfig& config) {
  return (name == kHead && config.tie_word_embeddings) || name.find("rotary_emb.inv_freq") != std::string::npos;
}

// `values` are tensor `name` of the file at `path`. code: CHECKPOINT where they were read, NON_FINITE where they would
// be written.
void check_finite(const char* code, const std::string& path, const std::string& name,
                  const std::vector<float>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    fail(code, path, ": element ", i, " of tensor ", name, " is ", values[i], "; use an earlier checkpoint");
  }
}

// Whether the tensor fits and holds numbers: asked of all tensors before the first one is taken.
void check_tensor(const SafetensorsReader& reader, const std::string& name, const NamedSlice& slice,
                  std::vector<float>& values) {
  reader.check(name, slice.shape);
  values.resize(static_cast<size_t>(slice.elements()));
  reader.read(name, values.data());
  check_finite("CHECKPOINT", reader.path(), name, values);
}

void read_into(Stream& stream, const SafetensorsReader& reader, const std::string& name, int64_t elements,
               float* device, std::vector<float>& values) {
  values.resize(static_cast<size_t>(elements));
  reader.read(name, values.data());
  stream.copy_to_device(device, values.data(), values.size() * sizeof(float));
  stream.synchronize();  // `values` is filled anew
}

// A head beside a tied embedding must be the same: tools differ in which of the two they would take.
void check_tied_head(const Shards& shards, const NamedSlice& embedding, const DecoderConfig& config) {
  const SafetensorsReader* reader = shards.find(kHead);
  if (!config.tie_word_embeddings || !reader) return;
  reader->check(kHead, embedding.shape);
  std::vector<float> head(static_cast<size_t>(embedding.elements())), table(head.size());
  reader->read(kHead, head.data());
  shards.find(embedding.name)->read(embedding.name, table.data());
  if (head != table) {
    fail("CHECKPOINT", reader->path(), ": ", kHead, " is not ", embedding.name,
         ", but config.json has tie_word_embeddings; set that to false to load both");
  }
}

using Slices = std::vector<NamedSlice>;

// Appends slices of a flat buffer, in order, which the file has under `prefix` and their names.
void append_slices(SafetensorsWriter& writer, const Slices& slices, Stream& stream, Tensor flat,
                   const std::string& prefix = "") {
  std::vector<float> values;
  for (const NamedSlice& slice : slices) {
    values.resize(static_cast<size_t>(slice.elements()));
    stream.copy_to_host(values.data(), flat.f32() + slice.offset, values.size() * sizeof(float));
    stream.synchronize();
    check_finite("NON_FINITE", writer.path(), prefix + slice.name, values);
    writer.append(values.data());
  }
}

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

void write_index(const std::string& path, const std::vector<Slices>& shards, DType dtype) {
  std::ostringstream map;
  int64_t bytes = 0;
  const char* separator = "";
  for (size_t i = 0; i < shards.size(); ++i) {
    for (const NamedSlice& slice : shards[i]) {
      map << separator << "\n    " << quote_json(slice.name) << ": \"" << shard_name(i, shards.size()) << '"';
      separator = ",";
      bytes += slice.elements() * static_cast<int64_t>(size_of(dtype));
    }
  }
  const std::string temporary = path + ".tmp-" + std::to_string(getpid());
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

}  // namespace

void load_parameters(Parameters& parameters, Stream& stream, const std::string& directory) {
  const Shards shards(directory);
  std::set<std::string> known;
  std::vector<float> values;
  for (const NamedSlice& slice : parameters.slices()) {
    const SafetensorsReader* reader = shards.find(slice.name);
    if (!reader) {
      fail("CHECKPOINT", directory, ": tensor ", slice.name, " is missing",
           slice.name == kHead ? "; if the checkpoint ties it to the embedding, set tie_word_embeddings" : "");
    }
    check_tensor(*reader, slice.name, slice, values);
    known.insert(slice.name);
  }
  for (const auto& [name, reader] : shards.tensors()) {
    if (known.count(name) == 0 && !ignorable(name, parameters.config())) {
      fail("CHECKPOINT", reader->path(), ": tensor ", name,
           " has no place in the model that config.json describes; without it the results would be wrong");
    }
  }
  check_tied_head(shards, parameters.slices().front(), parameters.config());
  for (const NamedSlice& slice : parameters.slices()) {
    read_into(stream, *shards.find(slice.name), slice.name, slice.elements(), parameters.master().f32() + slice.offset,
              values);
  }
  parameters.reset_optimiser(stream);
  parameters.publish(stream);
  stream.synchronize();
}

void save_parameters(Parameters& parameters, Stream& stream, const std::string& directory, DType dtype,
                     int64_t shard_bytes) {
  require(shard_bytes > 0, "save: shard_bytes is ", shard_bytes, "; it must be at least 1");
  const std::vector<Slices> shards = cut_into_shards(parameters.slices(), dtype, shard_bytes);
  const bool whole = shards.size() == 1;
  // All are written before the first takes its name, which an older checkpoint may still have.
  std::vector<std::unique_ptr<SafetensorsWriter>> writers;
  std::set<std::string> names;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = whole ? kModel : shard_name(i, shards.size());
    std::vector<SafetensorsTensor> tensors;
    for (const NamedSlice& slice : shards[i]) tensors.push_back({slice.name, dtype, slice.shape});
    const std::map<std::string, std::string> metadata = {{"format", "pt"}};
    writers.push_back(std::make_unique<SafetensorsWriter>(in_directory(directory, name), tensors, metadata));
    append_slices(*writers.back(), shards[i], stream, parameters.master());
    names.insert(name);
  }
  for (const auto& writer : writers) writer->commit();
  if (!whole) {
    write_index(in_directory(directory, kIndex), shards, dtype);
    names.insert(kIndex);
  }
  remove_other_weights(directory, names);
}

void save_optimiser(Parameters& parameters, Stream& stream, const std::string& directory) {
  std::vector<SafetensorsTensor> tensors;
  for (const char* moment : {kFirst, kSecond}) {
    for (const NamedSlice& slice : parameters.slices())
      tensors.push_back({moment + slice.name, DType::f32, slice.shape});
  }
  SafetensorsWriter writer(in_directory(directory, kOptimiser), tensors,
                           {{"format", "pt"},
                            {kStep, std::to_string(parameters.optimiser_step())},
                            {kVersion, std::to_string(parameters.version())}});
  append_slices(writer, parameters.slices(), stream, parameters.first_moment(), kFirst);
  append_slices(writer, parameters.slices(), stream, parameters.second_moment(), kSecond);
  writer.commit();
}

namespace {

// A whole number of the file's metadata; nothing where it is missing or something else.
std::optional<int64_t> counter(const SafetensorsReader& reader, const char* key) {
  const auto found = reader.metadata().find(key);
  if (found == reader.metadata().end()) return std::nullopt;
  const std::string& digits = found->second;
  const bool whole =
      !digits.empty() && digits.size() < 19 && digits.find_first_not_of("0123456789") == std::string::npos;
  return whole ? std::optional<int64_t>(std::stoll(digits)) : std::nullopt;
}

}  // namespace

void load_optimiser(Parameters& parameters, Stream& stream, const std::string& directory) {
  const SafetensorsReader reader(in_directory(directory, kOptimiser));
  const std::optional<int64_t> step = counter(reader, kStep);
  if (!step) fail("CHECKPOINT", reader.path(), ": its metadata does not say the number of steps taken");
  std::vector<float> values;
  for (const char* moment : {kFirst, kSecond}) {
    for (const NamedSlice& slice : parameters.slices()) check_tensor(reader, moment + slice.name, slice, values);
  }
  for (const NamedSlice& slice : parameters.slices()) {
    const auto read = [&](const char* moment, Tensor flat) {
      read_into(stream, reader, moment + slice.name, slice.elements(), flat.f32() + slice.offset, values);
    };
    read(kFirst, parameters.first_moment());
    read(kSecond, parameters.second_moment());
  }
  parameters.set_optimiser_step(*step);
  parameters.raise_version(counter(reader, kVersion).value_or(0));
}

}  // namespace tokenring
