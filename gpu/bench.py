"""`./run.sh bench`: how fast is it, beside what one would use instead? Attention, the loss head, the memory-bound kernels,
the training step and the longest sequence, on random N(0, 1) data; medians with their spread; peers in turns within the
same run. Results go to OUT/bench-DEVICE.json in the schema of bench/result.ts.

Ceilings are measured in the same run: a cuBLAS product of 8192^3, and a copy on the device. Peers that are not installed
are left out. --device cpu and emulated only show that the program works: their times say nothing."""

import argparse
import ctypes
import sys
import time
from pathlib import Path

import torch

from check_attention import Case
from library import Device, Fault, Library, find_library
from measure import Clock, ceiling, copy_bandwidth, median
from node import PolicyFault, ask
from reference import split_qkv
from results import Run

TERA, GIGA, GIB = 1e12, 1e9, 2**30

# Qwen2.5 1.5B and 7B, as their config.json has them; positions are the run's.
QWEN_1_5B = {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "head_dim": 128, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "attention_bias": True,
}  # fmt: skip
QWEN_7B = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "head_dim": 128, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "attention_bias": True,
}  # fmt: skip
TINY = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 64, "rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "attention_bias": True,
}  # fmt: skip

SIZES = {
    "full": {
        "product": 8192, "copy": 4 << 30, "attention": [8192, 16384, 32768, 65536, 131072], "heads": (28, 4),
        "loss": (16384, 4096, 152064), "rows": 32768, "hidden": 4096, "vocabulary": 152064, "parameters": 1 << 29,
        "models": {"Qwen2.5-1.5B": QWEN_1_5B, "Qwen2.5-7B": QWEN_7B}, "step": 32768,
        "longest": {"Qwen2.5-1.5B": [131072, 262144, 524288], "Qwen2.5-7B": [65536, 131072, 262144]},
        "paged": (64, 32768),
    },
    "tiny": {
        "product": 64, "copy": 1 << 16, "attention": [96, 160], "heads": (4, 2), "loss": (40, 24, 300), "rows": 16,
        "hidden": 48, "vocabulary": 90, "parameters": 4096, "models": {"a tiny model": TINY}, "step": 48,
        "longest": {"a tiny model": [64, 96]}, "paged": (3, 100),
    },
}  # fmt: skip


