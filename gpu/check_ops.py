"""Each op of the table but attention against PyTorch in float64."""

import ctypes

import torch

from reference import EPS, gradients, integers, normal, policy_loss, relative, rmsnorm, rope, rope_table, statistics, swiglu

# Relative L2. A bf16 result: rounding to nearest gives 1.7e-3 at most, the rest is for what was rounded before it.
# float32 on a GPU: approximations of exp and log, sums of some thousand terms.
BF16, FLOAT32_GPU, FLOAT32_CPU = 3e-3, 1e-4, 1e-5


def limit_of(dev, dtype):
    if dtype == torch.bfloat16:
        return BF16
    return FLOAT32_CPU if dev.kind == "cpu" else FLOAT32_GPU


def compare(run, dev, what, got, expected):
    run.limit(f"{what}, relative L2", relative(got.get(), expected), limit_of(dev, got.dtype))


def linear(run, dev, size):
    for m, n, k in size["products"]:
        x, w, b = normal((m, k), 1, dtype=dev.act), normal((n, k), 2, k**-0.5, torch.bfloat16), normal((n,), 3, 1, torch.float32)
        dy, before = normal((m, n), 4, 1, dev.act), normal((m, k), 5, 1, dev.act)
        weight = dev.weight(w)
        shape = f"{m} x {n} x {k}"
        dx_, dw, db = gradients(x.requires_grad_() @ w.requires_grad_().T + b.requires_grad_(), dy, (x, w, b))
        x, w, b = x.detach(), w.detach(), b.detach()
        given, upstream = dev.put(x.to(dev.act)), dev.put(dy.to(dev.act))
        for bias, dtype in ((None, dev.act), *((b, dtype) for dtype in dict.fromkeys((dev.act, torch.float32)))):
            y = dev.empty((m, n), dtype)
            dev.run("linear_forward", given, *weight, None if bias is None else dev.put(bias.float()), y)
            name = f"linear_forward{'' if bias is None else ' with bias'}, {str(dtype)[6:]}, {shape}"
            compare(run, dev, name, y, x @ w.T + (0 if bias is None else bias))
        dx = dev.put(before.to(dev.act))
        dev.run("linear_dgrad", upstream, *weight, dx, True)
        compare(run, dev, f"linear_dgrad added, {shape}", dx, before + dx_)
        grad, bias_grad = dev.put(torch.ones(n, k)), dev.zeros((n,), torch.float32)
        dev.run("linear_wgrad", upstream, given, grad, bias_grad)
        compare(run, dev, f"linear_wgrad: dw, {shape}", grad, 1 + dw)
        compare(run, dev, f"linear_wgrad: db, {shape}", bias_grad, db)


def embedding(run, dev, size):
    m, h, v = size["rows"], size["hidden"], size["vocabulary"]
    tokens, table, dy = integers((m,), 1, v), normal((v, h), 2, 1, torch.float32), normal((m, h), 3, 1, dev.act)
    y, dtable = dev.empty((m, h), dev.act), dev.put(torch.ones(v, h))
    ids = dev.put(tokens)
    dev.run("embedding_forward", ids, dev.put(table.float()), y)
    dev.run("embedding_backward", ids, dev.put(dy.to(dev.act)), dtable)
    compare(run, dev, "embedding_forward", y, table[tokens.long()])
    compare(run, dev, "embedding_backward", dtable, torch.ones(v, h).double().index_add(0, tokens.long(), dy))


