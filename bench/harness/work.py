"""Counting what a run hands to the device, and the memory it takes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.harness.timing import synchronize

UNITS = {"cuda": "kernels and copies", "cpu": "torch operators"}


def count_launches(prepare: Callable[[], object], run: Callable[[], object], device: str) -> int:
    """Kernels, copies and fills of one run on a GPU, as the profiler sees them; torch operators on a CPU.

    An operator that runs others, as the `_foreach` ones do on a CPU, counts with all of them.
    """
    prepare()
    synchronize(device)
    activity = ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA
    with _silent(), profile(activities=[activity]) as profiler:
        run()
        synchronize(device)
    # The events as they came: `profiler.events()` builds a tree first, which takes seconds for 10,000 tensors.
    events = profiler.profiler.kineto_results.events()
    if device == "cpu":
        return sum(event.name().startswith("aten::") for event in events)
    # `Optimizer.step` marks itself, and the mark is shown on the device's track as well.
    return sum(event.device_type() == DeviceType.CUDA and "#" not in event.name() for event in events)


@contextmanager
def _silent() -> Iterator[None]:
    # The profiler's native part writes lines of its own to stderr.
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def bytes_in_use(device: str) -> int | None:
    """Bytes of live tensors on a GPU; of resident memory on a CPU under Linux; elsewhere not known."""
    if device != "cpu":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    # What an earlier cell freed and the allocator kept would hide what this one takes.
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    return _status("VmRSS")


def reset_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        # 5 resets the high-water mark of resident memory (man 5 proc).
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int | None:
    """The most bytes in use since `reset_peak`."""
    return torch.cuda.max_memory_allocated() if device != "cpu" else _status("VmHWM")


def _status(name: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None
