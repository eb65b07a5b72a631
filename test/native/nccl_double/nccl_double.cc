// The functions of the library: see nccl_double.h.
#include "nccl_double.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "comm.h"

namespace nccl_double {
namespace {

std::set<std::string> names;

// --- calls ---------------------------------------------------------------------------------------------

struct Call {  // of one communicator, by one thread at a time
  explicit Call(void* handle) {
    std::lock_guard lock(state().mutex);
    if (!state().alive.contains(handle)) return;
    comm = static_cast<Comm*>(handle)->shared_from_this();
    if (++comm->calls > 1) state().faults += comm->name() + ": two threads call at once\n";
  }
  ~Call() {
    if (comm) --comm->calls;
  }
  std::shared_ptr<Comm> comm;
};

bool in_progress(Comm& comm) {
  std::unique_lock lock(comm.mutex);
  if (comm.joining) return true;
  if (comm.finalizing && comm.under_way > 0) return true;
  if (comm.deferred.empty()) return false;
  if (std::chrono::steady_clock::now() < comm.deferred_until) return true;
  const std::vector<Held> now = std::exchange(comm.deferred, {});
  lock.unlock();
  for (const Held& op : now) comm.enqueue(op);
  return false;
}

struct Group {
  int depth = 0;
  std::vector<Held> operations;
  Result error = kSuccess;
};
thread_local Group group;

size_t size_of_type(int type) {
  switch (type) {
    case 1:
      return 1;
    case 6:
    case 9:
      return 2;
    case 2:
    case 7:
      return 4;
  }
  return 0;
}

int submit(const std::vector<Held>& operations) {
  bool later = false;
  for (const Held& op : operations) {
    Comm& comm = *op->comm;
    op->number = static_cast<int>(++comm.operations);
    if (op->label.kind != kMessage) op->label.sequence = ++comm.collectives;
    if (comm.planned(op->number).what == NcclDoublePlan::What::refuse) return fail(kSystem, "as the test has planned");
    std::unique_lock lock(comm.mutex);
    ++comm.under_way;
    if (luck(3) == 0 || !comm.deferred.empty()) {
      comm.deferred.push_back(op);
      comm.deferred_until = std::chrono::steady_clock::now() + std::chrono::microseconds(luck(3000));
      later = true;
      continue;
    }
    lock.unlock();
    comm.enqueue(op);
  }
  return later ? kInProgress : kSuccess;
}

int end_of_group() {
  const std::vector<Held> operations = std::exchange(group.operations, {});
  const Result error = std::exchange(group.error, kSuccess);
  return error ? error : submit(operations);
}

struct Arguments {
  Kind kind;
  const void* from;
  size_t from_count;
  void* to;
  size_t to_count, count;
  int type, reduction, root;
};

int call(void* handle, void* stream, const Arguments& a) {
  const Call calling(handle);
  const auto refuse = [&](const std::string& text) {
    fault(text);
    group.error = kArgument;
    return group.depth ? kArgument : fail(std::exchange(group.error, kSuccess), text);
  };
  if (!calling.comm) return refuse("a call of a communicator that is not there");
  Comm& comm = *calling.comm;
  if (in_progress(comm)) return refuse(comm.name() + ": a call while another is in progress");
  const size_t each = size_of_type(a.type);
  if (!each) return refuse("type " + std::to_string(a.type));
  const bool message = a.kind == kMessage;
  if (a.root < 0 || a.root >= comm.size || (message && a.root == comm.rank)) return refuse("a rank outside the size");
  const Label label{0, a.kind, a.type, a.reduction, message ? 0 : a.root, a.count};
  for (const auto& [data, count] :
       {std::pair{a.from, a.from_count}, std::pair{static_cast<const void*>(a.to), a.to_count}})
    if (count && !state().hooks.on_device(data, count * each))
      return refuse(comm.name() + ", " + text_of(label) + ": memory that is not the GPU's");
  // Messages of a group on one stream are one operation.
  Held op;
  for (const Held& other : group.operations)
    if (message && other->comm == calling.comm && other->stream == stream && other->label.kind == kMessage) op = other;
  const bool known = op != nullptr;
  if (!known) op = std::make_shared<Operation>();
  op->comm = calling.comm;
  op->label = label;
  op->stream = stream;
  if (a.from_count) op->reads.push_back({static_cast<char*>(const_cast<void*>(a.from)), a.from_count * each, {}});
  if (a.to_count) op->writes.push_back({static_cast<char*>(a.to), a.to_count * each, {}});
  if (message)
    op->parts.push_back({a.root, a.from_count > 0, label, (a.from_count ? op->reads : op->writes).size() - 1});
  if (!known) group.operations.push_back(op);
  return group.depth ? static_cast<int>(kSuccess) : end_of_group();
}

std::shared_ptr<Comm> bury(void* handle) {
  std::shared_ptr<Comm> comm;
  std::lock_guard lock(state().mutex);
  if (state().alive.erase(handle)) comm = static_cast<Comm*>(handle)->shared_from_this();
  return comm;
}

struct Keeper {  // of those that live, and of names that nobody took away
  std::set<std::shared_ptr<Comm>> comms;
  ~Keeper() {
    for (const std::string& name : names) shm_unlink(name.c_str());
    for (const auto& comm : comms) comm->worker.detach();
  }
} keeper;

int end_comm(void* handle, bool abort) {
  const std::shared_ptr<Comm> comm = bury(handle);
  if (!comm) {
    fault("an end of a communicator that is not there");
    return kArgument;
  }
  if (!abort) {
    std::lock_guard lock(comm->mutex);
    if (comm->under_way > 0) fault(comm->name() + ": destroyed with work under way");
    if (!comm->finalizing) fault(comm->name() + ": destroyed before it was finalised");
  }
  comm->aborted = true;
  comm->changed.notify_all();
  comm->worker.join();
  std::lock_guard lock(state().mutex);
  keeper.comms.erase(comm);
  return kSuccess;
}

struct Id {
  char name[128];
};

struct Config {
  size_t size;
  unsigned magic, version;
  int blocking;
};

}  // namespace
}  // namespace nccl_double

