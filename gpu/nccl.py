"""`./run.sh nccl`: the communicator over the NCCL of this machine: every collective with sums that are exact, messages
around a ring, the same bits again, ranks that disagree, a rank that is missing. Results go to OUT/nccl-DEVICE.json in the
schema of bench/result.ts: a line a check, the largest error of any rank beside the most it may be.

Ranks are processes on one GPU: 2, 4 and 8 where the library knows NCCL_MULTI_RANK_GPU_ENABLE (2.30 and newer), else one.
--device emulated runs over the double of NCCL in the C++ tests, which TOKENRING_NCCL must name (docs/gpu-node.md)."""

import argparse
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from results import Run

ROOT = Path(__file__).resolve().parent.parent
NODE = os.environ.get("TOKENRING_NODE", "node")
SWITCH = "NCCL_MULTI_RANK_GPU_ENABLE"
DEADLINE = 150


def node(script, timeout=60):
    told = subprocess.run([NODE, "--input-type=module", "-e", script], capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    if told.returncode != 0:
        said = [line for line in told.stderr.split("\n") if "Error" in line]
        raise RuntimeError(said[0] if said else f"node ended with {told.returncode}")
    return told.stdout.strip()


def gpu_name():
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split("\n")[0].strip() or "unknown"
    except OSError:
        return "unknown"


def library():
    """The file of the NCCL that is loaded."""
    return node(
        'import { readFileSync } from "node:fs";'
        'import { Communicator } from "./dist/ops/index.js";'
        "Communicator.ncclUniqueId();"
        'const named = (process.env.TOKENRING_NCCL ?? "libnccl").split("/").at(-1);'
        'const line = readFileSync("/proc/self/maps", "utf8").split("\\n").find((each) => each.includes(named));'
        'process.stdout.write(line.slice(line.indexOf("/")));'
    )


def knows(path, word):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(word.encode()) >= 0


def ranks(size, count, shared):
    """Runs the ranks and returns, by check, the largest error and what was said instead."""
    environment = {**os.environ, **({SWITCH: "1"} if shared else {})}
    processes, found = [], {}

    def start(rank, ids):
        process = subprocess.Popen([NODE, "gpu/rank.mjs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        processes.append(process)
        process.stdin.write(json.dumps({"rank": rank, "size": size, "count": count, "ids": ids}))
        process.stdin.close()
        process.stdin = None
        return process

    try:
        ids = json.loads(start(0, None).stdout.readline() or "{}").get("ids")
        for rank in range(1, size if ids else 0):
            start(rank, ids)
        for rank, process in enumerate(processes):
            out, _ = process.communicate(timeout=DEADLINE)
            lines = [json.loads(line) for line in out.split("\n") if line]
            if not any(line.get("done") for line in lines):
                raise RuntimeError(f"rank {rank} ended with {process.returncode}; see what it wrote above")
            for line in lines:
                if "name" in line:
                    error, said = found.get(line["name"], (0, None))
                    found[line["name"]] = (max(error, line["error"]), line.get("said") or said)
    finally:
        for process in processes:
            process.kill()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "emulated"], default="cuda")
    parser.add_argument("--out", default="results", help="folder of the results")
    parser.add_argument("--budget", type=float, help="seconds: nothing is begun that may not fit")
    parser.add_argument("--ranks", help="numbers of ranks, as 2,4; default: all that this NCCL can")
    options = parser.parse_args()
    emulated = options.device == "emulated"
    device = SimpleNamespace(kind=options.device, name="an emulated H100" if emulated else gpu_name())
    run = Run(Path(options.out) / f"nccl-{options.device}.json", device, options.budget)
    try:
        path = library()
    except RuntimeError as error:
        run.fail(str(error))
        return run.end()
    shared = knows(path, SWITCH)
    run.note(f"NCCL: {path}; several ranks on one GPU: {'yes' if shared else 'no, it is older than 2.30'}")
    sizes = [int(size) for size in options.ranks.split(",")] if options.ranks else [1, *([2, 4, 8] if shared else [])]
    for size in sizes:

        def work(run, size=size):
            for check, (error, said) in ranks(size, 5000 if emulated else 1 << 22, shared and size > 1).items():
                run.limit(f"{size} ranks, {check}", error, 0)
                if said:
                    run.note(f"{size} ranks, {check}: it said {said}")

        run.case(f"{size} ranks", work, seconds=60)
    return run.end()


if __name__ == "__main__":
    sys.exit(main())
