"""Clocks: until the host is free, until the device is done, and what the device alone needs."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# How long a GPU is kept busy, at most, while the host fills its queue.
LONGEST_SLEEP_MS = 100.0
CYCLES_PER_MS = 2_000_000
# A team of threads that slept takes that long to be awake and each on a core of its own.
AWAKE_MS = 2.0


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Round:
    """Milliseconds of one run, a mean over the runs of a round.

    Attributes:
        wall: From call to result: synchronized before and after.
        host: Until the call returns, in a loop without synchronization. On a CPU the same as `wall`.
        device: Between events on a queue that was filled before: the device's own time. On a CPU the same as `wall`.
    """

    wall: float
    host: float
    device: float


def measure_round(
    prepare: Callable[[], object], run: Callable[[], object], runs: int, device: str, pause: float = 0.0
) -> Round:
    """One turn of a contender: `runs` runs by each clock.

    Args:
        pause: Seconds without work before each run, so that threads sleep; else, on a CPU, they are awake.
    """
    awake = device == "cpu" and not pause

    def begin() -> None:
        prepare()
        if pause:
            time.sleep(pause)
        elif awake:
            wake()

    if awake:
        wake(AWAKE_MS)
    wall = _wall(begin, run, runs, device)
    if device == "cpu":
        return Round(wall, wall, wall)
    host = _host(prepare, run, runs)
    return Round(wall, host, _device(prepare, run, runs, host))


def _wall(prepare: Callable[[], object], run: Callable[[], object], runs: int, device: str) -> float:
    total = 0.0
    for _ in range(runs):
        prepare()
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        total += time.perf_counter() - start
    return total / runs * 1e3


def wake(ms: float = 0.0) -> None:
    """Leaves torch's threads awake, as a backward pass does: one operation on all of them, or as many as take `ms`."""
    values, end = _for_all_threads(), time.perf_counter() + ms / 1e3
    torch.add(values, 1.0, out=values)
    while time.perf_counter() < end:
        torch.add(values, 1.0, out=values)


@functools.cache
def _for_all_threads() -> Tensor:
    # Twice what torch gives a thread at least, and no more: caches keep what they hold.
    return torch.zeros(torch.get_num_threads() * 2**16)


def _host(prepare: Callable[[], object], run: Callable[[], object], runs: int) -> float:
    total = 0.0
    for _ in range(runs):
        prepare()
        start = time.perf_counter()
        run()
        total += time.perf_counter() - start
    torch.cuda.synchronize()
    return total / runs * 1e3


def _device(prepare: Callable[[], object], run: Callable[[], object], runs: int, host: float) -> float:
    total = 0.0
    for _ in range(runs):
        prepare()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        # The host gets ahead while the device sleeps, so that its gaps are not counted.
        torch.cuda._sleep(int(min(2.0 * host + 0.2, LONGEST_SLEEP_MS) * CYCLES_PER_MS))
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        total += first.elapsed_time(last)
    return total / runs


def middle(values: Sequence[float]) -> tuple[float, float]:
    """The median, and the spread: the distance of the quartiles over the median."""
    if len(values) < 2:
        return values[0], 0.0
    first, median, third = statistics.quantiles(values, n=4)
    return median, (third - first) / median if median else 0.0