using namespace nccl_double;

#define API extern "C" __attribute__((visibility("default")))

API int ncclGetVersion(int* version) {
  const char* said = std::getenv("TOKENRING_NCCL_DOUBLE_VERSION");
  *version = said ? std::atoi(said) : 22707;
  return kSuccess;
}

API const char* ncclGetErrorString(int result) {
  static const char* const texts[] = {"no error",       "unhandled cuda error", "unhandled system error",
                                      "internal error", "invalid argument",     "invalid usage",
                                      "remote error",   "operation in progress"};
  return result >= 0 && result < 8 ? texts[result] : "unknown";
}

API const char* ncclGetLastError(void*) {
  static thread_local std::string text;
  std::lock_guard lock(state().mutex);
  text = state().last_error;
  return text.c_str();
}

// Within a program that knows nothing of it, the emulated GPU is a library of its own.
__attribute__((constructor)) static void connect_to_emulator() {
  const char* file = std::getenv("TOKENRING_CUDA_MODULE");
  void* emulator = file ? dlopen(file, RTLD_NOW | RTLD_LOCAL) : nullptr;
  void* hooks = emulator ? dlsym(emulator, "tokenring_emulated_hooks") : nullptr;
  if (hooks) state().hooks = *reinterpret_cast<const NcclDoubleHooks* (*)()>(hooks)();
}

API int ncclGetUniqueId(Id* id) {
  static std::atomic<int> count{0};
  std::memset(id, 0, sizeof(*id));
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  std::snprintf(id->name, sizeof(id->name), "/tokenring-nccl-double-%d-%d-%llx", getpid(), ++count,
                static_cast<unsigned long long>(now));
  std::lock_guard lock(state().mutex);
  names.insert(id->name);
  return kSuccess;
}

