"""Attention against PyTorch in float64, and what it promises exactly."""

import ctypes

import torch

from check_ops import compare, limit_of
from library import tiles_of
from reference import attend, attend_packed, normal, relative, split_qkv


class Case:
    """Packed documents on the device, with what the ops gave for them."""

    def __init__(self, dev, lengths, heads, kv_heads, head_dim, seed=1, qkv=None):
        self.dev, self.lengths, self.heads, self.kv_heads, self.head_dim = dev, lengths, heads, kv_heads, head_dim
        self.scale, self.m = head_dim**-0.5, sum(lengths)
        self.tiles = tiles_of(lengths)
        self.host = normal((self.m, (heads + 2 * kv_heads) * head_dim), seed, 1, dev.act) if qkv is None else qkv
        self.upstream = normal((self.m, heads * head_dim), seed + 1, 1, dev.act)
        self.qkv, self.dout = dev.put(self.host.to(dev.act)), dev.put(self.upstream.to(dev.act))
        self.out, self.lse = dev.empty((self.m, heads * head_dim), dev.act), dev.empty((self.m, heads), torch.float32)
        shape = (self.m, heads, kv_heads, head_dim)
        self.room = dev.workspace(dev.number("attention_workspace", ctypes.c_int64, self.tiles, len(lengths), *shape))

    @property
    def name(self):
        return f"d{self.head_dim}, {self.heads}/{self.kv_heads} heads, {'+'.join(map(str, self.lengths))} tokens"

    def prepare_forward(self):
        shape = (len(self.lengths), self.heads, self.kv_heads, self.head_dim, self.scale)
        return self.dev.prepare("attention_forward", self.qkv, self.tiles, *shape, self.out, self.lse, self.room)

    def prepare_backward(self, dqkv):
        shape = (len(self.lengths), self.heads, self.kv_heads, self.head_dim, self.scale)
        inputs = (self.dout, self.qkv, self.out, self.lse)
        return self.dev.prepare("attention_backward", *inputs, self.tiles, *shape, dqkv, self.room)

    def forward(self):
        self.prepare_forward()()
        return self.out.get(), self.lse.get()

    def backward(self):
        dqkv = self.dev.empty(self.host.shape, self.dev.act)
        self.prepare_backward(dqkv)()
        return dqkv


def reference(case, place):
    qkv = case.host.to(place).requires_grad_()
    out, lse = attend_packed(qkv, case.lengths, case.heads, case.kv_heads, case.head_dim, case.scale)
    (dqkv,) = torch.autograd.grad(out, qkv, case.upstream.to(place))
    return out.detach(), lse.detach(), dqkv


def torch_error(case, expected):
    """Relative L2 of PyTorch's own bf16 attention, forward and backward, on a GPU."""
    qkv = case.host.to("cuda", torch.bfloat16).requires_grad_()
    q, k, v = (t.transpose(0, 1)[None] for t in split_qkv(qkv, case.heads, case.kv_heads, case.head_dim))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    out = out[0].transpose(0, 1).reshape(case.m, -1)
    (dqkv,) = torch.autograd.grad(out, qkv, case.upstream.to("cuda", torch.bfloat16))
    return relative(out.detach(), expected[0]), relative(dqkv, expected[2])


def check_case(run, dev, case):
    out, lse = case.forward()
    dqkv = case.backward()
    expected = reference(case, dev.place)
    compare(run, dev, f"attention_forward: out, {case.name}", case.out, expected[0])
    run.limit(f"attention_forward: lse, {case.name}, most", (lse - expected[1].cpu()).abs().max().item(), 1e-4)
    widths = [case.heads * case.head_dim, case.kv_heads * case.head_dim, case.kv_heads * case.head_dim]
    # Of few tokens the terms of a gradient cancel more, and what bf16 rounds of them shows more.
    limit = limit_of(dev, dev.act) * (1 if max(case.lengths) >= 256 else 4 / 3)
    for name, got, want in zip(("dq", "dk", "dv"), dqkv.get().split(widths, 1), expected[2].split(widths, 1)):
        run.limit(f"attention_backward: {name}, {case.name}, relative L2", relative(got, want), limit)
    if dev.kind == "cuda" and len(case.lengths) == 1:
        # FlashAttention's own rule: at most twice the error of PyTorch in the same precision.
        ours = relative(out, expected[0]), relative(dqkv.get(), expected[2])
        for name, mine, theirs in zip(("forward", "backward"), ours, torch_error(case, expected)):
            run.limit(f"attention_{name}, {case.name}: error, of twice PyTorch's", mine, 2 * theirs)


