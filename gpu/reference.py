"""What the ops must give, in float64 by PyTorch: formulas of native/core/ops.h, gradients by autograd."""

import math

import torch

EPS = 1e-6


def relative(got, expected):
    """||got - expected|| / ||expected||; NaN if anything is."""
    got, expected = got.double().to(expected.device), expected.double()
    size = expected.norm()
    return ((got - expected).norm() / (size if size > 0 else 1.0)).item()


def normal(shape, seed, scale=1.0, dtype=torch.float64):
    """N(0, scale^2), rounded to dtype and held in float64."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype).double()


def integers(shape, seed, bound):
    return torch.randint(bound, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def gradients(outputs, upstream, inputs):
    return torch.autograd.grad(outputs, inputs, upstream)


def rmsnorm(s, w):
    return s * torch.rsqrt(s.pow(2).mean(-1, keepdim=True) + EPS) * w


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def rope(x, cos, sin, heads, backward=False):
    """x: [m, heads * d]; cos, sin: [m, d / 2]. Half-split convention."""
    m = x.shape[0]
    low, high = x.reshape(m, heads, -1).chunk(2, dim=-1)
    c, s = cos[:, None], sin[:, None] * (-1 if backward else 1)
    return torch.cat([low * c - high * s, high * c + low * s], dim=-1).reshape(m, -1)


def rope_table(positions, head_dim, theta=10000.0):
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return angles.cos(), angles.sin()


def split_qkv(qkv, heads, kv_heads, head_dim):
    m = qkv.shape[0]
    q, k, v = qkv.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    return q.reshape(m, heads, head_dim), k.reshape(m, kv_heads, head_dim), v.reshape(m, kv_heads, head_dim)


def attend(q, k, v, scale, first=0):
    """Causal: query i sees keys up to position first + i. q: [m, H, d]; k, v: [n, K, d]. out [m, H, d], lse [m, H]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    seen = torch.arange(k.shape[0], device=q.device)[None] <= first + torch.arange(q.shape[0], device=q.device)[:, None]
    scores = scores.masked_fill(~seen, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    return torch.einsum("hij,jhd->ihd", torch.exp(scores - lse[..., None]), v), lse.T


def attend_packed(qkv, lengths, heads, kv_heads, head_dim, scale):
    """out [m, heads * head_dim] and lse [m, heads] of documents one after another."""
    outs, lses, row = [], [], 0
    for length in lengths:
        part = split_qkv(qkv[row : row + length], heads, kv_heads, head_dim)
        out, lse = attend(*part, scale)
        outs.append(out.reshape(length, -1))
        lses.append(lse)
        row += length
    return torch.cat(outs), torch.cat(lses)


def statistics(logits, targets, inv_temperature):
    z = logits * inv_temperature
    lse = torch.logsumexp(z, dim=-1)
    p = torch.softmax(z, dim=-1)
    logprob = z.gather(1, targets.long()[:, None])[:, 0] - lse
    return lse, logprob, lse - (p * z).sum(-1)


def policy_loss(objective, how, logprob, weight, old, advantage, sequence, reference, entropy):
    """Loss of each token. `how`: clip_low, clip_high, dual_clip, kl_coef, entropy_coef."""
    if objective == "nll":
        loss = -weight * logprob
    elif objective == "cispo":
        held = torch.exp(logprob - old).clamp(1 - how["clip_low"], 1 + how["clip_high"]).detach()
        loss = -weight * held * advantage * logprob
    else:
        ratio = torch.exp(logprob - old)
        if objective == "gspo":
            ratio = torch.exp(sequence) * torch.exp(logprob - logprob.detach())
        clipped = ratio.clamp(1 - how["clip_low"], 1 + how["clip_high"])
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        if how["dual_clip"] > 0:
            gain = torch.where(advantage < 0, torch.maximum(gain, how["dual_clip"] * advantage), gain)
        loss = -weight * gain
    if how["kl_coef"]:
        d = reference - logprob
        loss = loss + weight * how["kl_coef"] * (torch.exp(d) - d - 1)
    if how["entropy_coef"]:
        loss = loss - weight * how["entropy_coef"] * entropy
    return loss


def decoder(config, weights, tokens):
    """Logits [m, vocabulary] in float64 of one document: Qwen2 and Qwen3 as transformers computes them."""
    heads, kv_heads, d = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    w = {name: value.double() for name, value in weights.items()}
    linear = lambda x, name: x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)
    m = tokens.shape[0]
    cos, sin = (t[:m] for t in rope_table(m, d, config["rope_theta"]))
    x = w["model.embed_tokens.weight"][tokens.long()]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        y = rmsnorm(x, w[f"{at}.input_layernorm.weight"])
        q, k, v = (linear(y, f"{at}.self_attn.{part}_proj") for part in "qkv")
        if config.get("qk_norm"):
            q = rmsnorm(q.reshape(m, -1, d), w[f"{at}.self_attn.q_norm.weight"]).reshape(m, -1)
            k = rmsnorm(k.reshape(m, -1, d), w[f"{at}.self_attn.k_norm.weight"]).reshape(m, -1)
        q, k = rope(q, cos, sin, heads), rope(k, cos, sin, kv_heads)
        out, _ = attend(q.reshape(m, heads, d), k.reshape(m, kv_heads, d), v.reshape(m, kv_heads, d), d**-0.5)
        x = x + linear(out.reshape(m, -1), f"{at}.self_attn.o_proj")
        y = rmsnorm(x, w[f"{at}.post_attention_layernorm.weight"])
        gate_up = torch.cat([linear(y, f"{at}.mlp.gate_proj"), linear(y, f"{at}.mlp.up_proj")], dim=-1)
        x = x + linear(swiglu(gate_up), f"{at}.mlp.down_proj")
    x = rmsnorm(x, w["model.norm.weight"])
    return x @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T
