"""`./run.sh demo`: the demo (a tiny policy learns to repair generated repositories) with its compute on the GPU, and the
gates that it passes on the CPU too: base 3 to 15 % Pass@1 on held-out tasks, RFT above it, stage 2 above stage 1, at least
three times base and five standard errors above RFT. With --budget it stops in time, and the next run with the same --out
goes on. Results go to OUT/demo-DEVICE.json in the schema of bench/result.ts; the run itself, with its report, to OUT."""

import argparse
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

from library import Device, Fault, Library, find_library
from node import HERE, node
from results import EXIT_UNFINISHED, Run


def train(command, seconds):
    """Runs it; past `seconds` an interrupt, at which it saves itself. Whether it ended by itself."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            return None


def judge(run, stages):
    """The gates; each is a line: what was reached, beside what is asked."""
    at = {stage["name"]: stage for stage in stages}
    names = ["base", "rft", *[stage["name"] for stage in stages if stage["name"] not in ("base", "rft")]]
    base, rft, first, last = (at[name] for name in (names[0], names[1], names[2], names[-1]))
    for stage in stages:
        run.result(f"demo: {stage['name']}, Pass@1", "% Pass@1", [100 * stage["pass1"]])
    apart = 5 * math.hypot(last["sem"], rft["sem"])
    gates = [
        ("base is 3 to 15 %", 0.03 <= base["pass1"] <= 0.15),
        ("RFT is above base by two standard errors", rft["pass1"] - base["pass1"] >= 2 * math.hypot(rft["sem"], base["sem"])),
        ("stage 2 is above stage 1", last["pass1"] > first["pass1"]),
        ("stage 2 is at least three times base", last["pass1"] >= 3 * base["pass1"]),
        ("stage 2 is five standard errors above RFT", last["pass1"] - rft["pass1"] >= apart),
    ]
    for gate, passed in gates:
        if not passed:
            run.fail(f"demo: not so: {gate}")


def main():
    parse = argparse.ArgumentParser(prog="run.sh demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parse.add_argument("--config", help="another job than the demo's, without gates: path of its YAML")
    parse.add_argument("--seed", type=int, default=1)
    parse.add_argument("--sandbox", help="where the agent's commands run (default: what works here)")
    parse.add_argument("--budget", type=float, help="seconds, after which it stops so that the next run goes on")
    parse.add_argument("--out", default="results", help="folder of the results")
    options = parse.parse_args()
    try:
        dev = Device(Library(find_library()), options.device)
    except Fault as fault:
        sys.exit(f"demo: {fault}")
    run = Run(Path(options.out) / f"demo-{dev.kind}.json", dev, options.budget)
    dev.close()
    folder, told = run.path.parent / f"demo-{dev.kind}-seed{options.seed}", run.path.parent / "demo-arc.json"
    cli = [node(), str(HERE.parent / "dist" / "cli" / "main.js")]
    if (folder / "run.json").exists():
        command = [*cli, "resume", str(folder)]
    else:
        job = ["train", options.config] if options.config else ["demo"]
        command = [*cli, *job, "--device", options.device, "--seed", str(options.seed), "--out", str(folder)]
        command += ["--sandbox", options.sandbox] if options.sandbox else []
    ended = train([*command, "--json", str(told)], None if options.budget is None else max(options.budget - 30, 1))
    if ended is None:
        print("demo: out of time; start again for the rest")
        sys.exit(EXIT_UNFINISHED)
    if not ended:
        run.fail("demo: the run failed; see above")
        sys.exit(run.end())
    arc = json.loads(told.read_text())
    run.result("demo: time", "s", [arc["seconds"]])
    if options.config is None:
        judge(run, arc["stages"])
    sys.exit(run.end())


if __name__ == "__main__":
    main()