def groups(run, dev, size):
    """Grouped queries of Qwen2.5's shapes, both head dimensions; packed documents; head dimensions of the plain kernels."""
    m = size["attention"]
    for heads, kv_heads in ((2, 2), (4, 2), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1)):
        for head_dim in (64, 128):
            check_case(run, dev, Case(dev, [m], heads, kv_heads, head_dim, seed=heads))
    for lengths in ([1, m // 2, 3, m // 3 + 1], [m + 1, m - 1]):
        check_case(run, dev, Case(dev, lengths, 4, 2, 128, seed=9))
        check_case(run, dev, Case(dev, lengths, 4, 2, 64, seed=10))
    for head_dim in (16, 96):
        check_case(run, dev, Case(dev, [m // 2, 7], 4, 2, head_dim, seed=11))


def same(a, b):
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def exact(run, dev, size):
    """Documents of a pack have the bits that they have alone; a changed key changes no earlier query."""
    m = size["attention"]
    for head_dim in (64, 128):
        pack = Case(dev, [m // 2, m // 3], 4, 2, head_dim, seed=21)
        out, lse = pack.forward()
        first = Case(dev, [m // 2], 4, 2, head_dim, qkv=pack.host[: m // 2])
        alone, alone_lse = first.forward()
        equal = same(out[: m // 2], alone) and same(lse[: m // 2], alone_lse)
        run.limit(f"attention d{head_dim}: a document in a pack has other bits than alone", 0 if equal else 1, 0)
        changed = pack.host.clone()
        at = m // 3
        changed[at] = -changed[at]
        other, other_lse = Case(dev, [m // 2, m // 3], 4, 2, head_dim, qkv=changed).forward()
        equal = same(out[:at], other[:at]) and same(lse[:at], other_lse[:at])
        run.limit(f"attention d{head_dim}: a later key changes earlier queries", 0 if equal else 1, 0)
        differs = not torch.equal(out[at : m // 2], other[at : m // 2])
        run.limit(f"attention d{head_dim}: a changed key goes unnoticed", 0 if differs else 1, 0)


def repeats(run, dev, size):
    """The deterministic backward gives the same bits each time, beside other work too."""
    for head_dim in (64, 128):
        case = Case(dev, [size["attention"], 77], 6, 2, head_dim, seed=31)
        case.forward()
        first, different = case.backward().get(), 0
        again = dev.empty(case.host.shape, dev.act)
        backward = case.prepare_backward(again)
        keep = first.to(dev.place) if dev.kind == "cuda" else first
        for _ in range(size["repeats"]):
            backward()
            got = again.tensor if dev.kind == "cuda" else again.get()
            different += 0 if same(got, keep) else 1
        name = f"attention_backward d{head_dim}: runs of {size['repeats']} with other bits than the first"
        run.limit(name, different, 0)


def parts(run, dev, size):
    """Attention of some queries on some keys, merged, in float32: what a ring computes."""
    m, heads, kv_heads, d = size["attention"], 4, 2, 64
    cut = m // 3
    q, k, v = normal((m, heads * d), 1), normal((m, kv_heads * d), 2), normal((m, kv_heads * d), 3)
    dout = normal((m, heads * d), 4)
    q, k, v, dout = (t.float().double() for t in (q, k, v, dout))
    own = torch.tensor([[0, cut, 0, 0, cut, 0], [cut, m - cut, cut, cut, m - cut, cut]], dtype=torch.int32)
    earlier = torch.tensor([[cut, m - cut, cut, 0, cut, 0]], dtype=torch.int32)
    at = [dev.put(t.float()) for t in (q, k, v)]
    out, lse = dev.empty((m, heads * d), torch.float32), dev.empty((m, heads), torch.float32)
    shape = (heads, kv_heads, d, d**-0.5)
    dev.run("attention_block_forward", *shape, *at, own, 2, False, out, lse)
    dev.run("attention_block_forward", *shape, *at, earlier, 1, True, out, lse)
    delta = dev.empty((m, heads), torch.float32)
    upstream = dev.put(dout.float())
    dev.run("attention_delta", upstream, out, heads, delta)
    grads = [dev.zeros(t.shape, torch.float32) for t in (q, k, v)]
    for tiles, count in ((own, 2), (earlier, 1)):
        dev.run("attention_block_backward", *shape, upstream, *at, lse, delta, tiles, count, *grads)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    heads_of = lambda t, n: t.reshape(m, n, d)
    want, want_lse = attend(heads_of(q, heads), heads_of(k, kv_heads), heads_of(v, kv_heads), d**-0.5)
    compare(run, dev, "attention_block_forward: out", out, want.detach().reshape(m, -1))
    compare(run, dev, "attention_block_forward: lse", lse, want_lse.detach())
    gradients = torch.autograd.grad(want, leaves, dout.reshape(m, heads, d))
    for name, got, expected in zip(("dq", "dk", "dv"), grads, gradients):
        compare(run, dev, f"attention_block_backward: {name}", got, expected)


def pages(run, dev, size):
    """Keys in pages: a prompt, then single tokens; a page that was copied."""
    heads, kv_heads = 4, 2
    for d in (64, 128):
        n = size["attention"]
        qkv = normal((n, (heads + 2 * kv_heads) * d), d, 1, dev.act)
        count = (n + 63) // 64
        order = torch.randperm(count + 3, generator=torch.Generator().manual_seed(5))[: count + 1].int()
        spare, order = int(order[-1]), order[:-1].contiguous()
        page = dev.number("page_bytes", ctypes.c_int64, kv_heads, d)
        pool = dev.workspace(page * (count + 3))
        outs, row = [], 0
        for rows in (n - 2, 1, 1):
            span = torch.tensor([[0, rows, row]], dtype=torch.int32)
            begin = torch.tensor([0, count], dtype=torch.int32)
            given = dev.put(qkv[row : row + rows].to(dev.act))
            out = dev.empty((rows, heads * d), dev.act)
            where = (span, begin, order, 1, heads, kv_heads, d)
            dev.run("kv_append", given, *where, pool)
            if rows == n - 2:
                dev.run("copy_page", pool, page, int(order[0]), spare)
                order[0] = spare
            dev.run("attention_paged", given, *where, d**-0.5, pool, out)
            outs.append(out.get())
            row += rows
        expected, _ = attend_packed(qkv, [n], heads, kv_heads, d, d**-0.5)
        run.limit(f"attention_paged, d{d}, relative L2", relative(torch.cat(outs), expected), limit_of(dev, dev.act))


CHECKS = (groups, exact, repeats, parts, pages)
