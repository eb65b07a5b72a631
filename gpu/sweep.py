"""`./run.sh sweep`: every tile shape of tokenring_sweep.so (cuda/sweep/) on every length, forward, backward and dQ, so that
the shapes of the module are chosen by measurement. Each variant must give what the module's own kernel gives before it is
timed. Results go to OUT/sweep.json in the schema of bench/result.ts, and a table of the best to the output."""

import argparse
import ctypes
import os
import sys
from pathlib import Path

import torch

from check_attention import Case, reference
from check_ops import BF16
from library import Device, Fault, Library, find_library
from measure import Clock, ceiling, median
from reference import relative
from results import Run

TERA = 1e12
FLOPS = {"forward": 2.0, "backward": 5.0, "dq": 3.0}  # causal, of n^2 d heads: two, five and three products of 2


class Sweep:
    def __init__(self, run, dev, path):
        self.run, self.dev, self.clock = run, dev, Clock(dev)
        count = ctypes.c_int32()
        dev.call("sweep_open", str(path).encode(), ctypes.addressof(count))
        self.variants = []
        for number in range(count.value):
            text, numbers = ctypes.create_string_buffer(128), (ctypes.c_int32 * 4)()
            dev.call("sweep_describe", number, ctypes.addressof(text), 128, ctypes.addressof(numbers))
            kernel, tiling = text.value.decode().split(": ")
            self.variants.append((number, kernel, tiling, numbers[0], bool(numbers[3])))
        self.multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count if dev.kind == "cuda" else 4

    def works(self, case):
        """By kernel: the function of a variant's number, and what it writes. The case holds its forward's results."""
        dev, m, tiles, n = self.dev, case.m, case.tiles, len(case.lengths)
        heads, kv_heads, d = case.heads, case.kv_heads, case.head_dim
        shape = (tiles, n, heads, kv_heads, d, case.scale)
        out, lse = dev.empty((m, heads * d), dev.act), dev.empty((m, heads), torch.float32)
        dq, dk, dv = dev.empty((m, heads * d), dev.act), *(dev.zeros((m, kv_heads * d), torch.float32) for _ in range(2))
        bytes_ = ctypes.c_int64()
        dev.call("sweep_backward_workspace", tiles.data_ptr(), n, m, heads, d, ctypes.addressof(bytes_))
        room, known = dev.workspace(bytes_.value), (case.dout, case.qkv, case.out, case.lse)
        return {
            "forward": (lambda v: dev.prepare("sweep_forward", v, case.qkv, *shape, self.multiprocessors, out, lse), (out,)),
            "backward": (lambda v: dev.prepare("sweep_backward", v, *known, *shape, dq, dk, dv, room), (dq, dk, dv)),
            "dq": (lambda v: dev.prepare("sweep_dq", v, *known, *shape, dq), (dq,)),
        }

    def check(self, head_dim, m):
        """Every variant against float64."""
        case = Case(self.dev, [m // 2, m - m // 2], 4, 2, head_dim, seed=51)
        case.forward()
        out, _, dqkv = (t.cpu() for t in reference(case, self.dev.place))
        dq, dk, dv = dqkv.split([4 * head_dim, 2 * head_dim, 2 * head_dim], 1)
        expected = {"forward": (out,), "backward": (dq, dk, dv), "dq": (dq,)}
        for number, kernel, tiling, d, _ in self.variants:
            if d != head_dim:
                continue
            prepare, outputs = self.works(case)[kernel]
            prepare(number)()
            for name, got, want in zip(("out", "dk", "dv") if kernel == "forward" else ("dq", "dk", "dv"), outputs, expected[kernel]):
                error, limit = relative(got.get(), want), BF16 if m >= 256 else 4e-3
                self.run.limit(f"sweep {kernel} d{d}, {tiling}: {name}, relative L2", error, limit)

    def measure(self, head_dim, n, heads, kv_heads, flops_of_product):
        case = Case(self.dev, [n], heads, kv_heads, head_dim, qkv=torch.randn(n, (heads + 2 * kv_heads) * head_dim).to(self.dev.act))
        case.forward()
        for kernel in FLOPS:
            prepare, _ = self.works(case)[kernel]
            mine = [(number, tiling, chosen) for number, of, tiling, d, chosen in self.variants if of == kernel and d == head_dim]
            times = self.clock.beside({tiling: prepare(number) for number, tiling, _ in mine}, samples=5)
            flops = FLOPS[kernel] * n * n * head_dim * heads
            for _, tiling, chosen in mine:
                rates = [flops / t / TERA for t in times[tiling]]
                title = f"sweep {kernel} d{head_dim}, {n} tokens, {tiling}{' (chosen)' if chosen else ''}, of cuBLAS"
                self.run.result(title, "TFLOP/s", rates, "cuBLAS 8192^3", [flops_of_product / TERA])
            best = min(mine, key=lambda variant: median(times[variant[1]]))
            here = next((v for v in mine if v[2]), None)
            gain = f", {median(times[here[1]]) / median(times[best[1]]):.3f} times the chosen {here[1]}" if here else ""
            self.run.note(f"best {kernel} d{head_dim} at {n} tokens: {best[1]}{gain}")


def main():
    parse = argparse.ArgumentParser(prog="run.sh sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--device", choices=["cuda", "emulated"], default="cuda")
    parse.add_argument("--budget", type=float, help="seconds; what does not fit is done by the next run with the same --out")
    parse.add_argument("--out", default="results", help="folder of the results")
    options = parse.parse_args()
    named = os.environ.get("TOKENRING_SWEEP_MODULE")
    path = Path(named) if named else Path(__file__).resolve().parent.parent / "build" / "cuda" / "tokenring_sweep.so"
    try:
        dev = Device(Library(find_library()), "cuda")
        if options.device == "cuda" and dev.kind == "emulated":
            sys.exit("sweep: torch sees no GPU (torch.cuda.is_available() is false); install a build of PyTorch for CUDA")
        run = Run(Path(options.out) / f"sweep{'' if dev.kind == 'cuda' else '-emulated'}.json", dev, options.budget)
        sweep = Sweep(run, dev, path)
    except Fault as fault:
        sys.exit(f"sweep: {fault}")
    real = dev.kind == "cuda"
    product = median(ceiling(sweep.clock, dev, 8192 if real else 64))
    for head_dim in (128, 64):
        run.case(f"right, d{head_dim}", lambda _, d=head_dim: sweep.check(d, 1000 if real else 150), 20)
        for n in [8192, 16384, 32768, 65536, 131072] if real else [150]:
            heads = (28, 4) if real else (4, 2)
            run.case(f"d{head_dim}, {n} tokens", lambda _, d=head_dim, n=n: sweep.measure(d, n, *heads, product), 30)
    dev.close()
    sys.exit(run.end())


if __name__ == "__main__":
    main()
