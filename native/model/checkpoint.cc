// Reading checkpoints.
#include "model/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <vector>

#include "core/device.h"
#include "core/moment_codes.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/checkpoint_files.h"
#include "model/parameters.h"

namespace tokenring {

namespace {

using namespace checkpoint;

constexpr const char* kHead = "lm_head.weight";

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

// Whether the tensor fits, and this rank's part of it holds numbers: asked of all tensors before the first one is
// taken.
void check_tensor(const SafetensorsReader& reader, const std::string& name, const NamedSlice& slice,
                  const Fragment& fragment, std::vector<float>& values) {
  reader.check(name, slice.shape);
  values.resize(static_cast<size_t>(fragment.elements));
  reader.read(name, fragment.begin, fragment.elements, values.data());
  check_finite("CHECKPOINT", reader.path(), name, values.data(), fragment.elements, fragment.begin);
}

void read_into(Stream& stream, const SafetensorsReader& reader, const std::string& name, const Fragment& fragment,
               Tensor flat, std::vector<float>& values) {
  values.resize(static_cast<size_t>(fragment.elements));
  reader.read(name, fragment.begin, fragment.elements, values.data());
  stream.copy_to_device(flat.f32() + fragment.offset, values.data(), values.size() * sizeof(float));
  stream.synchronize();  // `values` is filled anew
}

// A head beside a tied embedding must be the same: tools differ in which of the two they would take.
void check_tied_head(const Shards& shards, const NamedSlice& embedding, const Fragment& fragment) {
  const SafetensorsReader* reader = shards.find(kHead);
  if (!reader) return;
  reader->check(kHead, embedding.shape);
  std::vector<float> head(static_cast<size_t>(fragment.elements)), table(head.size());
  reader->read(kHead, fragment.begin, fragment.elements, head.data());
  shards.find(embedding.name)->read(embedding.name, fragment.begin, fragment.elements, table.data());
  if (head != table) {
    fail("CHECKPOINT", reader->path(), ": ", kHead, " is not ", embedding.name,
         ", but config.json has tie_word_embeddings; set that to false to load both");
  }
}

void check_weights(const Parameters& parameters, const Shards& shards, const std::string& directory) {
  std::set<std::string> known;
  for (const NamedSlice& slice : parameters.slices()) {
    const SafetensorsReader* reader = shards.find(slice.name);
    if (!reader) {
      fail("CHECKPOINT", directory, ": tensor ", slice.name, " is missing",
           slice.name == kHead ? "; if the checkpoint ties it to the embedding, set tie_word_embeddings" : "");
    }
    reader->check(slice.name, slice.shape);
    known.insert(slice.name);
  }
  for (const auto& [name, reader] : shards.tensors()) {
    if (known.count(name) == 0 && !ignorable(name, parameters.config())) {
      fail("CHECKPOINT", reader->path(), ": tensor ", name,
           " has no place in the model that config.json describes; without it the results would be wrong");
    }
  }
  std::vector<float> values;
  for (const Fragment& fragment : parameters.fragments()) {
    const NamedSlice& slice = parameters.slices()[fragment.slice];
    check_tensor(*shards.find(slice.name), slice.name, slice, fragment, values);
    if (fragment.slice == 0 && parameters.config().tie_word_embeddings) check_tied_head(shards, slice, fragment);
  }
}

}  // namespace

void load_parameters(Parameters& parameters, Stream& stream, const std::string& directory) {
  std::unique_ptr<const Shards> shards;
  parameters.agree([&] {
    shards = std::make_unique<const Shards>(directory);
    check_weights(parameters, *shards, directory);
  });
  parameters.agree([&] {
    std::vector<float> values;
    for (const Fragment& fragment : parameters.fragments()) {
      const std::string& name = parameters.slices()[fragment.slice].name;
      read_into(stream, *shards->find(name), name, fragment, parameters.master(), values);
    }
  });
  parameters.reset_optimiser(stream);
  parameters.publish(stream);
  stream.synchronize();
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

namespace {

constexpr int64_t kPiece = int64_t{1} << 22;  // elements on their way into eight bits: whole blocks
static_assert(kPiece % kMomentBlock == 0);

// The files hold float32. Eight bits are made of whole blocks, which may hold parts of several tensors.
void read_moment(const Parameters& parameters, Stream& stream, const SafetensorsReader& reader, const char* prefix,
                 Tensor flat, Tensor scale) {
  std::vector<float> values;
  const auto name = [&](const Fragment& fragment) { return prefix + parameters.slices()[fragment.slice].name; };
  if (!scale) {
    for (const Fragment& fragment : parameters.fragments())
      read_into(stream, reader, name(fragment), fragment, flat, values);
    return;
  }
  for (int64_t begin = 0; begin < flat.elements(); begin += kPiece) {
    const int64_t end = std::min(begin + kPiece, flat.elements());
    values.assign(static_cast<size_t>(end - begin), 0.0f);
    for (const Fragment& fragment : parameters.fragments()) {
      const int64_t from = std::max(fragment.offset, begin), to = std::min(fragment.offset + fragment.elements, end);
      if (from < to)
        reader.read(name(fragment), fragment.begin + from - fragment.offset, to - from, values.data() + (from - begin));
    }
    encode_flat(stream, values.data(), prefix == kSecond,
                tensor(static_cast<uint8_t*>(flat.data) + begin, DType::u8, {end - begin}),
                tensor(scale.f32() + begin / kMomentBlock, DType::f32, {moment_blocks(end - begin)}));
  }
}

}  // namespace

void load_optimiser(Parameters& parameters, Stream& stream, const std::string& directory) {
  std::unique_ptr<const SafetensorsReader> reader;
  std::optional<int64_t> step;
  std::vector<float> values;
  parameters.agree([&] {
    reader = std::make_unique<const SafetensorsReader>(in_directory(directory, kOptimiser));
    step = counter(*reader, kStep);
    if (!step) fail("CHECKPOINT", reader->path(), ": its metadata does not say the number of steps taken");
    for (const char* moment : {kFirst, kSecond}) {
      for (const NamedSlice& slice : parameters.slices()) reader->check(moment + slice.name, slice.shape);
      for (const Fragment& fragment : parameters.fragments()) {
        const NamedSlice& slice = parameters.slices()[fragment.slice];
        check_tensor(*reader, moment + slice.name, slice, fragment, values);
      }
    }
  });
  parameters.agree([&] {
    const OptimiserState state = parameters.optimiser_state();
    read_moment(parameters, stream, *reader, kFirst, state.first_moment, state.first_scale);
    read_moment(parameters, stream, *reader, kSecond, state.second_moment, state.second_scale);
  });
  parameters.set_optimiser_step(*step);
  parameters.raise_version(counter(*reader, kVersion).value_or(0));
}

}  // namespace tokenring
