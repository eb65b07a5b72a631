#include "parallel/ring_attention.h"

#include <algorithm>

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

RingAttention::RingAttention(const Ops& ops, Communicator& communicator, AttentionHeads heads,
                             std::vector<Shard> shards, ContextSchedule schedule)
    : ops_(ops),
      communicator_(communicator),
      heads_(heads),
      shards_(std::move(shards)),
      schedule_(schedule),
      rank_(communicator.rank()),
      size_(communicator.size()) {
  require(static_cast<int>(shards_.size()) == size_, "shards: there are ", shards_.size(), " for ", size_, " ranks");
  check_shards(shards_);
  ops.attention_workspace({}, 0, heads.heads, heads.kv_heads,
                          heads.head_dim);  // refuses heads that the device cannot do
  for (const Shard& shard : shards_) most_ = std::max(most_, rows_of(shard));
  if (schedule == ContextSchedule::ring) {
    for (int step = 0; step < size_; ++step)
      tiles_.push_back(tiles_between(shards_[rank_], shards_[owner(step)], step == 0));
  } else {
    whole_ = merged(shards_);
    pieces_ = pieces(shards_, whole_);
    tiles_.push_back(tiles_between(shards_[rank_], whole_, true));
  }
  for (const auto& tiles : tiles_) pairs_.push_back(pairs_of(tiles));
}

// --- entries -------------------------------------------------------------------------------------------

void RingAttention::copy(Schedule& s, int layer, HeadSlot from, HeadSlot to, int64_t width, bool add) const {
  const int64_t bytes = from.slot.shape[0] * width * static_cast<int64_t>(sizeof(float));
  s.add("copy_rows", layer, (add ? 3 : 2) * bytes, 0,
        [this, from, to, width, add](const Frame& f) { ops_.copy_rows(f.stream, from.at(f), to.at(f), width, add); });
}

void RingAttention::pack(Schedule& s, int layer, HeadSlot k, HeadSlot v, Slot to) const {
  copy(s, layer, k, keys(to), kv_width());
  copy(s, layer, v, values(to), kv_width());
}

void RingAttention::unpack(Schedule& s, int layer, Slot from, HeadSlot dk, HeadSlot dv) const {
  copy(s, layer, keys(from), dk, kv_width());
  copy(s, layer, values(from), dv, kv_width());
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
          std::vector<Transfer> group;
          for (const Slot& slot : give) group.push_back({Transfer::Way::send, (rank_ + 1) % size_, f[slot]});
          for (const Slot& slot : take) group.push_back({Transfer::Way::receive, owner(1), f[slot]});
          communicator_.exchange(f.stream, std::move(group));
        });
}

// All ranks' rows of `own` [most, 2 kv], in the order of the documents. parts: [size * most, 2 kv].
void RingAttention::gather(Schedule& s, int layer, Slot own, Slot parts, Slot whole) const {
  s.add(Track::context, {Track::compute}, "all_gather", layer, bytes_of({parts}), 0,
        [this, own, parts](const Frame& f) { communicator_.all_gather(f.stream, f[own], f[parts]); });
  s.add(Track::context, {}, "copy_on_device", layer, 2 * bytes_of({whole}), 0, [this, parts, whole](const Frame& f) {
    for (const Piece& p : pieces_) {
      const Slot from = parts.rows(p.shard * most_ + p.row, p.rows), to = whole.rows(p.whole, p.rows);
      f.stream.copy_on_device(f[to].data, f[from].data, to.bytes());
    }
  });
}

// The way back: each rank's rows, summed over the ranks.
void RingAttention::scatter_sum(Schedule& s, int layer, Slot whole, Slot parts, Slot own) const {
  zero(s, layer, parts);  // the rows that pad smaller shards
  s.add(Track::context, {Track::compute}, "copy_on_device", layer, 2 * bytes_of({whole}), 0,
        [this, parts, whole](const Frame& f) {
          for (const Piece& p : pieces_) {
            const Slot from = whole.rows(p.whole, p.rows), to = parts.rows(p.shard * most_ + p.row, p.rows);
            f.stream.copy_on_device(f[to].data, f[from].data, to.bytes());
          }
        });
  s.add(Track::context, {}, "reduce_scatter", layer, bytes_of({parts}), 0, [this, parts, own](const Frame& f) {
    communicator_.reduce_scatter(f.stream, f[parts], f[own], Reduction::sum);
  });
}

void RingAttention::attend(Schedule& s, int layer, HeadSlot q, HeadSlot k, HeadSlot v, int step, bool merge, Slot out,
                           Slot lse) const {
  const int64_t moved = (merge ? 3 : 2) * bytes_of({out}) + bytes_of({lse}) + 2 * k.slot.shape[0] * kv_width() * 4;
  s.add("attention_block_forward", layer, moved, 4 * pairs_[step] * heads_.heads * heads_.head_dim,
        [this, q, k, v, step, merge, out, lse](const Frame& f) {
          ops_.attention_block_forward(f.stream, heads_, q.at(f), k.at(f), v.at(f), tiles_[step], merge, f[out],
                                       f[lse]);
        });
}

