"""Attention of documents that lie on several GPUs, as context parallelism computes it (native/parallel/ring_attention.h),
against PyTorch in float64: keys and values travel in the dtype of the activations, what is attended to in each round is
merged in float32 with its log-sum-exp, and the gradients of keys and values are added to what travels with them. The
GPUs' parts are computed one after the other on one."""

import torch

from check_ops import limit_of
from reference import attend_packed, normal, relative, split_qkv

RANKS = 3


class Shard:
    """The rows of a rank: of each document the i-th and the i-th last of twice as many ranges as there are ranks."""

    def __init__(self, rank, lengths):
        self.segments, row, begin = [], 0, 0
        for document, length in enumerate(lengths):
            edges = [length * i // (2 * RANKS) for i in range(2 * RANKS + 1)]
            for part in (rank, 2 * RANKS - 1 - rank):
                position, rows = edges[part], edges[part + 1] - edges[part]
                if rows:
                    self.segments.append((document, row, rows, position, begin + position))
                row += rows
            begin += length
        self.count = row
        self.rows = torch.cat([torch.arange(whole, whole + rows) for _, _, rows, _, whole in self.segments])


def tiles_between(queries, keys, every):
    """Which rows of the one may look at which of the other, [n, 6]. `every`: all have a line, if only with no keys."""
    tiles = []
    for document, row, rows, position, _ in queries.segments:
        seen = [
            [row, rows, position, key_row, key_rows, key_position]
            for of, key_row, key_rows, key_position, _ in keys.segments
            if of == document and key_position < position + rows
        ]
        tiles += seen or [[row, rows, position, 0, 0, 0]] * every
    return torch.tensor(tiles, dtype=torch.int32).reshape(-1, 6)


class Ring:
    """Packed documents over the ranks. `before`: what the rooms for the gradients of keys and values hold at first."""

    def __init__(self, dev, lengths, heads, kv_heads, head_dim, seed=51):
        self.dev, self.heads, self.width, self.kv = dev, heads, heads * head_dim, kv_heads * head_dim
        self.shape = (heads, kv_heads, head_dim, head_dim**-0.5)
        self.shards = [Shard(rank, lengths) for rank in range(RANKS)]
        m = sum(lengths)
        self.qkv = normal((m, self.width + 2 * self.kv), seed, 1, dev.act)
        self.upstream = normal((m, self.width), seed + 1, 1, dev.act)
        self.before = normal((m, 2 * self.kv), seed + 2, 1, torch.float32)
        leaf = self.qkv.to(dev.place).requires_grad_()
        out, lse = attend_packed(leaf, lengths, heads, kv_heads, head_dim, head_dim**-0.5)
        (dqkv,) = torch.autograd.grad(out, leaf, self.upstream.to(dev.place))
        dq, dk, dv = (t.reshape(m, -1).cpu() for t in split_qkv(dqkv, heads, kv_heads, head_dim))
        self.want = {"out": out.detach().cpu(), "lse": lse.detach().cpu(), "dq": dq, "dk": dk, "dv": dv}

    def whole(self, parts):
        """Rows of the documents from those of the ranks."""
        rows = torch.cat([shard.rows for shard in self.shards])
        return torch.cat(parts)[torch.argsort(rows)]

    def run(self):
        """What the ranks found, by its name, in the rows of the documents."""
        dev, act = self.dev, self.dev.act
        own = [dev.put(self.qkv[shard.rows].to(act)) for shard in self.shards]
        # Keys beside values, as they travel.
        blocks = [dev.put(self.qkv[shard.rows, self.width :].to(act)) for shard in self.shards]
        sums = [dev.put(self.before[shard.rows].float()) for shard in self.shards]
        found = {"out": [], "lse": [], "dq": []}
        for rank, shard in enumerate(self.shards):
            rounds = []
            for t in range(RANKS):
                of = (rank - t) % RANKS
                rounds.append((tiles_between(shard, self.shards[of], t == 0), blocks[of], sums[of]))
            out, lse = dev.empty((shard.count, self.width), torch.float32), dev.empty((shard.count, self.heads), torch.float32)
            for t, (seen, block, _) in enumerate(rounds):
                keys = (block.columns(0), block.columns(self.kv))
                dev.run("attention_block_forward", *self.shape, own[rank], *keys, seen, len(seen), t > 0, out, lse)
            found["out"].append(out.get())
            found["lse"].append(lse.get())
            # The decoder keeps the output as it goes on with it.
            kept, upstream = dev.put(out.get().to(act)), dev.put(self.upstream[shard.rows].to(act))
            delta = dev.empty((shard.count, self.heads), torch.float32)
            dev.run("attention_delta", upstream, kept, self.heads, delta)
            dq = dev.zeros((shard.count, self.width + 2 * self.kv), torch.float32)
            for seen, block, room in rounds:
                given = (upstream, own[rank], block.columns(0), block.columns(self.kv), lse, delta)
                sum_of = (room.columns(0), room.columns(self.kv))
                dev.run("attention_block_backward", *self.shape, *given, seen, len(seen), dq, *sum_of)
            found["dq"].append(dq.get()[:, : self.width])
        ended = {name: self.whole(parts) for name, parts in found.items()}
        # Of float32 near 1 the difference is exact to 2^-24 of it.
        added = self.whole([room.get() for room in sums]).double() - self.before
        ended["dk"], ended["dv"] = added.split(self.kv, 1)
        return ended


def ring(run, dev, size):
    """Both head dimensions of the Hopper kernels, one of the plain; documents of many tokens, and of fewer than ranges."""
    m = size["attention"]
    for heads, kv_heads, head_dim in ((4, 2, 64), (4, 2, 128), (8, 1, 128), (4, 2, 16)):
        for lengths in ([m, m // 2 + 1, 4], [m - 1]):
            case = Ring(dev, lengths, heads, kv_heads, head_dim)
            name = f"d{head_dim}, {heads}/{kv_heads} heads, {'+'.join(map(str, lengths))} tokens on {RANKS} ranks"
            got = case.run()
            # Float32 that comes of bf16 keys is as exact as those.
            limit = limit_of(dev, dev.act) * (1 if m >= 256 else 4 / 3)
            for what in ("out", "dq", "dk", "dv"):
                run.limit(f"ring: {what}, {name}, relative L2", relative(got[what], case.want[what]), limit)
            run.limit(f"ring: lse, {name}, most", (got["lse"] - case.want["lse"]).abs().max().item(), 1e-4)
            again = case.run()
            other = sum(0 if torch.equal(got[what], again[what]) else 1 for what in got)
            run.limit(f"ring: {name}: results that have other bits the second time", other, 0)


def unseen(run, dev, size):
    """Keys that no query sees move nothing: what was merged, and what the gradients' rooms hold, keep their bits."""
    for heads, kv_heads, head_dim in ((4, 2, 64), (4, 2, 128), (4, 2, 16)):
        rows, width, kv = 40, heads * head_dim, kv_heads * head_dim
        shape = (heads, kv_heads, head_dim, head_dim**-0.5)
        q, block, dout = (dev.put(normal((rows, n), 61 + n, 1, dev.act).to(dev.act)) for n in (width, 2 * kv, width))
        out, lse, dq, room = (
            dev.put(normal((rows, n), 71 + n, 1, torch.float32).float()) for n in (width, heads, width, 2 * kv)
        )
        delta = dev.zeros((rows, heads), torch.float32)
        held = [t.get() for t in (out, lse, dq, room)]
        later = torch.tensor([[0, rows, 0, 0, rows, rows]], dtype=torch.int32)
        keys, sums = (block.columns(0), block.columns(kv)), (room.columns(0), room.columns(kv))
        dev.run("attention_block_forward", *shape, q, *keys, later, 1, True, out, lse)
        dev.run("attention_block_backward", *shape, dout, q, *keys, lse, delta, later, 1, dq, *sums)
        changed = sum(0 if torch.equal(t.get(), was) else 1 for t, was in zip((out, lse, dq, room), held))
        run.limit(f"ring, d{head_dim}: keys that nobody sees change something", changed, 0)


CHECKS = (ring, unseen)
