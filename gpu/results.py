"""A run of checks or measurements: cases one after another within a budget of time, what they found as JSON in the
schema of bench/result.ts. A run that is started again does what is left."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

EXIT_FAILED, EXIT_UNFINISHED = 1, 3


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def driver_version():
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return told.stdout.split("\n")[0].strip() if told.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def versions():
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "flash-attn", "flash-attn-3", "flash-attn-4", "liger-kernel"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    try:
        import torch

        found["cuda"] = str(torch.version.cuda)
        if torch.cuda.is_available():
            found["cudnn"] = str(torch.backends.cudnn.version())
    except ImportError:
        pass
    return found


BIGGER_IS_BETTER = ("% MFU", "% Pass@1", "tokens")  # and rates; as in bench/result.ts


def ratio_of(unit, ours, theirs):
    """How many times better ours is."""
    if not (ours > 0 and theirs > 0):
        return None
    return ours / theirs if unit.endswith("/s") or unit in BIGGER_IS_BETTER else theirs / ours


def spread(values):
    value = statistics.median(values)
    return value, statistics.median(abs(each - value) for each in values)


class Run:
    def __init__(self, path, device, budget=None):
        self.path, self.started, self.budget = Path(path), time.monotonic(), budget
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.record = {
            "schema": 1,
            "machine": {"cpu": cpu_name(), "gpu": None if device.kind == "cpu" else device.name},
            "versions": versions(),
            "results": [],
            "done": [],
            "notes": [],
        }
        driver = driver_version()
        if driver:
            self.record["machine"]["driver"] = driver
        if self.path.exists():
            before = json.loads(self.path.read_text())
            if before.get("machine") != self.record["machine"]:
                sys.exit(f"{self.path} is of another machine; give another --out, or remove it")
            for part in ("results", "done", "notes"):
                self.record[part] = before.get(part, [])
        self.failed = [note for note in self.record["notes"] if note.startswith("failed: ")]
        self.unfinished = []

    @property
    def left(self):
        return float("inf") if self.budget is None else self.budget - (time.monotonic() - self.started)

    def case(self, name, work, seconds=5.0):
        """Runs work(self) unless an earlier run did, or the budget has no `seconds` left for it."""
        if name in self.record["done"]:
            return
        if self.left < seconds:
            self.unfinished.append(name)
            return
        began = time.monotonic()
        try:
            work(self)
            self.record["done"].append(name)
        except Exception as error:  # the next case may tell more
            text = " ".join(str(error).split())[:600]
            self.fail(f"{name}: {type(error).__name__}: {text}")
            traceback.print_exc()
        print(f"  ({name}: {time.monotonic() - began:.1f} s)", flush=True)
        self.write()

    def note(self, text):
        if text not in self.record["notes"]:
            self.record["notes"].append(text)
        print(text, flush=True)

    def fail(self, text):
        self.failed.append(text)
        self.note(f"failed: {text}")

    def result(self, name, unit, values, peer=None, peer_values=None):
        """One line: medians with their median absolute deviations. `peer` names what is beside ours."""
        value, mad = spread(values)
        entry = {"name": name, "unit": unit, "value": value, "mad": mad, "peer": None, "ratio": None}
        if peer is not None:
            theirs, theirs_mad = spread(peer_values)
            entry["peer"] = {"name": peer, "value": theirs, "mad": theirs_mad}
            entry["ratio"] = ratio_of(unit, value, theirs)
        self.record["results"] = [each for each in self.record["results"] if each["name"] != name] + [entry]
        beside = f" | {peer} {theirs:.4g} | ratio {entry['ratio'] or 0:.3f}" if peer is not None else ""
        print(f"{name}: {value:.4g} {unit}{beside}", flush=True)

    def limit(self, name, value, limit):
        """A check: the error, beside the most that it may be."""
        self.result(name, "error", [float(value)], "limit", [float(limit)])
        if not value <= limit:  # NaN too
            self.fail(f"{name} is {value:.3g}, more than {limit:.3g}")

    def write(self):
        self.record["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.record, indent=2) + "\n")
        os.replace(part, self.path)

    def end(self):
        self.write()
        print(f"results: {self.path}")
        for text in self.failed:
            print(f"FAILED: {text}")
        if self.unfinished:
            print(f"out of time, start again for the rest: {', '.join(self.unfinished)}")
        if self.failed:
            return EXIT_FAILED
        return EXIT_UNFINISHED if self.unfinished else 0
