"""Threads: each launch is one function that several threads call at once, which share out its tiles.

They are torch's where a launch wants all of them and they are awake (`team.py`), else our own: this is chosen anew at
every launch. Numba's `prange` is a trap for a library: on GNU OpenMP a forked child that enters a parallel region is
terminated, and Numba's own scheduler aborts the process when two Python threads use it. With our own, the thread that
launches never depends on another one: it takes tiles until none is left, and then waits for those that others have
taken. A thread that wakes too late finds nothing to do, and looks at nothing but the counter.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

from . import team
from .compile import compiled
from .memory import fetch_add
from .record import CHUNK, COUNT, DONE, Words, address_of_row

# Bytes that are worth another thread, which has to wake: that takes as long as moving some megabyte, and on a virtual
# machine a hundred (AdamW of 7 MB there: 1.0 to 1.2 ms with another thread, 0.9 to 1.0 alone).
BYTES_A_THREAD = 4_000_000
# The same of torch's threads while they are awake, as after a backward pass: the tail of 65,536 elements took 0.24 ms
# with two of them, and 0.28 with one.
BYTES_A_MEMBER = 600_000
SHARED_FROM = 2 * min(BYTES_A_THREAD, BYTES_A_MEMBER)
"""Bytes from which on a launch may be worth more threads than one."""
# How often a launch is cut for a thread: those that start late, or share their core, take fewer pieces.
PIECES = 8
# Looks at the counter before the launching thread sleeps, some 30 microseconds.
PATIENCE = 1_500


class Task(NamedTuple):
    """One launch, for the threads that help with it."""

    function: Any
    record: Words
    finished: SimpleQueue[None]


class Pool:
    """Threads that wait for launches; made when first needed, and forgotten by a forked child, which has none."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        self._threads = 0
        self._lock = threading.Lock()

    def launch(self, function: Any, record: Words, size: int) -> None:
        """Calls `function(record, 1)` here and `function(record, 0)` on others, until all of its tiles are done.

        Args:
            function: As `callable_of` makes it.
            record: Its chunk is set here.
            size: Bytes that the launch moves.
        """
        threads, are_torchs = threads_for(size)
        record[CHUNK] = chunk_of(record[COUNT], threads)
        if not are_torchs and threads > 1 and (helpers := self._helpers(threads - 1)):
            self._share(function, record, helpers)
            return
        try:
            if are_torchs:
                team.launch(function, record, threads)
        finally:  # an interrupt is raised behind the tiles: without the rest, values would have moved and no count
            function(address_of_row(record), 1)

    def _share(self, function: Any, record: Words, helpers: int) -> None:
        # One that wakes too late looks at this copy, not at what the next launch is told.
        record = record.__class__.from_buffer_copy(record)
        address, task = address_of_row(record), Task(function, record, SimpleQueue())
        for _ in range(helpers):
            self._tasks.put(task)
        interrupt: KeyboardInterrupt | None = None
        while not function(address, 1):
            # Others still write to streams: not even an interrupt may let go of them.
            try:
                task.finished.get()
            except KeyboardInterrupt as caught:
                interrupt = caught
        if interrupt is not None:
            raise interrupt

    def _helpers(self, wanted: int) -> int:
        if self._threads < wanted:
            with self._lock:
                while self._threads < wanted:
                    name = f"flatvars-{self._threads + 1}"
                    try:
                        threading.Thread(target=_work, args=(self._tasks,), name=name, daemon=True).start()
                    except RuntimeError:  # the interpreter is shutting down, or the system gives no more
                        break
                    self._threads += 1
        return min(wanted, self._threads)


def _work(tasks: SimpleQueue[Task]) -> None:
    while True:
        task = tasks.get()
        task.function(address_of_row(task.record), 0)
        task.finished.put(None)
        del task  # it holds a record


POOL = Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.forget)


def threads_for(size: int) -> tuple[int, bool]:
    """How many threads a launch of `size` bytes is worth now, torch's number at most, and whether they are torch's."""
    most = torch.get_num_threads()
    if size // BYTES_A_MEMBER >= most > 1 and team.is_there(most) and team.is_worth(size):
        return most, True
    return max(1, min(most, size // BYTES_A_THREAD)), False


@functools.cache
def callable_of(code: Any) -> Any:
    """Machine code of `(record, leader) -> finished` as a function that gives up the interpreter lock."""
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(code.address)


@compiled
def wait(record: Any, count: Any) -> Any:
    """Whether all tiles are done, for which it waits a moment."""
    looks = 0
    while looks < PATIENCE and fetch_add(record + 8 * DONE, 0) < count:
        looks += 1
    return looks < PATIENCE


def chunk_of(tiles: int, threads: int) -> int:
    """Tiles that a thread takes at a time."""
    return tiles if threads == 1 else max(1, tiles // (threads * PIECES))
