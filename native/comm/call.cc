#include "comm/call.h"

#include <cstring>
#include <sstream>

#include "comm/reduce.h"

namespace tokenring::comm {
namespace {

const char* word_of(Kind kind) {
  switch (kind) {
    case Kind::join:
      return "join";
    case Kind::broadcast:
      return "broadcast";
    case Kind::all_reduce:
      return "all_reduce";
    case Kind::reduce_scatter:
      return "reduce_scatter";
    case Kind::all_gather:
      return "all_gather";
    case Kind::barrier:
      return "barrier";
    case Kind::exchange:
      return "exchange";
  }
  return "unknown";
}

void check_memory(const char* op, const char* name, const Tensor& t) {
  require(t.data || t.elements() == 0, op, ": ", name, " has no memory");
}

std::string group_of(const RankNames& names) {
  return {names.group.data(), strnlen(names.group.data(), names.group.size())};
}

// "ranks 4 to 7"; "ranks 1 and 5"; "ranks 1, 5, ..., 29"
std::string members_of(int size, const RankNames& names) {
  std::ostringstream text;
  const int last = number_of(size - 1, names);
  text << "ranks " << names.first;
  if (size == 2)
    text << " and " << last;
  else if (names.stride == 1)
    text << " to " << last;
  else
    text << ", " << number_of(1, names) << (size == 3 ? ", " : ", ..., ") << last;
  return text.str();
}

void check_reducible(const char* op, const Tensor& t) {
  require(reducible(t.dtype), op, ": ", tokenring::name_of(t.dtype), " has no arithmetic here; use f32, bf16 or i32");
}

}  // namespace

Call call_of(uint64_t sequence, Kind kind, const Tensor& t, int root, Reduction how) {
  return {sequence,
          static_cast<uint8_t>(kind),
          static_cast<uint8_t>(t.dtype),
          static_cast<uint8_t>(how),
          static_cast<uint16_t>(root),
          t.elements()};
}

std::string name_of(Kind kind, uint64_t sequence) {
  return kind == Kind::join ? "join" : std::string(word_of(kind)) + " #" + std::to_string(sequence);
}

std::string text_of(const Call& call, const RankNames& names) {
  std::ostringstream text;
  const Kind kind = static_cast<Kind>(call.kind);
  text << word_of(kind);
  if (kind == Kind::all_reduce || kind == Kind::reduce_scatter) {
    text << "(" << comm::name_of(static_cast<Reduction>(call.reduction)) << ")";
  }
  if (kind == Kind::broadcast) text << "(root " << number_of(call.root, names) << ")";
  if (kind != Kind::barrier)
    text << " of " << call.count << " x " << tokenring::name_of(static_cast<DType>(call.dtype));
  return text.str();
}

std::string name_of_rank(int rank, int size, const RankNames& names) {
  std::ostringstream text;
  text << "rank " << number_of(rank, names) << " of " << (names.world ? names.world : size);
  if (names.world) text << " (rank " << rank << " of its " << group_of(names) << ", " << members_of(size, names) << ")";
  return text.str();
}

std::string disagreement(const Call& of_lower, int lower, const Call& of_higher, int higher, int size,
                         const RankNames& names) {
  std::ostringstream text;
  text << "the ranks ";
  if (names.world) text << "of a " << group_of(names) << ", " << members_of(size, names) << ", ";
  text << "disagree about collective #" << of_lower.sequence << ": rank " << number_of(lower, names) << " runs "
       << text_of(of_lower, names) << ", rank " << number_of(higher, names) << " " << text_of(of_higher, names)
       << "; all ranks must make the same calls in the same order";
  return text.str();
}

void check_broadcast(const Tensor& x, int root, int size) {
  check_memory("broadcast", "x", x);
  require(root >= 0 && root < size, "broadcast: root is ", root, ", must be a rank below ", size);
}

void check_all_reduce(const Tensor& x) {
  check_memory("all_reduce", "x", x);
  check_reducible("all_reduce", x);
}

void check_reduce_scatter(const Tensor& in, const Tensor& out, int size) {
  check_memory("reduce_scatter", "in", in);
  check_memory("reduce_scatter", "out", out);
  check_reducible("reduce_scatter", in);
  require(out.dtype == in.dtype && in.elements() == out.elements() * size, "reduce_scatter: in has ", in.elements(),
          " x ", tokenring::name_of(in.dtype), ", must have ", size, " times out's ", out.elements(), " x ",
          tokenring::name_of(out.dtype));
}

void check_all_gather(const Tensor& in, const Tensor& out, int size) {
  check_memory("all_gather", "in", in);
  check_memory("all_gather", "out", out);
  require(out.dtype == in.dtype && out.elements() == in.elements() * size, "all_gather: out has ", out.elements(),
          " x ", tokenring::name_of(out.dtype), ", must have ", size, " times in's ", in.elements(), " x ",
          tokenring::name_of(in.dtype));
}

void check_exchange(const std::vector<Transfer>& group, int rank, int size) {
  for (const Transfer& transfer : group) {
    require(transfer.peer >= 0 && transfer.peer < size && transfer.peer != rank, "exchange: peer is ", transfer.peer,
            ", must be another rank below ", size);
    check_memory("exchange", transfer.way == Transfer::Way::send ? "what is sent" : "what is received",
                 transfer.tensor);
  }
}

}  // namespace tokenring::comm
