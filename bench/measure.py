"""Timing: in turn, medians, host and device apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds a run: until the host is free again, and until the device is done (the same on a CPU)."""

    host_ms: float
    total_ms: float
    spread: float  # (third quartile - first) / median of the total


def time_in_turn(
    prepare: Sequence[Callable[[], None]], runs: Sequence[Callable[[], None]], rounds: int, device: str
) -> list[Timing]:
    """Times several contenders in turn, so that a machine that slows down slows all of them.

    Args:
        prepare: Called before each run of a contender, outside of what is timed.
        runs: The contenders.
        rounds: Measured turns, after two that are not.
    """
    host: list[list[float]] = [[] for _ in runs]
    total: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds + 2):
        for i, (ready, run) in enumerate(zip(prepare, runs, strict=True)):
            ready()
            _wait(device)
            start = time.perf_counter()
            run()
            free = time.perf_counter()
            _wait(device)
            done = time.perf_counter()
            if turn >= 2:
                host[i].append((free - start) * 1e3)
                total[i].append((done - start) * 1e3)
    return [_summary(h, t) for h, t in zip(host, total, strict=True)]


def _summary(host: list[float], total: list[float]) -> Timing:
    first, median, third = statistics.quantiles(total, n=4)
    return Timing(statistics.median(host), median, (third - first) / median)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
