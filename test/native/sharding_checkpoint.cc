// Checkpoints across layouts: the files know nothing of the ranks that wrote them, or that read them.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "folder.h"
#include "harness.h"
#include "io/safetensors.h"
#include "model/checkpoint.h"
#include "sharding_rig.h"

namespace tokenring {
namespace {

namespace fs = std::filesystem;

struct Cut {
  int size, stage, shard_size;
};
const Cut kAlone{1, 0, 1};

struct State {
  Tensors weights, first, second;
  int64_t step = 0, version = 0;
};

State blank(const State& s) { return {like(s.weights), like(s.first), like(s.second), 0, 0}; }
bool equal(const State& a, const State& b) {
  return same(a.weights, b.weights) && same(a.first, b.first) && same(a.second, b.second) && a.step == b.step &&
         a.version == b.version;
}

// Some numbers for all of it.
State some_state(const DecoderConfig& config) {
  State state{random_weights(config), {}, {}, 7, 12};
  state.first = state.second = state.weights;
  for (size_t i = 0; i < state.first.size(); ++i)
    for (size_t j = 0; j < state.first[i].size(); ++j) {
      state.first[i][j] = static_cast<float>(normal01(i, j));
      state.second[i][j] = uniform01(i + 1000, j);
    }
  return state;
}

void write_state(MeshRank& rank, const State& state) {
  write_share(rank, state.weights);
  for (const auto& [flat, from] :
       {std::pair{rank.parameters.first_moment(), &state.first}, {rank.parameters.second_moment(), &state.second}})
    for (const Fragment& f : rank.parameters.fragments())
      std::copy_n((*from)[f.slice].begin() + f.begin, f.elements, flat.f32() + f.offset);
  rank.parameters.set_optimiser_step(state.step);
  rank.parameters.raise_version(state.version);
}

void put_state(MeshRank& rank, State& to) {
  put_share(rank, rank.parameters.master(), to.weights);
  put_share(rank, rank.parameters.first_moment(), to.first);
  put_share(rank, rank.parameters.second_moment(), to.second);
  if (rank.mesh.rank() > 0) return;
  to.step = rank.parameters.optimiser_step();
  to.version = rank.parameters.version();
}

std::vector<std::string> on(const Cut& cut, const DecoderConfig& config, const std::function<void(MeshRank&)>& body) {
  return on_mesh(config, sharded_mesh(cut.size, cut.stage, cut.shard_size), {}, body);
}

SaveOptions everything(DType dtype = DType::f32, int64_t shard_bytes = kShardBytes) {
  return {dtype, shard_bytes, true, true};
}

// As the ranks of a program do it: all write, and one gives the names when it has heard of all.
void save(const Cut& cut, const DecoderConfig& config, const State& state, const std::string& directory,
          const SaveOptions& options, bool copy) {
  CHECK(none_failed(on(cut, config, [&](MeshRank& k) {
    write_state(k, state);
    const Save save(k.parameters, *k.stream, options, copy);
    if (copy) k.write(std::vector<float>(k.parameters.elements()));  // training goes on
    save.write(directory, "t1");
    k.mesh.fail_together(nullptr);
    if (k.mesh.rank() == 0) save.commit(directory, "t1");
  })));
}

State load(const Cut& cut, const DecoderConfig& config, const State& expected, const std::string& directory) {
  State got = blank(expected);
  CHECK(none_failed(on(cut, config, [&](MeshRank& k) {
    load_parameters(k.parameters, *k.stream, directory);
    load_optimiser(k.parameters, *k.stream, directory);
    put_state(k, got);
  })));
  return got;
}

std::set<std::string> files_in(const std::string& directory) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.insert(entry.path().filename().string());
  return names;
}

}  // namespace