void RingAttention::attend_backward(Schedule& s, int layer, const Backward& of, HeadSlot k, HeadSlot v, int step,
                                    HeadSlot dk, HeadSlot dv) const {
  const int64_t moved = 4 * bytes_of({of.dout}) + 2 * bytes_of({of.lse}) + 6 * k.slot.shape[0] * kv_width() * 4;
  s.add("attention_block_backward", layer, moved, 10 * pairs_[step] * heads_.heads * heads_.head_dim,
        [this, of, k, v, step, dk, dv](const Frame& f) {
          ops_.attention_block_backward(f.stream, heads_, f[of.dout], of.q.at(f), k.at(f), v.at(f), f[of.lse],
                                        f[of.delta], tiles_[step], of.dq.at(f), dk.at(f), dv.at(f));
        });
}

// --- forward -------------------------------------------------------------------------------------------

void RingAttention::forward(Schedule& s, int layer, HeadSlot q, HeadSlot k, HeadSlot v, Slot out, Slot lse) const {
  if (schedule_ == ContextSchedule::all_gather) {
    const Slot own = block(s, most_), parts = block(s, size_ * most_), all = block(s, rows_of(whole_));
    pack(s, layer, k, v, own.rows(0, rows()));
    gather(s, layer, own, parts, all);
    arrive(s, layer);
    attend(s, layer, q, keys(all), values(all), 0, false, out, lse);
    for (const Slot& slot : {own, parts, all}) s.release(slot);
    return;
  }
  if (size_ == 1) return attend(s, layer, q, k, v, 0, false, out, lse);
  const Slot own = block(s, rows()), room[2] = {block(s, most_), block(s, most_)};
  pack(s, layer, k, v, own);
  Slot now = own;
  for (int step = 0; step < size_; ++step) {
    if (step > 0) arrive(s, layer);
    const bool last = step + 1 == size_;
    // Its room is that of the step before, which compute has left.
    const Slot next = last ? Slot{} : room[step % 2].rows(0, rows_at(step + 1));
    if (!last) pass(s, layer, {now}, {next});
    attend(s, layer, q, keys(now), values(now), step, step > 0, out, lse);
    now = next;
  }
  for (const Slot& slot : {own, room[0], room[1]}) s.release(slot);
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
  const Backward of{dout, lse, delta, q, dq};
  if (schedule_ == ContextSchedule::all_gather) {
    const Slot own = block(s, most_), parts = block(s, size_ * most_);
    const Slot all = block(s, rows_of(whole_)), gradient = block(s, rows_of(whole_));
    pack(s, layer, k, v, own.rows(0, rows()));
    gather(s, layer, own, parts, all);
    zero(s, layer, gradient);
    arrive(s, layer);
    attend_backward(s, layer, of, keys(all), values(all), 0, keys(gradient), values(gradient));
    scatter_sum(s, layer, gradient, parts, own);
    arrive(s, layer);
    unpack(s, layer, own.rows(0, rows()), dk, dv);
    for (const Slot& slot : {own, parts, all, gradient, delta}) s.release(slot);
    return;
  }
  const Slot own = block(s, rows()), home = block(s, rows());
  std::vector<Slot> held{own, home, delta};
  const auto room = [&] { return held.emplace_back(block(s, most_)); };
  const Slot kv[2] = {size_ > 1 ? room() : Slot{}, size_ > 1 ? room() : Slot{}};
  const Slot travelling[2] = {size_ > 1 ? room() : Slot{}, size_ > 1 ? room() : Slot{}};
  const Slot mine = size_ > 1 ? room() : Slot{};
  pack(s, layer, k, v, own);
  // Gradients of the block of a step: of the ranks before and, when `added`, of this one.
  const auto gradient = [&](int step) { return step == 0 ? home : travelling[step % 2].rows(0, rows_at(step)); };
  const auto add_mine = [&](int step) {
    if (step == 0) return;
    const Slot to = gradient(step);
    copy(s, layer, {mine.rows(0, rows_at(step)), 0}, {to, 0}, 2 * kv_width(), true);
  };
  Slot now = own;
  for (int step = 0; step < size_; ++step) {
    const bool last = step + 1 == size_;
    if (step > 0) {
      arrive(s, layer);  // the keys of this step, and the gradients that belong to the step before
      add_mine(step - 1);
    }
    const Slot next = last ? Slot{} : kv[step % 2].rows(0, rows_at(step + 1));
    std::vector<Slot> give, take;
    if (!last) {
      give.push_back(now);
      take.push_back(next);
    }
    if (step > 0) {
      give.push_back(gradient(step - 1));
      take.push_back(gradient(step));
    }
    if (!give.empty()) pass(s, layer, std::move(give), std::move(take));
    const Slot to = step == 0 ? home : mine.rows(0, rows_at(step));
    zero(s, layer, to);
    attend_backward(s, layer, of, keys(now), values(now), step, keys(to), values(to));
    now = next;
  }
  if (size_ > 1) {
    arrive(s, layer);
    add_mine(size_ - 1);
    pass(s, layer, {gradient(size_ - 1)}, {home});
    arrive(s, layer);
  }
  unpack(s, layer, home, dk, dv);
  for (const Slot& slot : held) s.release(slot);
}

}  // namespace tokenring
