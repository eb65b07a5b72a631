#include "parallel/mesh.h"

#include <algorithm>
#include <cstring>

namespace tokenring {

void MeshOptions::check() const {
  require(size >= 1, "mesh: size is ", size, "; it must be at least 1");
  require(rank >= 0 && rank < size, "mesh: rank is ", rank, "; it must be 0 to ", size - 1);
  require(context_parallel >= 1 && size % context_parallel == 0, "mesh: contextParallel is ", context_parallel,
          "; it must divide the ", size, " ranks");
  require(ranks_per_node >= 0, "mesh: ranksPerNode is ", ranks_per_node, "; it must be at least 1");
  require(context_schedule != ContextSchedule::two_level || ranks_per_node == 0 ||
              context_parallel % ranks_per_node == 0 || ranks_per_node % context_parallel == 0,
          "mesh: ranksPerNode is ", ranks_per_node, "; of two_level it must divide contextParallel, ", context_parallel,
          ", or be a multiple of it");
  require(shard == 0 || shard == 1 || shard == 3, "mesh: shard is ", shard, "; it must be 0, 1 or 3");
  require(shard_size >= 0 && (shard_size == 0 || size % shard_size == 0), "mesh: shardSize is ", shard_size,
          "; it must divide the ", size, " ranks");
  require(timeout.count() > 0, "mesh: timeout is ", timeout.count(), " ms; it must be positive");
}

MeshOptions MeshOptions::with_real_shares() const {
  MeshOptions mesh = *this;
  if ((shard_size == 0 ? size : shard_size) == 1) mesh.shard = 0;
  return mesh;
}

int MeshOptions::context_node() const {
  if (context_schedule == ContextSchedule::ring) return 1;
  if (context_schedule == ContextSchedule::all_gather || ranks_per_node == 0) return context_parallel;
  return std::min(ranks_per_node, context_parallel);
}

Mesh::Mesh(Device& device, const Transport& transport, MeshOptions options)
    : device_(device), transport_(transport), options_(options) {
  options_.check();
  context_stream_ = device.stream();
  gradient_stream_ = device.stream();
  if (options_.shard_size == 0) options_.shard_size = options_.size;
  world_ = make(options_.id, options_.rank, options_.size);
}

std::unique_ptr<Communicator> Mesh::make(const UniqueId& id, int rank, int size, const RankNames& names) {
  auto communicator = transport_.make({id, rank, size, options_.timeout, names});
  std::lock_guard lock(mutex_);
  alive_.push_back(communicator.get());
  if (aborted_) communicator->abort(why_);
  return communicator;
}

void Mesh::join() {
  const InCall here(*this);
  try {
    if (closing_) fail("DISPOSED", "the rank was disposed");
    world_->join();
    agree({{"contextParallel", options_.context_parallel},
           {"contextSchedule", static_cast<double>(options_.context_schedule)},
           {"ranksPerNode", options_.ranks_per_node},
           {"shard", options_.shard},
           {"shardSize", options_.shard_size}});
    join_groups();
    joined_ = true;
  } catch (const std::exception& error) {
    failure_ = std::current_exception();
    abort(error.what());
    throw;
  }
}

void Mesh::join_groups() {
  const int rank = options_.rank, size = options_.size, context = options_.context_parallel;
  const int node = options_.context_node(), shards = options_.shard ? options_.shard_size : 1;
  struct Group {
    std::unique_ptr<Communicator>& communicator;
    RankNames names;  // `first` leads it
    int index, size;
  };
  const Group groups[] = {
      {context_, {rank / context * context, 1, size, {"context group"}}, rank % context, context},
      {node_, {rank / node * node, 1, size, {"node"}}, rank % node, node},
      {shard_, {rank / shards * shards, 1, size, {"shard group"}}, rank % shards, shards},
      {replica_, {rank % shards, shards, size, {"replica group"}}, rank / shards, options_.shard ? size / shards : 1}};
  constexpr size_t kGroups = std::size(groups);
  shard_is_world_ = shards > 1 && shards == size;
  node_is_context_ = node > 1 && node == context;
  const auto wanted = [&](const Group& group) {
    return group.size > 1 && !(&group.communicator == &shard_ && shard_is_world_) &&
           !(&group.communicator == &node_ && node_is_context_);
  };
  UniqueId own[kGroups];
  bool any = false;
  for (size_t g = 0; g < kGroups; ++g) {
    any = any || wanted(groups[g]);
    if (wanted(groups[g]) && groups[g].names.first == rank) own[g] = transport_.make_id();
  }
  if (!any) return;  // as on every other rank
  const std::vector<std::byte> all = gather(*world_, own, sizeof(own));
  for (size_t g = 0; g < kGroups; ++g) {
    const Group& group = groups[g];
    if (!wanted(group)) continue;
    UniqueId id;
    std::memcpy(&id, all.data() + group.names.first * sizeof(own) + g * sizeof(id), sizeof(id));
    group.communicator = make(id, group.index, group.size, group.names);
    group.communicator->join();
  }
}

void Mesh::check() const {
  if (closing_) fail("DISPOSED", "the rank was disposed");
  if (failure_) std::rethrow_exception(failure_);
  if (!joined_) fail("INTERNAL", "a mesh was used before its ranks have joined");
}

std::vector<std::byte> Mesh::gather(Communicator& group, const void* own, size_t bytes) {
  const int64_t each = static_cast<int64_t>(bytes);
  const Buffer from(device_, bytes), to(device_, bytes * group.size());
  std::vector<std::byte> all(to.bytes());
  Stream& stream = *gradient_stream_;
  const Drain drain{stream};
  stream.copy_to_device(from.data(), own, bytes);
  group.all_gather(stream, tensor(from.data(), DType::u8, {each}), tensor(to.data(), DType::u8, {each * group.size()}));
  stream.copy_to_host(all.data(), to.data(), all.size());
  stream.synchronize();
  return all;
}

void Mesh::agree(const std::vector<std::pair<std::string, double>>& values) {
  if (options_.size == 1) return;
  std::vector<double> own;
  for (const auto& [name, value] : values) own.push_back(value);
  const size_t bytes = own.size() * sizeof(double);
  const std::vector<std::byte> all = gather(*world_, own.data(), bytes);
  for (size_t i = 0; i < own.size(); ++i) {
    const auto said = [&](int r) {
      double value;
      std::memcpy(&value, all.data() + r * bytes + i * sizeof(value), sizeof(value));
      return value;
    };
    for (int r = 1; r < options_.size; ++r) {
      // By their bits: a weight that is not a number agrees with itself.
      if (std::memcmp(all.data() + i * sizeof(double), all.data() + r * bytes + i * sizeof(double), sizeof(double)) ==
          0)
        continue;
      fail("COMMUNICATOR", "the ranks of the mesh disagree about ", values[i].first, ": rank 0 has ", said(0),
           ", rank ", r, " has ", said(r), "; all ranks must be made and called alike");
    }
  }
}

void Mesh::fail_together(std::exception_ptr mine) {
  struct Word {
    char code[32], text[1000];
  } word{};
  const auto say = [&](const std::string& code, const std::string& text) {
    code.copy(word.code, sizeof(word.code) - 1);
    text.copy(word.text, sizeof(word.text) - 1);
  };
  try {
    if (mine) std::rethrow_exception(mine);
  } catch (const Failure& failure) {
    say(failure.code(), failure.what());
  } catch (const std::exception& error) {
    say("INTERNAL", error.what());
  }
  const std::vector<std::byte> all = gather(*world_, &word, sizeof(word));
  for (int r = 0; r < options_.size; ++r) {
    std::memcpy(&word, all.data() + r * sizeof(word), sizeof(word));
    if (!word.code[0]) continue;
    fails_alike();
    if (r == options_.rank) std::rethrow_exception(mine);
    fail(word.code, "rank ", r, ": ", word.text);
  }
}

void Mesh::abort(const std::string& why) noexcept {
  std::lock_guard lock(mutex_);
  if (!aborted_) why_ = why;
  aborted_ = true;
  for (Communicator* communicator : alive_) communicator->abort(why);
}

void Mesh::close() noexcept {
  closing_ = true;
  if (in_call_) abort("the rank was disposed");
}

void Mesh::leave() noexcept {
  // Streams first: what they have queued uses the communicators.
  context_stream_.reset();
  gradient_stream_.reset();
  std::lock_guard lock(mutex_);
  alive_.clear();
  for (auto* each : {&context_, &node_, &shard_, &replica_, &world_}) each->reset();
}

}  // namespace tokenring
