"""The decoder, its training step and its sampler on the device, through Node: against PyTorch in float64 and against the
CPU backend."""

import json
import struct
import tempfile
from pathlib import Path

import torch

from node import ask
from reference import decoder, integers, relative

# Heads for the Hopper kernels, of a group of three.
QWEN2 = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 256, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "attention_bias": True,
}
# Normed heads of 128, the head tied.
QWEN3 = {**QWEN2, "num_attention_heads": 2, "head_dim": 128, "tie_word_embeddings": True, "attention_bias": False, "qk_norm": True}

# Logprobs are off by what bf16 rounds at each of some dozen places; weights of this size amplify it little. Norms are
# sums of products of such numbers. float32 on the CPU: sums of some hundred terms.
LOGPROB = {"cpu": 2e-5, "cuda": 0.03, "emulated": 0.03}
GRADIENT = {"cpu": 1e-5, "cuda": 0.02, "emulated": 0.02}


def read_safetensors(directory):
    """Every float32 tensor of model.safetensors."""
    data = (Path(directory) / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, about in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            begin, end = (8 + size + at for at in about["data_offsets"])
            tensors[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32).reshape(about["shape"])
    return tensors


def expected_step(config, weights, documents):
    """Logprobs of all tokens (0 for each first), the loss and the gradient of every weight, in float64."""
    leaves = {name: value.double().requires_grad_() for name, value in weights.items()}
    logprobs = []
    for document in documents:
        logits = decoder(config, leaves, torch.tensor(document))
        taken = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(document[1:])[:, None])[:, 0]
        logprobs += [torch.zeros(1, dtype=torch.float64), taken]
    logprobs = torch.cat(logprobs)
    loss = -logprobs.sum() / (logprobs.numel() - len(documents))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return logprobs.detach(), loss.item(), dict(zip(leaves, gradients))


def adamw(weights, gradients, norm):
    """The first step of AdamW from zero moments, as policy.mjs asks for it; norms and biases do not decay."""
    after = {}
    for name, w in weights.items():
        g = gradients[name] * min(1.0, 1.0 / norm)
        decay = 0.1 if w.dim() == 2 else 0.0
        after[name] = w.double() * (1 - 1e-3 * decay) - 1e-3 * g / (g.abs() + 1e-8)
    return after


def training(run, dev, size):
    for family, config in (("qwen2", QWEN2), ("qwen3", QWEN3)):
        documents = [integers((n,), n, config["vocab_size"]).tolist() for n in size["documents"]]
        for checkpointing in (False, True):
            name = f"{family}{', activation checkpointing' if checkpointing else ''}"
            with tempfile.TemporaryDirectory() as folder:
                options = {"seed": 3, "std": 0.1, "activationCheckpointing": checkpointing}
                request = {"task": "steps", "device": device_of(dev), "model": config, "options": options}
                lines = ask({**request, "documents": documents, "steps": 1, "save": folder}, size["deadline"])
                before, after = (read_safetensors(Path(folder) / which) for which in ("before", "after"))
            logprobs, loss, gradients = expected_step(config, before, documents)
            got = torch.tensor(lines[0]["logprobs"]).double()
            run.limit(f"{name}: logprobs, most", (got - logprobs).abs().max().item(), LOGPROB[dev.kind])
            run.limit(f"{name}: loss", abs(lines[0]["loss"] - loss), LOGPROB[dev.kind])
            norm = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
            run.limit(f"{name}: norm of the gradient, relative", abs(lines[0]["norm"] / norm - 1), GRADIENT[dev.kind])
            expected = adamw(before, gradients, norm)
            moved, wanted = (torch.cat([(to[n].double() - before[n].double()).flatten() for n in before]) for to in (after, expected))
            # Where a gradient is near 0 its sign, which the first update is, is rounding's.
            limit = 1e-2 if dev.kind == "cpu" else 0.25
            run.limit(f"{name}: update of the weights, relative L2", relative(moved, wanted), limit)


def beside_cpu(run, dev, size):
    """Three steps on this device and on the CPU backend, from the same weights."""
    if dev.kind == "cpu":
        return
    documents = [integers((n,), n, QWEN2["vocab_size"]).tolist() for n in size["documents"]]
    request = {"task": "steps", "model": QWEN2, "options": {"seed": 4, "std": 0.1}, "documents": documents, "steps": 3}
    ours, theirs = (ask({**request, "device": device, "save": None}, size["deadline"]) for device in ("cuda", "cpu"))
    for step, (mine, cpu) in enumerate(zip(ours, theirs)):
        difference = torch.tensor(mine["logprobs"]) - torch.tensor(cpu["logprobs"])
        run.limit(f"step {step} beside the CPU backend: logprobs, most", difference.abs().max().item(), 2 * LOGPROB[dev.kind])
        run.limit(f"step {step} beside the CPU backend: norm", abs(mine["norm"] / cpu["norm"] - 1), 2 * GRADIENT[dev.kind])


def offloading(run, dev, size):
    """Checkpoints and the optimiser's state in the host's memory change no bit of three steps."""
    if dev.kind == "cpu":
        return
    for family, config in (("qwen2", QWEN2), ("qwen3", QWEN3)):
        documents = [integers((n,), n, config["vocab_size"]).tolist() for n in size["documents"]]
        for bits in (32, 8):
            options = {"seed": 5, "std": 0.1, "activationCheckpointing": True, "optimiserBits": bits}
            request = {"task": "steps", "device": device_of(dev), "model": config, "documents": documents, "steps": 3, "save": None}
            here, away = (ask({**request, "options": {**options, "offload": what}}, size["deadline"]) for what in ("none", "all"))
            apart = sum(mine != theirs for mine, theirs in zip(here, away, strict=True))
            run.limit(f"{family}, moments of {bits} bits: steps that offloading changes", apart, 0)


def turns(run, dev, size):
    """What the sampler says of its tokens is what the trainer says of them, and PyTorch."""
    for family, config in (("qwen2", QWEN2), ("qwen3", QWEN3)):
        prompt = integers((size["prompt"],), 5, config["vocab_size"]).tolist()
        options = {"seed": 3, "std": 0.1}
        request = {"device": device_of(dev), "model": config, "options": options}
        turn = ask({**request, "task": "sample", "prompt": prompt, "tokens": size["sampled"]}, size["deadline"])[0]
        with tempfile.TemporaryDirectory() as folder:
            ask({**request, "device": "cpu", "task": "steps", "documents": [prompt], "steps": 0, "save": folder}, size["deadline"])
            weights = read_safetensors(Path(folder) / "before")
        whole = torch.tensor(prompt + turn["tokens"])
        logits = decoder(config, weights, whole)[len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, whole[len(prompt) :, None])[:, 0]
        sampled, scored = (torch.tensor(turn[lane]).double() for lane in ("logprobs", "scored"))
        run.limit(f"{family}: logprobs of sampled tokens, most", (sampled - expected).abs().max().item(), LOGPROB[dev.kind])
        apart = 0 if dev.kind == "cpu" else LOGPROB[dev.kind]
        run.limit(f"{family}: sampler and trainer apart, most", (sampled - scored).abs().max().item(), apart)


def device_of(dev):
    return "cpu" if dev.kind == "cpu" else "cuda"


CHECKS = (training, beside_cpu, offloading, turns)