def norms(run, dev, size):
    m, h = size["rows"], size["hidden"]
    x, r, w = normal((m, h), 1, 2, dev.act), normal((m, h), 2, 1, dev.act), normal((h,), 3, 1, torch.float32)
    total, y, rstd = (dev.empty(shape, t) for shape, t in (((m, h), dev.act), ((m, h), dev.act), ((m,), torch.float32)))
    dev.run("rmsnorm_forward", dev.put(x.to(dev.act)), dev.put(r.to(dev.act)), dev.put(w.float()), EPS, total, y, rstd)
    compare(run, dev, "rmsnorm_forward: sum", total, x + r)
    s = total.get().double()  # rounded, as the norm reads it
    compare(run, dev, "rmsnorm_forward: y", y, rmsnorm(s, w))
    compare(run, dev, "rmsnorm_forward: rstd", rstd, torch.rsqrt(s.pow(2).mean(-1) + EPS))
    dy, before = normal((m, h), 4, 1, dev.act), normal((m, h), 5, 1, dev.act)
    ds_, dw_ = gradients(rmsnorm(s.requires_grad_(), w.requires_grad_()), dy, (s, w))
    ds, dw = dev.put(before.to(dev.act)), dev.put(torch.ones(h))
    dev.run("rmsnorm_backward", dev.put(dy.to(dev.act)), total, dev.put(w.float()), rstd, ds, True, dw)
    compare(run, dev, "rmsnorm_backward: ds added", ds, before + ds_)
    compare(run, dev, "rmsnorm_backward: dw", dw, 1 + dw_)

    heads, kv_heads, d = size["heads"], size["kv_heads"], size["head_dim"]
    normed, width = heads + kv_heads, (heads + 2 * kv_heads) * d
    qkv = normal((m, width), 6, 2, dev.act)
    wq, wk = normal((d,), 7, 1, torch.float32), normal((d,), 8, 1, torch.float32)
    at, raw = dev.put(qkv.to(dev.act)), dev.empty((m, normed * d), dev.act)
    rstd = dev.empty((m, normed), torch.float32)
    dev.run("qk_norm_forward", at, dev.put(wq.float()), dev.put(wk.float()), EPS, heads, kv_heads, raw, rstd)
    head_weights = torch.stack([wq] * heads + [wk] * kv_heads)
    part = qkv[:, : normed * d].reshape(m, normed, d).requires_grad_()
    out = part * torch.rsqrt(part.pow(2).mean(-1, keepdim=True) + EPS) * head_weights.requires_grad_()
    compare(run, dev, "qk_norm_forward", at, torch.cat([out.detach().reshape(m, -1), qkv[:, normed * d :]], 1))
    dqkv = normal((m, width), 9, 1, dev.act)
    dpart, dweights = gradients(out, dqkv[:, : normed * d].reshape(m, normed, d), (part, head_weights))
    upstream, dwq, dwk = dev.put(dqkv.to(dev.act)), dev.put(torch.ones(d)), dev.put(torch.ones(d))
    dev.run("qk_norm_backward", upstream, raw, dev.put(wq.float()), dev.put(wk.float()), rstd, heads, kv_heads, dwq, dwk)
    compare(run, dev, "qk_norm_backward", upstream, torch.cat([dpart.reshape(m, -1), dqkv[:, normed * d :]], 1))
    compare(run, dev, "qk_norm_backward: dwq", dwq, 1 + dweights[:heads].sum(0))
    compare(run, dev, "qk_norm_backward: dwk", dwk, 1 + dweights[heads:].sum(0))


def rotary(run, dev, size):
    m, heads, kv_heads, d = size["rows"], size["heads"], size["kv_heads"], size["head_dim"]
    cos, sin = rope_table(4 * m, d)
    positions = integers((m,), 1, 4 * m)
    qkv = normal((m, (heads + 2 * kv_heads) * d), 2, 1, dev.act)
    turned = (heads + kv_heads) * d
    for backward in (False, True):
        at = dev.put(qkv.to(dev.act))
        dev.run("rope", at, dev.put(positions), dev.put(cos.float()), dev.put(sin.float()), heads, kv_heads, d, backward)
        rows = positions.long()
        expected = rope(qkv[:, :turned], cos.float()[rows].double(), sin.float()[rows].double(), heads + kv_heads, backward)
        compare(run, dev, f"rope{' backward' if backward else ''}", at, torch.cat([expected, qkv[:, turned:]], 1))


def gated_mlp(run, dev, size):
    m, f = size["rows"], size["hidden"] + 8
    gate_up, dy = normal((m, 2 * f), 1, 2, dev.act), normal((m, f), 2, 1, dev.act)
    given, y, d = dev.put(gate_up.to(dev.act)), dev.empty((m, f), dev.act), dev.empty((m, 2 * f), dev.act)
    dev.run("swiglu_forward", given, y)
    dev.run("swiglu_backward", dev.put(dy.to(dev.act)), given, d)
    compare(run, dev, "swiglu_forward", y, swiglu(gate_up))
    compare(run, dev, "swiglu_backward", d, gradients(swiglu(gate_up.requires_grad_()), dy, (gate_up,))[0])


def rows_by_index(run, dev, size):
    m, h = size["rows"], size["hidden"]
    r = m // 2
    index = torch.randperm(m, generator=torch.Generator().manual_seed(1))[:r].int()
    x, add = normal((m, h), 2, 1, dev.act), normal((r, h), 3, 1, dev.act)
    y, to = dev.empty((r, h), dev.act), dev.put(x.to(dev.act))
    dev.run("gather_rows", to, dev.put(index), y)
    compare(run, dev, "gather_rows", y, x[index.long()])
    dev.run("scatter_rows_add", dev.put(add.to(dev.act)), dev.put(index), to)
    compare(run, dev, "scatter_rows_add", to, x.index_add(0, index.long(), add))
    wide, narrow = dev.empty((m, h), torch.float32), dev.empty((m, h), dev.act)
    dev.run("copy_rows", dev.put(x.to(dev.act)), wide, h, False)
    compare(run, dev, "copy_rows", wide, x)
    dev.run("copy_rows", dev.put(x.float()), wide, h, True)
    compare(run, dev, "copy_rows, added", wide, 2 * x)
    dev.run("copy_rows", wide, narrow, h, False)
    compare(run, dev, "copy_rows, rounded", narrow, 2 * x)