class Bench:
    def __init__(self, run, dev, library, size):
        self.run, self.dev, self.library, self.size, self.clock = run, dev, library, size, Clock(dev)
        self.flops = self.bandwidth = None

    def ceilings(self):
        """Anew in every run, so that all of it is beside the same clocks."""
        n = self.size["product"]
        samples = ceiling(self.clock, self.dev, n)
        self.flops = median(samples)
        self.run.result(f"cuBLAS, {n}^3, bf16", "TFLOP/s", [each / TERA for each in samples])
        samples = copy_bandwidth(self.clock, self.dev, self.size["copy"])
        self.bandwidth = median(samples)
        self.run.result("copy on the device, read and written", "GB/s", [each / GIGA for each in samples])

    def randn(self, *shape, dtype=None):
        return torch.randn(*shape, device=self.dev.place, dtype=dtype or self.dev.act)

    def put(self, tensor):
        return self.dev.wrap(tensor) if self.dev.kind != "emulated" else self.dev.put(tensor)

    # --- attention -------------------------------------------------------------------------------------------------

    def attention_peers(self, case):
        """Forward and backward of each peer that is installed, on tensors laid out as it likes them."""
        if self.dev.kind != "cuda":
            return {}
        qkv = case.qkv.tensor
        q, k, v = (t.contiguous()[None] for t in split_qkv(qkv, case.heads, case.kv_heads, case.head_dim))
        dout = case.dout.tensor.reshape(1, case.m, case.heads, case.head_dim)
        peers = {}

        def add(name, attend, upstream):
            leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
            try:
                held = attend(*leaves)
                torch.autograd.grad(held, leaves, upstream, retain_graph=True)
            except Exception as error:
                self.run.note(f"{name} was left out at {case.m} tokens: {' '.join(str(error).split())[:200]}")
                return
            forward = lambda: attend(*(leaf.detach() for leaf in leaves))
            backward = lambda: torch.autograd.grad(held, leaves, upstream, retain_graph=True)
            peers[name] = (forward, backward)

        sdpa, backends = torch.nn.functional.scaled_dot_product_attention, torch.nn.attention.SDPBackend
        def of_torch(backend, repeat):
            def attend(q, k, v):
                q, k, v = (t.transpose(1, 2) for t in (q, k, v))
                if repeat:
                    k, v = (t.repeat_interleave(case.heads // case.kv_heads, 1) for t in (k, v))
                with torch.nn.attention.sdpa_kernel(backend):
                    return sdpa(q, k, v, is_causal=True, scale=case.scale, enable_gqa=not repeat)

            return attend

        for name, backend in (("cuDNN", backends.CUDNN_ATTENTION), ("flash", backends.FLASH_ATTENTION)):
            title = f"torch {torch.__version__} SDPA, {name}"
            add(title, of_torch(backend, False), dout.transpose(1, 2))
            if title not in peers:  # a version without grouped queries
                add(f"{title}, keys repeated", of_torch(backend, True), dout.transpose(1, 2))
        for name, module in (("FlashAttention-3", "flash_attn_interface"), ("FlashAttention-2", "flash_attn")):
            try:
                function = __import__(module).flash_attn_func
            except (ImportError, AttributeError):
                continue

            def attend(q, k, v, function=function):
                out = function(q, k, v, softmax_scale=case.scale, causal=True)
                return out[0] if isinstance(out, tuple) else out

            add(name, attend, dout)
        return peers

    def attention(self, n):
        heads, kv_heads = self.size["heads"]
        case = Case(self.dev, [n], heads, kv_heads, 128, qkv=torch.randn(n, (heads + 2 * kv_heads) * 128).to(self.dev.act))
        flops = 2 * n * n * 128 * heads  # causal: half of 4 n^2 d heads
        case.forward()
        dqkv = self.dev.empty(case.host.shape, self.dev.act)
        peers = self.attention_peers(case)
        ours = {"forward": case.prepare_forward(), "backward, deterministic": case.prepare_backward(dqkv)}
        other = None
        if self.dev.kind != "cpu":
            other = Device(self.library, "cuda, any order")
            self.follow(other)
            fast = Case(other, [n], heads, kv_heads, 128, qkv=case.host)
            fast.forward()
            ours["backward"] = fast.prepare_backward(other.empty(case.host.shape, other.act))
        for name, work in ours.items():
            which = 0 if name == "forward" else 1
            share = flops if which == 0 else 2.5 * flops
            clock = self.clock if name != "backward" else Clock(other)
            if name == "backward":
                self.follow(other)
            times = clock.beside({"ours": work, **{peer: pair[which] for peer, pair in peers.items()}})
            rate = lambda side: [share / t / TERA for t in times[side]]
            title = f"attention {name}, causal, d128, {heads}/{kv_heads} heads, {n} tokens"
            self.run.result(f"{title}, of cuBLAS", "TFLOP/s", rate("ours"), f"cuBLAS {self.size['product']}^3", [self.flops / TERA])
            for peer in peers:
                self.run.result(f"{title}, vs {peer}", "TFLOP/s", rate("ours"), peer, rate(peer))
        if other:
            other.close()
            self.follow(self.dev)

    def follow(self, dev):
        """Torch's work goes to the stream of this engine."""
        if dev.kind == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_stream(torch.cuda.ExternalStream(dev.number("stream_handle", ctypes.c_uint64)))

    # --- loss head -------------------------------------------------------------------------------------------------

    def loss_head(self):
        """Forward and backward of SFT's loss, as the trainer runs it, against the three products alone and chunks in torch."""
        t, h, v = self.size["loss"]
        dev = self.dev
        hidden, weight = self.randn(t, h), torch.randn(v, h, device=dev.place) * 0.02
        targets = torch.randint(v, (t,), device=dev.place, dtype=torch.int32)
        given, prepared = self.put(hidden), dev.weight(weight)
        dhidden, dhead = dev.empty((t, h), dev.act), dev.zeros((v, h), torch.float32)
        handle, arena = ctypes.c_void_p(), ctypes.c_int64()
        rows, wanted = torch.arange(t, dtype=torch.int32), targets.cpu()
        weights = torch.full((t,), 1 / t)
        head = (given.argument(), prepared[2].pointer, v, rows.data_ptr(), wanted.data_ptr(), weights.data_ptr(), t, 0)
        out = (dhidden.argument(), dhead.argument(), ctypes.addressof(handle), ctypes.addressof(arena))
        dev.call("loss_head_open", dev.engine, *head, *out)
        sides = {"ours": lambda: dev.call("loss_head_run", handle)}
        chunk = 2048
        if dev.kind == "cuda":
            w = weight.to(dev.act)
            dlogits, dw, dx = self.randn(chunk, v), torch.empty(v, h, device="cuda", dtype=dev.act), torch.empty_like(hidden)

            def products():
                for begin in range(0, t, chunk):
                    x = hidden[begin : begin + chunk]
                    torch.mm(x, w.T, out=dlogits)
                    torch.mm(dlogits, w, out=dx[begin : begin + chunk])
                    torch.mm(dlogits.T, x, out=dw)

            def chunked():
                x, leaf = hidden.detach().requires_grad_(), w.detach().requires_grad_()

                def part(x, targets):
                    return torch.nn.functional.cross_entropy((x @ leaf.T).float(), targets.long(), reduction="sum")

                total = 0
                for begin in range(0, t, chunk):
                    span = slice(begin, begin + chunk)
                    total = total + torch.utils.checkpoint.checkpoint(part, x[span], targets[span], use_reentrant=False)
                (total / t).backward()

            sides |= {"three cuBLAS products": products, f"torch {torch.__version__} in chunks": chunked}
            try:
                from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

                fused, x, leaf = LigerFusedLinearCrossEntropyLoss(), hidden.detach().requires_grad_(), w.detach().requires_grad_()
                sides["Liger"] = lambda: fused(leaf, x, targets.long()).backward()
            except ImportError:
                self.run.note("Liger (liger-kernel) is not installed and was left out")
        times = self.clock.beside(sides, samples=5)
        title = f"loss head, forward and backward, {t} x {h} x {v}"
        ms = lambda side: [1000 * each for each in times[side]]
        for side in [side for side in sides if side != "ours"] or [None]:
            self.run.result(f"{title}{'' if side is None else f', vs {side}'}", "ms", ms("ours"), side, None if side is None else ms(side))
        self.run.result(f"{title}: memory beside inputs and gradients", "MiB", [arena.value / 2**20])
        dev.call("loss_head_close", handle)

    # --- memory-bound kernels --------------------------------------------------------------------------------------

    def memory_bound(self):
        dev, put = self.dev, self.put
        m, h, v, n = (self.size[key] for key in ("rows", "hidden", "vocabulary", "parameters"))
        heads, kv_heads, d = *self.size["heads"], 128
        width, f = (heads + 2 * kv_heads) * d, h
        act, wide = dev.act, lambda *shape: put(torch.randn(*shape, device=dev.place))
        rows = [put(self.randn(m, h)) for _ in range(4)]
        w, rstd, dw = wide(h), put(torch.rand(m, device=dev.place)), wide(h)
        qkv, gate_up, dgate = put(self.randn(m, width)), put(self.randn(m, 2 * f)), put(self.randn(m, 2 * f))
        positions = put(torch.arange(m, device=dev.place, dtype=torch.int32))
        cos, sin = wide(m, d // 2), wide(m, d // 2)
        ids = put(torch.randint(v, (m,), device=dev.place, dtype=torch.int32))
        table = wide(v, h)
        logits, r = wide(max(m // 16, 1), v), max(m // 16, 1)
        dlogits = None if act == torch.float32 else put(self.randn(r, v))
        lanes = [wide(r) for _ in range(4)]
        targets = put(torch.randint(v, (r,), device=dev.place, dtype=torch.int32))
        uniforms, tokens = put(torch.rand(r, device=dev.place)), put(torch.zeros(r, device=dev.place, dtype=torch.int32))
        state = [wide(n), wide(n), wide(n), put(torch.rand(n, device=dev.place))]
        room = dev.workspace(dev.number("sum_of_squares_workspace", ctypes.c_int64, n))
        total = wide(2)  # a float64
        a = 2 if act == torch.bfloat16 else 4  # bytes of an activation
        # Name, bytes that have to be read and written, the op.
        cases = [
            ("rmsnorm forward with residual", 4 * a * m * h, ("rmsnorm_forward", rows[0], rows[1], w, 1e-6, rows[2], rows[3], rstd)),
            ("rmsnorm backward", 4 * a * m * h, ("rmsnorm_backward", rows[0], rows[1], w, rstd, rows[2], True, dw)),
            ("rope", 2 * a * m * (heads + kv_heads) * d + 4 * m * d, ("rope", qkv, positions, cos, sin, heads, kv_heads, d, False)),
            ("swiglu forward", 3 * a * m * f, ("swiglu_forward", gate_up, rows[0])),
            ("swiglu backward", 5 * a * m * f, ("swiglu_backward", rows[0], gate_up, dgate)),
            ("embedding forward", (4 + a) * m * h, ("embedding_forward", ids, table, rows[0])),
            ("embedding backward", (8 + a) * m * h, ("embedding_backward", ids, rows[0], table)),
            ("logits statistics", 4 * r * v, ("logits_statistics", logits, targets, 1.0, lanes[0], lanes[1], lanes[2])),
            ("logits gradient", (4 + a) * r * v, ("logits_gradient", logits, targets, lanes[0], lanes[3], None, None, 1.0, dlogits)),
            ("sample", 4 * r * v, ("sample", logits, lanes[3], uniforms, tokens, lanes[1])),
            ("AdamW", 7 * 4 * n, ("adamw", 1e-5, 0.9, 0.95, 1e-8, 0.1, 1.0, 5, *state)),
            ("norm of the gradient", 4 * n, ("sum_of_squares", state[0], total, room)),
        ]  # fmt: skip
        for name, bytes_, op in cases:
            times = self.clock.beside({"ours": dev.prepare(*op)})["ours"]
            self.run.result(f"{name}, of copying", "GB/s", [bytes_ / t / GIGA for t in times], "copy", [self.bandwidth / GIGA])

    def paged(self):
        """Decode: one token of each of many sessions attends to what they hold."""
        dev = self.dev
        (heads, kv_heads), d, (sessions, length) = self.size["heads"], 128, self.size["paged"]
        pages = (length + 63) // 64
        bytes_ = dev.number("page_bytes", ctypes.c_int64, kv_heads, d)
        pool = dev.put(torch.randn(sessions * pages * bytes_ // (2 if dev.act == torch.bfloat16 else 4)).to(dev.act))
        qkv, out = dev.put(torch.randn(sessions, (heads + 2 * kv_heads) * d).to(dev.act)), dev.empty((sessions, heads * d), dev.act)
        spans = torch.tensor([[s, 1, length - 1] for s in range(sessions)], dtype=torch.int32)
        begin = torch.arange(sessions + 1, dtype=torch.int32) * pages
        order = torch.randperm(sessions * pages).int()
        work = dev.prepare("attention_paged", qkv, spans, begin, order, sessions, heads, kv_heads, d, d**-0.5, pool, out)
        times = self.clock.beside({"ours": work})["ours"]
        moved = 2 * sessions * length * kv_heads * d * (2 if dev.act == torch.bfloat16 else 4)
        title = f"decode attention, {sessions} sessions of {length} tokens, of copying"
        self.run.result(title, "GB/s", [moved / t / GIGA for t in times], "copy", [self.bandwidth / GIGA])

    # --- the training step -----------------------------------------------------------------------------------------

    def step(self, name, model, checkpointing):
        """Forward and backward through the policy, beside transformers in the same precision."""
        tokens = self.size["step"]
        device = "cpu" if self.dev.kind == "cpu" else "cuda"
        options = {"activationCheckpointing": checkpointing, "deterministic": False}
        request = {"task": "time", "device": device, "model": {**model, "max_position_embeddings": tokens}, "options": options}
        lines = ask({**request, "tokens": tokens, "rounds": 4, "optimise": False}, max(60, min(self.run.left, 500)))
        ours = [line["seconds"] for line in lines if "seconds" in line][1:]  # the first warms up
        flops = model_flops(model, tokens)
        title = f"forward and backward, {name}, {tokens} tokens"
        peer, theirs = self.transformers_step(model, tokens) if self.dev.kind == "cuda" else (None, None)
        beside = (None, None) if peer is None else (peer, [tokens / t for t in theirs])
        self.run.result(title, "tokens/s", [tokens / t for t in ours], *beside)
        if self.flops and self.dev.kind == "cuda":
            self.run.result(f"{title}: model FLOPs of 989.5 TFLOP/s", "% MFU", [100 * flops / t / 989.5e12 for t in ours])

    def transformers_step(self, model, tokens):
        """Seconds of forward and backward of transformers' own model in bf16 with SDPA and gradient checkpointing."""
        try:
            import transformers
        except ImportError:
            self.run.note("transformers is not installed and was left out")
            return None, None
        torch.cuda.synchronize()
        config = transformers.Qwen2Config(**model, max_position_embeddings=tokens, attn_implementation="sdpa", use_cache=False)
        try:
            with torch.device("cuda"):
                peer = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
            peer.gradient_checkpointing_enable()
            peer.train()
            ids = torch.randint(model["vocab_size"], (1, tokens), device="cuda")
            hidden = lambda: peer.model(ids).last_hidden_state[0]
            head, chunk = peer.lm_head.weight, 2048

            def loss_of(x, targets):
                return torch.nn.functional.cross_entropy((x @ head.T).float(), targets, reduction="sum")

            def step():
                # In chunks, as users with long sequences do: the logits of all tokens would not fit.
                x, total = hidden(), 0
                for begin in range(0, tokens - 1, chunk):
                    end = min(begin + chunk, tokens - 1)
                    part = (x[begin:end], ids[0, begin + 1 : end + 1])
                    total = total + torch.utils.checkpoint.checkpoint(loss_of, *part, use_reentrant=False)
                (total / (tokens - 1)).backward()
                peer.zero_grad(set_to_none=False)

            times = self.clock.beside({"peer": step}, samples=3, least=0)["peer"]
            return f"transformers {transformers.__version__}, SDPA, bf16", times
        except torch.cuda.OutOfMemoryError as error:
            self.run.note(f"transformers ran out of memory at {tokens} tokens: {' '.join(str(error).split())[:160]}")
            return None, None
        finally:
            peer = hidden = head = None
            torch.cuda.empty_cache()

    def longest(self, name, model, lengths, offload):
        """The longest single document whose forward and backward fit, with what `offload` leaves to the host's memory."""
        device, reached = "cpu" if self.dev.kind == "cpu" else "cuda", None
        name += "" if offload == "none" else f", offload {offload}"
        for tokens in lengths:
            options = {"activationCheckpointing": True, "deterministic": False, "offload": offload}
            request = {"task": "time", "device": device, "model": {**model, "max_position_embeddings": tokens}, "options": options}
            try:
                lines = ask({**request, "tokens": tokens, "rounds": 1, "optimise": False}, max(60, min(self.run.left, 550)))
            except PolicyFault as fault:
                if fault.code != "ERR_TOKENRING_OUT_OF_MEMORY":
                    raise
                self.run.note(f"{name} at {tokens} tokens: {fault}")
                break
            reached = tokens
            self.run.result(f"{name}, one document of {tokens} tokens, forward and backward", "s", [lines[-1]["seconds"]])
        if reached is None:
            raise RuntimeError(f"not even {lengths[0]} tokens fitted")
        self.run.result(f"{name}: longest document, forward and backward", "tokens", [reached])


def model_flops(model, tokens):
    """Of forward and backward, recomputation not counted: 6 a parameter of the products and token, and causal attention."""
    h, f, d = model["hidden_size"], model["intermediate_size"], model["head_dim"]
    heads, kv_heads = model["num_attention_heads"], model["num_key_value_heads"]
    layer = h * (heads + 2 * kv_heads) * d + heads * d * h + 3 * h * f
    products = model["num_hidden_layers"] * layer + model["vocab_size"] * h
    attention = model["num_hidden_layers"] * 3.5 * 2 * tokens * tokens * d * heads
    return 6 * products * tokens + attention


def main():
    parse = argparse.ArgumentParser(prog="run.sh bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--device", choices=["cuda", "cpu", "emulated"], default="cuda")
    parse.add_argument("--only", help="some of attention,loss,memory,paged,step,longest (default: all)")
    parse.add_argument("--offload", choices=["none", "checkpoints", "optimiser", "all"], default="none", help="what the longest document leaves to the host's memory")
    parse.add_argument("--budget", type=float, help="seconds; what does not fit is done by the next run with the same --out")
    parse.add_argument("--out", default="results", help="folder of the results")
    options = parse.parse_args()
    try:
        library = Library(find_library())
        dev = Device(library, "cpu" if options.device == "cpu" else "cuda")
    except Fault as fault:
        sys.exit(f"bench: {fault}")
    if options.device == "cuda" and dev.kind == "emulated":
        sys.exit("bench: torch sees no GPU (torch.cuda.is_available() is false); install a build of PyTorch for CUDA")
    run = Run(Path(options.out) / f"bench-{dev.kind}.json", dev, options.budget)
    size = SIZES["full" if dev.kind == "cuda" else "tiny"]
    bench = Bench(run, dev, library, size)
    only = (options.only or "attention,loss,memory,paged,step,longest").split(",")
    print(f"bench: {dev.name}, {library.path}; {time.strftime('%Y-%m-%d %H:%M')}")
    bench.ceilings()
    if dev.kind != "cuda":
        run.note("tiny sizes, which only show that the program works: these times say nothing")
    for n in size["attention"] if "attention" in only else ():
        run.case(f"attention, {n} tokens", lambda _, n=n: bench.attention(n), 20 if n < 65536 else 60)
    if "loss" in only:
        run.case("loss head", lambda _: bench.loss_head(), 40)
    if "memory" in only:
        run.case("memory-bound kernels", lambda _: bench.memory_bound(), 30)
    if "paged" in only:
        run.case("decode attention", lambda _: bench.paged(), 20)
    for name, model in size["models"].items() if "step" in only else ():
        run.case(f"step, {name}", lambda _, n=name, m=model: bench.step(n, m, n != "Qwen2.5-1.5B"), 120)
    for name, lengths in size["longest"].items() if "longest" in only else ():
        title = f"longest, {name}" + ("" if options.offload == "none" else f", offload {options.offload}")
        run.case(title, lambda _, n=name, l=lengths: bench.longest(n, size["models"][n], l, options.offload), 240)
    dev.close()
    sys.exit(run.end())


if __name__ == "__main__":
    main()
