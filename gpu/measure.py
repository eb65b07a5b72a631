"""Times of work on a device: medians over samples, beside peers in turns, with warm clocks."""

import statistics
import time

import torch


class Clock:
    def __init__(self, dev):
        self.dev = dev

    def wait(self):
        self.dev.call("synchronize", self.dev.engine)

    def seconds(self, work, calls):
        """Of one of `calls` calls that are queued one behind another."""
        if self.dev.kind == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(calls):
                work()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1000 / calls
        self.wait()
        started = time.perf_counter()
        for _ in range(calls):
            work()
        self.wait()
        return (time.perf_counter() - started) / calls

    def beside(self, sides, samples=9, least=0.02):
        """Seconds of each side, by name: a call that warms up, then turns in alternation, each of as many calls as
        take `least` seconds. A side is a function; what it throws is its caller's to know."""
        calls = {}
        for name, work in sides.items():
            self.seconds(work, 1)
            calls[name] = max(1, round(least / max(self.seconds(work, 1), 1e-7)))
        times = {name: [] for name in sides}
        for _ in range(samples):
            for name, work in sides.items():
                times[name].append(self.seconds(work, calls[name]))
        return times


def ceiling(clock, dev, n):
    """A product of n x n x n on random data by cuBLAS: FLOP/s of each sample. It warms the clocks, too."""
    a, b = (torch.randn(n, n, device=dev.place, dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)
    until = time.monotonic() + (1.0 if dev.kind == "cuda" else 0.0)
    while True:
        clock.seconds(lambda: torch.mm(a, b, out=c), 4)
        if time.monotonic() >= until:
            break
    times = clock.beside({"mm": lambda: torch.mm(a, b, out=c)})["mm"]
    return [2 * n**3 / t for t in times]


def copy_bandwidth(clock, dev, bytes_):
    """Bytes a second, read and written, of a copy on the device."""
    a = torch.empty(bytes_, dtype=torch.uint8, device=dev.place).random_()
    b = torch.empty_like(a)
    times = clock.beside({"copy": lambda: b.copy_(a)})["copy"]
    return [2 * bytes_ / t for t in times]


def median(values):
    return statistics.median(values)