def loss_head(run, dev, size):
    r, v, scale = size["rows"], size["vocabulary"], 1 / 0.7
    logits, targets = normal((r, v), 1, 3, torch.float32), integers((r,), 2, v)
    lanes = [dev.empty((r,), torch.float32) for _ in range(3)]
    given, ids = dev.put(logits.float()), dev.put(targets)
    dev.run("logits_statistics", given, ids, scale, *lanes)
    expected = statistics(logits, targets, scale)
    for name, lane, value in zip(("lse", "logprob", "entropy"), lanes, expected):
        compare(run, dev, f"logits_statistics: {name}", lane, value)

    old, advantage = expected[1] + normal((r,), 3, 0.3), normal((r,), 4)
    reference, weight = expected[1] + normal((r,), 5, 0.3), normal((r,), 6).abs()
    begin = torch.tensor([0, r // 3, r], dtype=torch.int32)
    f32 = lambda t: dev.put(t.float())
    sequence = dev.empty((r,), torch.float32)
    logprob, entropy = f32(expected[1]), f32(expected[2])
    dev.run("sequence_log_ratio", logprob, f32(old), dev.put(begin), sequence)
    means = torch.cat([(expected[1] - old.float())[a:b].mean().expand(b - a) for a, b in zip(begin[:-1], begin[1:])])
    compare(run, dev, "sequence_log_ratio", sequence, means)
    how = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0, "kl_coef": 0.02, "entropy_coef": 0.01}
    slopes = None
    for number, objective in enumerate(("nll", "ppo_clip", "gspo", "cispo")):
        given_how = {**how, "dual_clip": how["dual_clip"] if objective == "ppo_clip" else 0.0}
        lp, h = (t.float().double().requires_grad_() for t in expected[1:])
        as_given = [t.float().double() for t in (weight, old, advantage, means, reference)]
        loss = policy_loss(objective, given_how, lp, *as_given, h)
        dlp, dh = gradients(loss.sum(), None, (lp, h))
        g, of_entropy, value = (dev.empty((r,), torch.float32) for _ in range(3))
        flags = dev.empty((r,), torch.int32)
        dev.run("policy_scalars", number, *given_how.values(), logprob, f32(weight), f32(old), f32(advantage), f32(means),
                f32(reference), entropy, g, of_entropy, value, flags)
        for name, lane, want in (("loss", value, loss), ("g", g, dlp), ("entropy_g", of_entropy, dh)):
            compare(run, dev, f"policy_scalars, {objective}: {name}", lane, want.detach())
        slopes = slopes or (g, of_entropy)

    z = logits.requires_grad_()
    lse, logprob_, entropy_ = statistics(z, targets, scale)
    g, of_entropy = (lane.get().double() for lane in slopes)
    dz = gradients((g * logprob_ + of_entropy * entropy_).sum(), None, (z,))[0]
    at = dev.put(logits.detach().float())
    out = None if dev.act == torch.float32 else dev.empty((r, v), dev.act)
    for to in dict.fromkeys((out, None)):
        dev.run("logits_gradient", at, ids, lanes[0], slopes[0], lanes[2], slopes[1], scale, to)
        compare(run, dev, f"logits_gradient{' in place' if to is None else ''}", to or at, dz)


def sampling(run, dev, size):
    r, v = size["rows"], size["vocabulary"]
    logits = normal((r, v), 1, 2, torch.float32)
    inverse = torch.full((r,), 1 / 0.8)
    inverse[::5] = 0
    uniforms = torch.rand((r,), generator=torch.Generator().manual_seed(2))
    tokens, logprob = dev.empty((r,), torch.int32), dev.empty((r,), torch.float32)
    dev.run("sample", dev.put(logits.float()), dev.put(inverse), dev.put(uniforms), tokens, logprob)
    drawn = tokens.get().long()
    z = logits * torch.where(inverse > 0, inverse, torch.ones(())).float().double()[:, None]
    cumulated = torch.softmax(z, -1).cumsum(-1)
    upper = cumulated.gather(1, drawn[:, None])[:, 0]
    lower = upper - torch.softmax(z, -1).gather(1, drawn[:, None])[:, 0]
    # How far the uniform lies outside of its token's share: float32 sums of the shares before it.
    outside = torch.maximum(lower - uniforms, uniforms - upper)[inverse > 0].max().item()
    run.limit("sample: uniform outside of its token's share", max(outside, 0.0), 1e-5)
    greedy = inverse == 0
    run.limit("sample: wrong argmax", (drawn[greedy] != logits[greedy].argmax(-1)).sum().item(), 0)
    expected = torch.log_softmax(z, -1).gather(1, drawn[:, None])[:, 0]
    compare(run, dev, "sample: logprob", logprob, expected)


def magnitudes(first):
    """Of the codes of a moment in eight bits (native/core/moment_codes.h)."""
    values = [0.0]
    for decade in range(7):
        steps = first << decade
        values += [10.0 ** (decade - 6) * (0.1 + 0.9 * (k + 0.5) / steps) for k in range(steps)]
    return torch.tensor(values[:-1] + [1.0] if first == 1 else values + [1.0], dtype=torch.float64)


def coded_moments(run, dev, n, w, g, how):
    blocks = (n + 255) // 256
    codes = [integers((n,), seed, 256).to(torch.uint8) for seed in (6, 7)]
    codes[0][codes[0] == 128] = 0  # -0 is no code
    scales = [normal((blocks,), seed, 1e-2, torch.float32).abs() for seed in (8, 9)]
    at = [dev.put(t) for t in (w.float(), g.float(), *codes, *(s.float() for s in scales))]

    def decoded():
        m, v = at[2].get().long(), at[3].get().long()
        of_m, of_v = (s.get().double().repeat_interleave(256)[:n] for s in at[4:])
        sign = torch.where(m >= 128, -1.0, 1.0).double()
        return sign * magnitudes(1)[m % 128] * of_m, magnitudes(2)[v] * of_v

    m, root = decoded()
    dev.run("adamw8", *how.values(), 7, *at)
    beta1, beta2 = (torch.tensor(how[b], dtype=torch.float32).item() for b in ("beta1", "beta2"))
    m = beta1 * m + (1 - beta1) * g * how["scale"]
    root = (beta2 * root**2 + (1 - beta2) * (g * how["scale"]) ** 2).sqrt()
    update = (m / (1 - beta1**7)) / (root / (1 - beta2**7) ** 0.5 + how["epsilon"])
    compare(run, dev, "adamw8: w", at[0], w * (1 - how["lr"] * how["decay"]) - how["lr"] * update)
    for what, got, expected, values in zip(("m", "root of v"), decoded(), (m, root), (magnitudes(1), magnitudes(2))):
        whole = torch.nn.functional.pad(expected, (0, blocks * 256 - n)).reshape(blocks, 256)
        most = whole.abs().amax(-1).repeat_interleave(256)[:n]
        share = expected.abs() / most
        nearest = (share[:, None] - values).abs().amin(-1)
        further = ((got - expected).abs() / most - nearest).max().item()
        run.limit(f"adamw8: {what}, further than the nearest code", max(further, 0.0), 1e-5)


def parameters(run, dev, size):
    n = size["rows"] * size["hidden"] + 3
    w, g = normal((n,), 1, 1, torch.float32), normal((n,), 2, 1e-2, torch.float32)
    m, v = normal((n,), 3, 1e-2, torch.float32), normal((n,), 4, 1e-2, torch.float32).abs()
    how = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "decay": 0.1, "scale": 0.5}
    at = [dev.put(t.float()) for t in (w, g, m, v)]
    dev.run("adamw", *how.values(), 7, *at)
    beta1, beta2 = (torch.tensor(how[b], dtype=torch.float32).item() for b in ("beta1", "beta2"))
    m = beta1 * m + (1 - beta1) * g * how["scale"]
    v = beta2 * v + (1 - beta2) * (g * how["scale"]) ** 2
    update = (m / (1 - beta1**7)) / ((v / (1 - beta2**7)).sqrt() + how["epsilon"])
    compare(run, dev, "adamw: w", at[0], w * (1 - how["lr"] * how["decay"]) - how["lr"] * update)
    compare(run, dev, "adamw: m", at[2], m)
    compare(run, dev, "adamw: v", at[3], v)
    coded_moments(run, dev, n, w, g, how)
    x, total = dev.put(g.float()), dev.empty((2,), torch.float32)  # room for a float64
    room = dev.workspace(dev.number("sum_of_squares_workspace", ctypes.c_int64, n))
    dev.run("sum_of_squares", x, total, room)
    got = total.get().view(torch.float64)
    run.limit("sum_of_squares, relative L2", relative(got, g.pow(2).sum()[None]), limit_of(dev, torch.float32))
    dev.run("zero", x)
    run.limit("zero: numbers left", x.get().count_nonzero().item(), 0)


CHECKS = (linear, embedding, norms, rotary, gated_mlp, rows_by_index, loss_head, sampling, parameters)
