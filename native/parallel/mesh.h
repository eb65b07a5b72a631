// The ranks that train one model together, and how they are grouped.
//
// World of W = data x context ranks. Rank r has context index r % C and data index r / C: a context group, whose ranks
// hold parts of the same documents, is C consecutive ranks. A shard group, whose ranks hold parts of the same
// optimiser state or parameters, is S consecutive ranks; ranks at the same place of their shard groups replicate each
// other. All groups come of one unique id: the ids of the groups travel over the world's communicator.
//
// Two streams carry what ranks exchange: one for keys and values within a context group, one for gradients and
// parameters, so that neither waits behind the other. Everything is queued by the engine thread, and in an order that
// is the same on all ranks of a communicator.
//
// A failure of one rank is one of all: whoever fails in a call that others take part in calls abort(), and from then on
// every operation of every rank fails with the cause. Only what all ranks see alike (gradients that are not finite once
// they are summed) leaves the mesh whole.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "core/device.h"
#include "core/schedule.h"

namespace tokenring {

// How a context group exchanges keys and values: parallel/ring_attention.h, with nodes of one rank, with one node, or
// with the nodes that there are.
enum class ContextSchedule { ring, all_gather, two_level };

struct MeshOptions {
  UniqueId id;
  int rank = 0, size = 1;
  int context_parallel = 1;  // C; divides size
  ContextSchedule context_schedule = ContextSchedule::ring;
  int ranks_per_node = 0;  // of two_level: consecutive ranks with fast links to each other; 0 = size
  int shard = 0;           // ZeRO stage: 0, 1 or 3
  int shard_size = 0;      // S; divides size; 0 = size
  std::chrono::milliseconds timeout{600'000};

  void check() const;  // Failure INVALID_ARGUMENT that names the field
  // The same without shares that are the whole.
  MeshOptions with_real_shares() const;
  // Consecutive ranks of a context group that gather keys and values among themselves.
  int context_node() const;
};

class Mesh {
 public:
  // Takes the rank's place in the world, and waits for nobody. Failures of Transport::make(). The device outlives it,
  // or leave() comes before its end.
  Mesh(Device&, const Transport&, MeshOptions);
  ~Mesh() { leave(); }

  // Waits for all ranks and makes the groups; before any other use, on the engine thread. Failure COMMUNICATOR on every
  // rank if they were given different meshes. What it fails with, check() repeats.
  void join();
  void check() const;
  // Gives everything back; others that wait for this rank from then on fail.
  void leave() noexcept;

  const MeshOptions& options() const { return options_; }
  int rank() const { return options_.rank; }
  int size() const { return options_.size; }
  int context_index() const { return rank() % options_.context_parallel; }
  int data_index() const { return rank() / options_.context_parallel; }

  Communicator& world() { return *world_; }
  // Null where the group is this rank alone.
  Communicator* context() { return context_.get(); }
  // Of the context group, the ranks of this rank's node; the context group's where it is within one node.
  Communicator* node() { return node_ ? node_.get() : node_is_context_ ? context_.get() : nullptr; }
  // Null at stage 0 too. The shard group that is the whole world is the world's communicator.
  Communicator* shard() { return shard_ ? shard_.get() : shard_is_world_ ? world_.get() : nullptr; }
  Communicator* replica() { return replica_.get(); }

  Stream& context_stream() { return *context_stream_; }
  Stream& gradient_stream() { return *gradient_stream_; }  // of all communicators but the context group's
  // With `compute` for its own track.
  Streams streams(Stream& compute) { return {&compute, context_stream_.get(), gradient_stream_.get()}; }

  // Failure COMMUNICATOR on every rank, naming one that differs, unless all ranks say the same. Collective; waits.
  void agree(const std::vector<std::pair<std::string, double>>& values);

  // `mine`: what this rank failed with, or null. If any has failed, all do, with the failure of the first of them; the
  // mesh stays whole. Collective; waits.
  void fail_together(std::exception_ptr mine);
  // What this rank is about to fail with, all ranks fail with in the same call: it does not break the mesh.
  void fails_alike() { alike_ = true; }

  // Everybody's bytes, in the order of the ranks of `group`, one of this mesh. Collective; waits.
  std::vector<std::byte> gather(Communicator& group, const void* own, size_t bytes);

  // From any thread: ends what any rank waits for, and every later operation, with this cause.
  void abort(const std::string& why) noexcept;

  // Runs a call that other ranks take part in; an exception that leaves it aborts the mesh. Whoever waits for a stream
  // on the way out (Drain) aborts before: the stream may be waiting for other ranks. Null mesh: just runs it.
  template <class Work>
  static auto call(Mesh* mesh, Work&& work) {
    if (!mesh) return work();
    const InCall here(*mesh);
    mesh->check();
    mesh->alike_ = false;
    try {
      return work();
    } catch (const std::exception& error) {
      if (!mesh->alike_) mesh->abort(error.what());
      throw;
    }
  }
  // From any thread: the call that is under way is aborted, and the mesh with it; later ones fail with DISPOSED.
  void close() noexcept;

 private:
  struct InCall {
    explicit InCall(Mesh& mesh) : mesh(mesh) { mesh.in_call_ = true; }
    ~InCall() { mesh.in_call_ = false; }
    InCall(const InCall&) = delete;
    Mesh& mesh;
  };
  std::unique_ptr<Communicator> make(const UniqueId&, int rank, int size, const RankNames& = {});
  void join_groups();

  Device& device_;
  const Transport& transport_;
  MeshOptions options_;
  std::unique_ptr<Communicator> world_, context_, node_, shard_, replica_;
  bool shard_is_world_ = false, node_is_context_ = false;
  std::unique_ptr<Stream> context_stream_, gradient_stream_;
  bool joined_ = false, alike_ = false;
  std::exception_ptr failure_;  // of join()
  std::atomic<bool> in_call_ = false, closing_ = false;

  std::mutex mutex_;                  // of what follows
  std::vector<Communicator*> alive_;  // to abort
  bool aborted_ = false;
  std::string why_;
};

}  // namespace tokenring
