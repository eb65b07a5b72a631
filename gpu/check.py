"""`./run.sh check`: is everything right on this GPU? Every op, attention, the decoder, its step and its sampler against
PyTorch in float64 and against the CPU backend; the same bits a thousand times; compute-sanitizer. Results go to
OUT/check-DEVICE.json in the schema of bench/result.ts: a line a check, its error beside the most it may be.

--device cpu checks the CPU backend in the same way, --device emulated the kernels in the emulator of the C++ tests
(which TOKENRING_CUDA_MODULE and its like must name: docs/gpu-node.md)."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import check_attention
import check_context
import check_ops
import check_policy
from library import Device, Fault, Library, find_library
from results import Run

SIZES = {
    "tiny": {
        "products": [(5, 24, 40), (17, 8, 16)], "rows": 9, "hidden": 40, "vocabulary": 50, "heads": 3, "kv_heads": 1,
        "head_dim": 16, "attention": 70, "repeats": 3, "documents": [21, 1, 40], "prompt": 70, "sampled": 6, "deadline": 300,
    },
    "small": {
        "products": [(65, 96, 200), (128, 256, 64), (1, 72, 40)], "rows": 130, "hidden": 200, "vocabulary": 1000, "heads": 4,
        "kv_heads": 2, "head_dim": 64, "attention": 300, "repeats": 20, "documents": [21, 1, 40, 100], "prompt": 150,
        "sampled": 12, "deadline": 120,
    },
    "full": {
        "products": [(4096, 3584, 4608), (333, 1000, 1504), (1, 3584, 512)], "rows": 2048, "hidden": 3584,
        "vocabulary": 152064, "heads": 28, "kv_heads": 4, "head_dim": 128, "attention": 2048, "repeats": 1000,
        "documents": [21, 1, 40, 190], "prompt": 200, "sampled": 50, "deadline": 120,
    },
}  # fmt: skip
DEFAULT_SIZE = {"cpu": "small", "cuda": "full", "emulated": "tiny"}


def any_order(library):
    """Attention whose dQ is added in any order."""

    def work(run, dev, size):
        other = Device(library, "cuda, any order")
        try:
            for head_dim in (64, 128):
                case = check_attention.Case(other, [size["attention"], 33], 4, 2, head_dim, seed=41)
                case.forward()
                dqkv = case.backward().get()
                expected = check_attention.reference(case, dev.place)[2]
                error = check_attention.relative(dqkv, expected)
                run.limit(f"attention_backward d{head_dim} in any order, relative L2", error, check_ops.BF16)
        finally:
            other.close()
            if dev.kind == "cuda":
                import torch

                torch.cuda.set_stream(torch.cuda.ExternalStream(dev.number("stream_handle", check_attention.ctypes.c_uint64)))

    return work


def sanitizer(tool):
    """The ops once more, small, under compute-sanitizer."""

    def work(run, dev, size):
        program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(program).exists():
            run.note(f"compute-sanitizer was not found: {tool} was left out")
            return
        here = [sys.executable, __file__, "--device", "cuda", "--size", "tiny", "--only", "ops,attention"]
        out = run.path.parent / f"sanitizer-{tool}"
        shutil.rmtree(out, ignore_errors=True)
        command = [program, "--tool", tool, "--error-exitcode", "77", "--kernel-regex", "kns=tokenring"]
        told = subprocess.run([*command, *here, "--out", str(out)], capture_output=True, text=True, timeout=max(60, min(run.left, 300)))
        (run.path.parent / f"sanitizer-{tool}.log").write_text(told.stdout + told.stderr)
        if "Device not supported" in told.stdout + told.stderr:
            run.note(f"compute-sanitizer does not work on this machine: {tool} was left out")
            return
        run.limit(f"compute-sanitizer {tool}: exit code (77: errors, see its log)", told.returncode, 0)

    return work


def main():
    parse = argparse.ArgumentParser(prog="run.sh check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--device", choices=["cuda", "cpu", "emulated"], default="cuda")
    parse.add_argument("--size", choices=list(SIZES), help="default: full on a GPU, small on the CPU, tiny in the emulator")
    parse.add_argument("--only", help="some of ops,attention,policy,sanitizer (default: all)")
    parse.add_argument("--budget", type=float, help="seconds; what does not fit is done by the next run with the same --out")
    parse.add_argument("--out", default="results", help="folder of the results")
    options = parse.parse_args()
    try:
        library = Library(find_library())
        dev = Device(library, "cpu" if options.device == "cpu" else "cuda")
    except Fault as fault:
        sys.exit(f"check: {fault}")
    if options.device == "cuda" and dev.kind == "emulated":
        sys.exit("check: torch sees no GPU (torch.cuda.is_available() is false); install a build of PyTorch for CUDA")
    size = SIZES[options.size or DEFAULT_SIZE[dev.kind]]
    only = (options.only or "ops,attention,policy,sanitizer").split(",")
    run = Run(Path(options.out) / f"check-{dev.kind}.json", dev, options.budget)
    print(f"check: {dev.name}, {library.path}")
    attention = check_attention.CHECKS + check_context.CHECKS
    groups = {"ops": check_ops.CHECKS, "attention": attention, "policy": check_policy.CHECKS}
    for group, checks in groups.items():
        for check in checks if group in only else ():
            run.case(f"{group}: {check.__name__}", lambda run, check=check: check(run, dev, size), 30)
        if group == "attention" and group in only and dev.kind != "cpu":
            run.case("attention: any order", lambda run: any_order(library)(run, dev, size), 10)
    if "sanitizer" in only and dev.kind == "cuda":
        for tool in ("memcheck", "synccheck"):
            run.case(f"sanitizer: {tool}", lambda run, tool=tool: sanitizer(tool)(run, dev, size), 90)
    dev.close()
    sys.exit(run.end())


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    main()