API int ncclCommInitRankConfig(void** handle, int size, Id id, int rank, const Config* config) {
  if (size < 1 || size > kMaxRanks || rank < 0 || rank >= size) return fail(kArgument, "rank or size");
  if (config->magic != 0xcafebeef || config->size < sizeof(Config) || config->version < 21801 || config->blocking != 0)
    return fail(kArgument, "a config that this library does not know");
  // As in a library that knows the switch: off, if somebody says so.
  const char* shared = std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  if (shared && std::string(shared) == "0") return fail(kUsage, "two ranks on one GPU");
  const auto comm = std::make_shared<Comm>();
  comm->rank = rank;
  comm->size = size;
  if (comm->planned(0).what == NcclDoublePlan::What::refuse) return fail(kSystem, "as the test has planned");
  if (!comm->lanes.open(id.name, rank, size)) return fail(kArgument, "another size was said");
  comm->worker = std::thread([comm] { comm->work(); });
  *handle = comm.get();
  std::lock_guard lock(state().mutex);
  state().alive.insert(comm.get());
  keeper.comms.insert(comm);
  return kInProgress;
}

API int ncclCommGetAsyncError(void* handle, int* error) {
  const Call calling(handle);
  if (!calling.comm) return kArgument;
  *error = calling.comm->error;
  if (*error != kSuccess) fail(static_cast<Result>(*error), "as the test has planned");
  if (*error == kSuccess && in_progress(*calling.comm)) *error = kInProgress;
  return kSuccess;
}

API int ncclCommFinalize(void* handle) {
  const Call calling(handle);
  if (!calling.comm) return kArgument;
  calling.comm->finalizing = true;
  return in_progress(*calling.comm) ? kInProgress : kSuccess;
}

API int ncclCommDestroy(void* handle) { return end_comm(handle, false); }
API int ncclCommAbort(void* handle) { return end_comm(handle, true); }

API int ncclGroupStart() {
  ++group.depth;
  return kSuccess;
}

API int ncclGroupEnd() {
  if (group.depth == 0) {
    fault("the end of a group that was not begun");
    return kUsage;
  }
  return --group.depth ? static_cast<int>(kSuccess) : end_of_group();
}

API int ncclSend(const void* from, size_t count, int type, int peer, void* comm, void* stream) {
  return call(comm, stream, {kMessage, from, count, nullptr, 0, count, type, 0, peer});
}
API int ncclRecv(void* to, size_t count, int type, int peer, void* comm, void* stream) {
  return call(comm, stream, {kMessage, nullptr, 0, to, count, count, type, 0, peer});
}
API int ncclBroadcast(const void* from, void* to, size_t count, int type, int root, void* comm, void* stream) {
  return call(comm, stream, {kBroadcast, from, count, to, count, count, type, 0, root});
}
API int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, void* comm, void* stream) {
  return call(comm, stream, {kAllReduce, from, count, to, count, count, type, op, 0});
}

namespace {
size_t ranks_of(void* handle) {
  const Call calling(handle);
  return calling.comm ? static_cast<size_t>(calling.comm->size) : 0;
}
}  // namespace

API int ncclReduceScatter(const void* from, void* to, size_t count, int type, int op, void* comm, void* stream) {
  return call(comm, stream, {kReduceScatter, from, count * ranks_of(comm), to, count, count, type, op, 0});
}
API int ncclAllGather(const void* from, void* to, size_t count, int type, void* comm, void* stream) {
  return call(comm, stream, {kAllGather, from, count, to, count * ranks_of(comm), count, type, 0, 0});
}

API const NcclDouble* tokenring_nccl_double() {
  static const NcclDouble entry = {
      .connect = [](const NcclDoubleHooks* given) { state().hooks = *given; },
      .plan =
          [](const NcclDoublePlan* given) {
            std::lock_guard lock(state().mutex);
            state().plan = given ? *given : NcclDoublePlan{};
          },
      .faults = []() -> const char* {
        static std::string text;
        std::lock_guard lock(state().mutex);
        text = std::exchange(state().faults, "");
        return text.c_str();
      },
  };
  return &entry;
}