TEST(sharded_checkpoints_are_the_same_files_from_any_ranks_and_load_on_any) {
  for (const DecoderConfig& config : {odd_config(false), odd_config(true), qwen3_config()}) {
    const State state = some_state(config);
    for (const SaveOptions& options : {everything(), everything(DType::bf16, 3 * 37 * 23 * 2)}) {
      Folder reference;
      save(kAlone, config, state, reference.path, options, false);
      const std::set<std::string> names = files_in(reference.path);
      CHECK(options.dtype == DType::f32 ? names.size() == 3 : names.size() > 4);
      for (const Cut& from : {Cut{4, 3, 4}, Cut{4, 1, 2}, Cut{3, 3, 3}, Cut{3, 0, 3}, Cut{8, 3, 2}})
        for (const bool copy : {false, true}) {
          Folder folder;
          save(from, config, state, folder.path, options, copy);
          CHECK(files_in(folder.path) == names);
          for (const std::string& name : names)
            CHECK(slurp(folder.path + "/" + name) == slurp(reference.path + "/" + name));
        }
      if (options.dtype != DType::f32) continue;
      for (const Cut& to : {kAlone, Cut{2, 3, 2}, Cut{8, 3, 8}, Cut{4, 1, 4}, Cut{6, 3, 3}, Cut{2, 0, 2}})
        CHECK(equal(load(to, config, state, reference.path), state));
    }
  }
}

TEST(sharded_checkpoints_of_a_killed_save_leave_the_old_one) {
  const DecoderConfig config = odd_config(false);
  const State old = some_state(config);
  State newer = old;
  for (auto& tensor : newer.weights) tensor[0] += 1;
  newer.step = 8;
  Folder folder;
  const SaveOptions options = everything(DType::f32, 4000);
  save(kAlone, config, old, folder.path, options, false);
  const std::set<std::string> names = files_in(folder.path);
  // Killed after all have written: nothing was given its name.
  CHECK(none_failed(on({4, 3, 4}, config, [&](MeshRank& k) {
    write_state(k, newer);
    Save(k.parameters, *k.stream, options, true).write(folder.path, "t2");
  })));
  CHECK(files_in(folder.path).size() == 2 * names.size() - 1);  // the index comes last
  CHECK(equal(load({2, 3, 2}, config, old, folder.path), old));
  // One rank's share is not fit to be saved: the others hear of it from the program, and the files go.
  CHECK(none_failed(on({4, 3, 4}, config, [&](MeshRank& k) {
    write_state(k, newer);
    if (k.mesh.rank() == 2) k.parameters.first_moment().f32()[k.parameters.fragments().front().offset] = NAN;
    const Save save(k.parameters, *k.stream, options, true);
    const std::string failure = failure_of([&] { save.write(folder.path, "t3"); });
    if (k.mesh.rank() == 2)
      CHECK(contains(failure, "NON_FINITE") && contains(failure, "exp_avg.model.embed_tokens.weight is nan"));
    k.mesh.fail_together(nullptr);
    for (const char* token : {"t2", "t3"}) save.discard(folder.path, token);
  })));
  CHECK(files_in(folder.path) == names);
  CHECK(equal(load({2, 3, 2}, config, old, folder.path), old));
  save({4, 3, 4}, config, newer, folder.path, options, true);
  CHECK(files_in(folder.path) == names && equal(load(kAlone, config, newer, folder.path), newer));
}

TEST(sharded_checkpoints_that_one_rank_cannot_load_are_loaded_by_none) {
  const DecoderConfig config = odd_config(false);
  const State state = some_state(config);
  Folder folder;
  save(kAlone, config, state, folder.path, everything(), false);
  // A number that only the last rank reads.
  const std::string path = folder / "model.safetensors";
  std::string bytes = slurp(path);
  const SafetensorsEntry head = SafetensorsReader(path).entries().at("lm_head.weight");
  const float nan = NAN;
  bytes.replace(head.end - sizeof(nan), sizeof(nan), reinterpret_cast<const char*>(&nan), sizeof(nan));
  spill(path, bytes);
  State kept = blank(state);
  CHECK(none_failed(on({4, 3, 4}, config, [&](MeshRank& k) {
    write_state(k, state);
    const std::string failure = failure_of([&] { load_parameters(k.parameters, *k.stream, folder.path); });
    CHECK(contains(failure, "CHECKPOINT: ") && contains(failure, "of tensor lm_head.weight is nan"));
    CHECK(contains(failure, "rank 3: ") == (k.mesh.rank() != 3));
    put_state(k, kept);
    load_optimiser(k.parameters, *k.stream, folder.path);  // and the mesh is whole
  })));
  CHECK(equal(kept, state));
}

}  // namespace tokenring
