#include "parallel/ring_attention.h"

#include <algorithm>
#include <utility>

namespace tokenring {

namespace {

int64_t bytes_of(std::initializer_list<Slot> slots) {
  int64_t sum = 0;
  for (const Slot& slot : slots) sum += static_cast<int64_t>(slot.bytes());
  return sum;
}

}  // namespace

HeadRows HeadSlot::at(const Frame& f) const {
  const Tensor t = f[slot];
  auto* data = static_cast<std::byte*>(t.data) + static_cast<size_t>(first) * size_of(t.dtype);
  int64_t stride = 1;
  for (int i = 1; i < t.rank; ++i) stride *= t.shape[i];
  return {data, t.dtype, t.shape[0], stride};
}

RingAttention::RingAttention(const Ops& ops, Communicator& context, Communicator* node, AttentionHeads heads,
                             std::vector<Shard> shards)
    : ops_(ops),
      context_(context),
      node_(node && (node->size() > 1 || context.size() == 1) ? node : nullptr),
      heads_(heads),
      rank_(context.rank()),
      size_(context.size()),
      local_(node_ ? node_->size() : 1) {
  require(static_cast<int>(shards.size()) == size_, "shards: there are ", shards.size(), " for ", size_, " ranks");
  require(size_ % local_ == 0 && (!node_ || node_->rank() == rank_ % local_), "node: rank ", node ? node->rank() : 0,
          " of ", local_, " is rank ", rank_, " of ", size_, "; nodes are as many consecutive ranks each");
  check_shards(shards);
  ops.attention_workspace({}, 0, heads.heads, heads.kv_heads,
                          heads.head_dim);  // refuses heads that the device cannot do
  for (const Shard& shard : shards) most_ = std::max(most_, rows_of(shard));
  for (const Shard& shard : shards) padded_ = padded_ || rows_of(shard) < most_;
  const int nodes = size_ / local_;
  for (int t = 0; t < nodes; ++t) {
    const int first = (rank_ / local_ - t + nodes) % nodes * local_;
    const std::vector<Shard> there(shards.begin() + first, shards.begin() + first + local_);
    Round round;
    // A shard alone stays as it lies.
    const Shard whole = gathers() ? merged(there) : there[0];
    if (gathers()) round.pieces = pieces(there, whole);
    round.carried = rows_of(there[static_cast<size_t>(rank_ % local_)]);
    round.rows = rows_of(whole);
    round.tiles = tiles_between(shards[static_cast<size_t>(rank_)], whole, t == 0);
    round.pairs = pairs_of(round.tiles);
    widest_ = std::max(widest_, round.rows);
    rounds_.push_back(std::move(round));
  }
}

Slot RingAttention::carried(const Keys& of, int round) const {
  return round == 0 ? of.own : of.received[(round - 1) % 2];
}

Slot RingAttention::attended(const Keys& of, int round) const {
  return (gathers() ? of.whole[round % 2] : carried(of, round)).rows(0, rounds_[round].rows);
}

// --- entries -------------------------------------------------------------------------------------------

RingAttention::Keys RingAttention::begin(Schedule& s, int layer, HeadSlot k, HeadSlot v) const {
  Keys of;
  const DType dtype = k.slot.dtype;
  of.own = shard_block(s, dtype);
  if (rounds() > 1)
    for (Slot& slot : of.received) slot = block(s, dtype, most_);
  if (gathers()) {
    of.parts = block(s, dtype, local_ * most_);
    for (int i = 0; i < std::min(rounds(), 2); ++i) of.whole[i] = block(s, dtype, widest_);
  }
  const Slot mine = of.own.rows(0, rows());
  copy(s, Track::compute, layer, k, keys(mine), kv_width());
  copy(s, Track::compute, layer, v, values(mine), kv_width());
  gather(s, layer, of, 0);
  return of;
}

void RingAttention::release(Schedule& s, const Keys& of) const {
  for (const Slot& slot : {of.own, of.received[0], of.received[1], of.parts, of.whole[0], of.whole[1]}) s.release(slot);
}

void RingAttention::copy(Schedule& s, Track track, int layer, HeadSlot from, HeadSlot to, int64_t width,
                         bool add) const {
  const auto read = static_cast<int64_t>(size_of(from.slot.dtype)),
             written = static_cast<int64_t>(size_of(to.slot.dtype));
  s.add(track, {}, "copy_rows", layer, from.slot.shape[0] * width * (read + (add ? 2 : 1) * written), 0,
        [this, from, to, width, add](const Frame& f) { ops_.copy_rows(f.stream, from.at(f), to.at(f), width, add); });
}

void RingAttention::unpack(Schedule& s, int layer, Slot from, HeadSlot dk, HeadSlot dv) const {
  copy(s, Track::compute, layer, keys(from), dk, kv_width());
  copy(s, Track::compute, layer, values(from), dv, kv_width());
}

void RingAttention::zero(Schedule& s, int layer, Slot x) const {
  s.add("zero", layer, bytes_of({x}), 0, [this, x](const Frame& f) { ops_.zero(f.stream, f[x]); });
}

void RingAttention::arrive(Schedule& s, int layer) const {
  s.add(Track::compute, {Track::context}, "wait", layer, 0, 0, [](const Frame&) {});
}

void RingAttention::pass(Schedule& s, int layer, std::vector<Slot> give, std::vector<Slot> take) const {
  int64_t bytes = 0;
  for (const Slot& slot : give) bytes += bytes_of({slot});
  s.add(Track::context, {Track::compute}, "exchange", layer, bytes, 0,
        [this, give = std::move(give), take = std::move(take)](const Frame& f) {
          const int next = (rank_ + local_) % size_, before = (rank_ - local_ + size_) % size_;
          std::vector<Transfer> group;
          for (const Slot& slot : give) group.push_back({Transfer::Way::send, next, f[slot]});
          for (const Slot& slot : take) group.push_back({Transfer::Way::receive, before, f[slot]});
          context_.exchange(f.stream, std::move(group));
        });
}

void RingAttention::gather(Schedule& s, int layer, const Keys& of, int round) const {
  if (!gathers()) return;
  const Slot own = carried(of, round), parts = of.parts, whole = of.whole[round % 2];
  s.add(Track::context, {Track::compute}, "all_gather", layer, bytes_of({parts}), 0,
        [this, own, parts](const Frame& f) { node_->all_gather(f.stream, f[own], f[parts]); });
  s.add(Track::context, {}, "copy_on_device", layer, 2 * bytes_of({attended(of, round)}), 0,
        [this, parts, whole, round](const Frame& f) {
          for (const Piece& p : rounds_[round].pieces) {
            const Slot from = parts.rows(p.shard * most_ + p.row, p.rows), to = whole.rows(p.whole, p.rows);
            f.stream.copy_on_device(f[to].data, f[from].data, to.bytes());
          }
        });
}

void RingAttention::scatter_sum(Schedule& s, int layer, int round, Slot whole, Slot parts, Slot own) const {
  s.add(Track::context, {Track::compute}, "copy_on_device", layer, 2 * bytes_of({whole}), 0,
        [this, parts, whole, round](const Frame& f) {
          for (const Piece& p : rounds_[round].pieces) {
            const Slot from = whole.rows(p.whole, p.rows), to = parts.rows(p.shard * most_ + p.row, p.rows);
            f.stream.copy_on_device(f[to].data, f[from].data, to.bytes());
          }
        });
  s.add(Track::context, {}, "reduce_scatter", layer, bytes_of({parts}), 0,
        [this, parts, own](const Frame& f) { node_->reduce_scatter(f.stream, f[parts], f[own], Reduction::sum); });
}

void RingAttention::attend(Schedule& s, int layer, HeadSlot q, Slot held, int round, Slot out, Slot lse) const {
  const bool merge = round > 0;
  s.add("attention_block_forward", layer, (merge ? 3 : 2) * bytes_of({out}) + bytes_of({lse, held}),
        4 * rounds_[round].pairs * heads_.heads * heads_.head_dim,
        [this, q, held, round, merge, out, lse](const Frame& f) {
          ops_.attention_block_forward(f.stream, heads_, q.at(f), keys(held).at(f), values(held).at(f),
                                       rounds_[round].tiles, merge, f[out], f[lse]);
        });
}

void RingAttention::attend_backward(Schedule& s, int layer, const Backward& of, Slot held, int round,
                                    Slot gradient) const {
  s.add("attention_block_backward", layer,
        4 * bytes_of({of.dout}) + 2 * bytes_of({of.lse}) + bytes_of({held}) + 2 * bytes_of({gradient}),
        10 * rounds_[round].pairs * heads_.heads * heads_.head_dim, [this, of, held, round, gradient](const Frame& f) {
          ops_.attention_block_backward(f.stream, heads_, f[of.dout], of.q.at(f), keys(held).at(f), values(held).at(f),
                                        f[of.lse], f[of.delta], rounds_[round].tiles, of.dq.at(f), keys(gradient).at(f),
                                        values(gradient).at(f));
        });
}

// --- forward -------------------------------------------------------------------------------------------

void RingAttention::forward(Schedule& s, int layer, HeadSlot q, HeadSlot k, HeadSlot v, Slot out, Slot lse) const {
  const Keys of = begin(s, layer, k, v);
  // What is merged is merged in f32.
  const bool widened = rounds() > 1 && out.dtype != DType::f32;
  const Slot to = widened ? s.slot(DType::f32, {rows(), out.shape[1]}) : out;
  for (int t = 0; t < rounds(); ++t) {
    if (t > 0 || gathers()) arrive(s, layer);
    // The room of the next keys is that of the round before, which compute has left.
    if (t + 1 < rounds()) {
      const auto rows = [&](int at) { return carried(of, at).rows(0, rounds_[at].carried); };
      pass(s, layer, {rows(t)}, {rows(t + 1)});
      gather(s, layer, of, t + 1);
    }
    attend(s, layer, q, attended(of, t), t, to, lse);
  }
  release(s, of);
  if (!widened) return;
  copy(s, Track::compute, layer, {to}, {out}, out.shape[1]);
  s.release(to);
}

// --- backward ------------------------------------------------------------------------------------------

void RingAttention::backward(Schedule& s, int layer, Slot dout, HeadSlot q, HeadSlot k, HeadSlot v, Slot out, Slot lse,
                             HeadSlot dq, HeadSlot dk, HeadSlot dv) const {
  const Slot delta = s.slot(DType::f32, {rows(), heads_.heads});
  s.add("attention_delta", layer, bytes_of({dout, out, delta}), 2 * rows() * heads_.heads * heads_.head_dim,
        [this, dout, out, delta](const Frame& f) {
          ops_.attention_delta(f.stream, f[dout], f[out], heads_.heads, f[delta]);
        });
  zero(s, layer, dq.slot);
  const Backward to{dout, lse, delta, q, dq};
  Keys of = begin(s, layer, k, v);
  const int last = rounds() - 1;

  std::vector<Slot> held{delta};
  const auto room = [&](int64_t rows) { return held.emplace_back(block(s, DType::f32, rows)); };
  const Slot home = held.emplace_back(shard_block(s, DType::f32));
  Slot travelling[2], mine, found[2], sums;
  if (last > 0) {
    for (Slot& slot : travelling) slot = room(most_);
    mine = room(most_);
  }
  // What a node's ranks have found is summed while they find the next.
  if (gathers())
    for (int i = 0; i < std::min(rounds(), 2); ++i) found[i] = room(widest_);
  // Of the shard that this rank has of a round: of the nodes before and, when what this one has found is added, of it.
  const auto gradient = [&](int t) { return (t == 0 ? home : travelling[t % 2]).rows(0, rounds_[t].carried); };
  const auto add_found = [&](int t) {
    if (gathers()) {
      if (!sums) {
        sums = room(local_ * most_);
        if (padded_) zero(s, layer, sums);  // once: what pads smaller shards stays zero
      }
      scatter_sum(s, layer, t, found[t % 2].rows(0, rounds_[t].rows), sums, t == 0 ? home : mine);
    }
    if (t == 0) return;
    copy(s, gathers() ? Track::context : Track::compute, layer, {mine.rows(0, rounds_[t].carried), 0}, {gradient(t), 0},
         2 * kv_width(), true);
  };
  for (int t = 0; t <= last; ++t) {
    // The keys of this round, and the gradients that belong to the round before.
    if (t > 0 || gathers()) arrive(s, layer);
    if (t == last) s.release(std::exchange(of.parts, {}));
    if (t > 0) add_found(t - 1);
    std::vector<Slot> give, take;
    if (t < last) {
      give.push_back(carried(of, t).rows(0, rounds_[t].carried));
      take.push_back(carried(of, t + 1).rows(0, rounds_[t + 1].carried));
    }
    if (t > 0) {
      give.push_back(gradient(t - 1));
      take.push_back(gradient(t));
    }
    if (!give.empty()) pass(s, layer, std::move(give), std::move(take));
    if (t < last) gather(s, layer, of, t + 1);
    const Slot here = (gathers() ? found[t % 2] : t == 0 ? home : mine).rows(0, rounds_[t].rows);
    zero(s, layer, here);
    attend_backward(s, layer, to, attended(of, t), t, here);
  }
  if (last > 0 && !gathers()) arrive(s, layer);
  add_found(last);
  if (last > 0) pass(s, layer, {gradient(last)}, {gradient(0)});
  if (last > 0 || gathers()) arrive(s, layer);
  unpack(s, layer, gradient(0), dk, dv);
  release(s, of);
  for (const Slot& slot : held) s.release(slot);
}

}  // namespace tokenring
