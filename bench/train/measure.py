"""Measuring the optimizer part of a step: its time, and the work it hands to the device.

Both measures are called with the piece of work to run, so that a step is written once and measured either way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.autograd.profiler_util import FunctionEvent


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read after this has seen its work done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Adds up the seconds of the calls it is given; ``seconds`` is NaN if it was told not to look."""

    def __init__(self, device: torch.device, active: bool) -> None:
        self.device = device
        self.active = active
        self.seconds = 0.0 if active else float("nan")

    def __call__(self, work: Callable[[], None]) -> None:
        if not self.active:
            work()
            return
        synchronize(self.device)
        start = time.perf_counter()
        work()
        synchronize(self.device)
        self.seconds += time.perf_counter() - start


class WorkCounter:
    """Counts what the calls it is given start: kernels on a GPU, torch operators elsewhere.

    An operator that runs others, as the ``_foreach`` ones do on a CPU, counts with all of them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count = 0

    @staticmethod
    def unit(device: torch.device) -> str:
        """What is counted on this device, in words."""
        return "kernel launches" if device.type == "cuda" else "operators run"

    def __call__(self, work: Callable[[], None]) -> None:
        on_gpu = self.device.type == "cuda"
        activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
        synchronize(self.device)
        with _silent_stderr(), torch.profiler.profile(activities=[activity]) as profile:
            work()
            synchronize(self.device)
        self.count += sum((_is_kernel if on_gpu else _is_operator)(event) for event in profile.events())


def _is_kernel(event: FunctionEvent) -> bool:
    # Copies and fills by the copy engine are in the list as well, but launch no kernel.
    return event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))


def _is_operator(event: FunctionEvent) -> bool:
    return event.name.startswith("aten::")


@contextmanager
def _silent_stderr() -> Iterator[None]:
    # The profiler's native part writes lines of its own there, into the middle of a progress bar.
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
