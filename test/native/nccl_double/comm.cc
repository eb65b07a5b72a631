#include "comm.h"

#include <algorithm>
#include <cstring>

#include "arithmetic.h"

namespace nccl_double {
namespace {

using std::chrono::milliseconds;

uint64_t sum_of(const void* data, size_t bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto* at = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ at[i]) * 0x100000001b3;
  return hash;
}

}  // namespace

State& state() {
  static State one;
  return one;
}

void fault(const std::string& text) {
  std::lock_guard lock(state().mutex);
  state().faults += text + "\n";
}

int fail(Result result, const std::string& text) {
  std::lock_guard lock(state().mutex);
  state().last_error = text;
  return result;
}

unsigned luck(unsigned n) {
  static std::atomic<uint64_t> seed{0x9e3779b97f4a7c15};
  uint64_t z = (seed += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  return static_cast<unsigned>((z ^ (z >> 31)) % n);
}

NcclDoublePlan Comm::planned(int operation) const {
  std::lock_guard lock(state().mutex);
  return state().plan.rank == rank && state().plan.operation == operation ? state().plan : NcclDoublePlan{};
}

// --- the worker ----------------------------------------------------------------------------------------

void Comm::work() {
  const NcclDoublePlan join = planned(0);
  if (join.what == NcclDoublePlan::What::late) std::this_thread::sleep_for(milliseconds(join.milliseconds));
  if (join.what == NcclDoublePlan::What::error) error = kSystem;
  if (join.what == NcclDoublePlan::What::error || join.what == NcclDoublePlan::What::stall) wait_for_abort();
  while (!aborted && !lanes.all_joined()) std::this_thread::sleep_for(milliseconds(1));
  joining = false;
  std::unique_lock lock(mutex);
  for (;;) {
    changed.wait(lock, [this] { return aborted || !queue.empty(); });
    if (aborted) return;
    const Held operation = queue.front();
    queue.pop_front();
    lock.unlock();
    run(*operation);
    lock.lock();
    --under_way;
    operation->cut = aborted;
    operation->done = true;
  }
}

bool Comm::move(const std::vector<Transfer>& transfers, const Operation& operation) {
  std::string found;
  if (lanes.move(
          transfers, [this] { return aborted.load(); }, &found))
    return true;
  if (!found.empty()) fault(name() + ", " + text_of(operation.label) + ": " + found);
  wait_for_abort();
  return false;
}

void Comm::run(Operation& op) {
  const NcclDoublePlan plan = planned(op.number);
  switch (plan.what) {
    case NcclDoublePlan::What::error:
      error = kSystem;
      return wait_for_abort();
    case NcclDoublePlan::What::stall:
      return wait_for_abort();
    case NcclDoublePlan::What::late:
      std::this_thread::sleep_for(milliseconds(plan.milliseconds));
      break;
    default:
      if (luck(4) == 0) std::this_thread::sleep_for(std::chrono::microseconds(luck(2000)));
  }
  if (op.label.kind == kMessage) {
    std::vector<Transfer> all;
    for (const Part& part : op.parts) {
      std::vector<char>& data = (part.sends ? op.reads : op.writes)[part.span].copy;
      all.push_back({part.peer, part.sends, Purpose::message, part.label, data.data(), data.size()});
    }
    move(all, op);
    return;
  }
  // All say what they run before anything moves.
  std::vector<Transfer> labels, all;
  for (int r = 0; r < size; ++r)
    for (const bool sends : {true, false})
      if (r != rank) labels.push_back({r, sends, Purpose::collective, op.label, nullptr, 0});
  if (!move(labels, op)) return;
  std::vector<char>&in = op.reads[0].copy, &out = op.writes[0].copy;
  std::vector<std::vector<char>> parts(size);
  const auto swap = [&](int peer, char* give, size_t give_bytes, size_t take_bytes) {
    parts[peer].resize(take_bytes);
    if (give_bytes) all.push_back({peer, true, Purpose::collective, op.label, give, give_bytes});
    if (take_bytes) all.push_back({peer, false, Purpose::collective, op.label, parts[peer].data(), take_bytes});
  };
  const bool scatter = op.label.kind == kReduceScatter, root = rank == op.label.root;
  for (int r = 0; r < size; ++r) {
    if (r == rank) continue;
    if (op.label.kind == kBroadcast)
      swap(r, in.data(), root ? in.size() : 0, r == op.label.root ? out.size() : 0);
    else if (scatter)
      swap(r, in.data() + static_cast<size_t>(r) * out.size(), out.size(), out.size());
    else
      swap(r, in.data(), in.size(), in.size());
  }
  if (!move(all, op)) return;
  const char* own = in.data() + (scatter ? static_cast<size_t>(rank) * out.size() : 0);
  const size_t each = scatter ? out.size() : in.size();
  parts[rank].assign(own, own + each);
  if (op.label.kind == kBroadcast) {
    out = parts[op.label.root];
  } else if (op.label.kind == kAllGather) {
    out.clear();
    for (const std::vector<char>& part : parts) out.insert(out.end(), part.begin(), part.end());
  } else {
    // From the highest rank down: not in the order that shared memory has.
    out = parts[size - 1];
    for (int r = size - 2; r >= 0; --r)
      fold(op.label.type, op.label.reduction, parts[r].data(), op.label.count, out.data());
  }
}

// --- on the stream -------------------------------------------------------------------------------------

namespace {

void begin(Operation& op) {
  for (Span& span : op.reads) {
    span.copy.assign(span.data, span.data + span.bytes);
    span.sum = sum_of(span.data, span.bytes);
  }
  for (Span& span : op.writes) {
    span.copy.resize(span.bytes);
    const bool in_place = std::any_of(op.reads.begin(), op.reads.end(), [&](const Span& read) {
      return span.data < read.data + read.bytes && read.data < span.data + span.bytes;
    });
    if (!in_place) std::memset(span.data, 0xff, span.bytes);
    span.sum = sum_of(span.data, span.bytes);
  }
}

void end(Operation& op) {
  if (op.cut || op.comm->aborted) return;
  const auto check = [&](const Span& span, const char* what) {
    if (sum_of(span.data, span.bytes) != span.sum)
      fault(op.comm->name() + ": memory that " + text_of(op.label) + what + " was written to before it was through");
  };
  for (const Span& span : op.reads) check(span, " reads");
  for (const Span& span : op.writes) check(span, " writes");
  for (const Span& span : op.writes) std::memcpy(span.data, span.copy.data(), span.bytes);
}

}  // namespace

void Comm::enqueue(const Held& op) {
  auto* held = new Held(op);
  state().hooks.enqueue(
      op->stream,
      [](void* p) {
        const Held& op = *static_cast<Held*>(p);
        begin(*op);
        {
          std::lock_guard lock(op->comm->mutex);
          op->comm->queue.push_back(op);
        }
        op->comm->changed.notify_all();
      },
      [](void* p) -> int {
        const Held& op = *static_cast<Held*>(p);
        return op->done || op->comm->aborted;
      },
      [](void* p) {
        const std::unique_ptr<Held> op(static_cast<Held*>(p));
        end(**op);
      },
      held);
}

}  // namespace nccl_double
