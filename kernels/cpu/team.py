"""The threads that torch's operations run on, where these are GNU OpenMP's: launches that want all of them borrow them.

After an operation, and so after a backward pass, they look for the next one for some 10 milliseconds before they sleep.
Who finds them so has them at once; threads of our own would share their cores with them, and take up to twice as long.
Where they sleep, a launch waits until the last one woke: on a virtual machine of two cores AdamW of 65,536 elements
took 7.9 ms behind 60 ms of pause, torch's own 8.0, and 0.7 on the calling thread alone. So they are looked at first:
the clock of a thread's CPU time runs while it looks for work, and stands while it sleeps.

They are torch's by the thread that calls: two Python threads have two teams.

A forked child has none of its parent's threads, and GNU OpenMP does not know it: there `threads.py` goes on with its
own, as it does where torch was built upon something else.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numba import types

from .compile import native
from .memory import caller, read_int, write_int
from .record import Words, address_of_row, row_of

# Nanoseconds after a launch in which they are awake for certain: two looks at a clock take three microseconds.
JUST = 100_000
# Nanoseconds between launches that follow each other closely: awake ones stay so for some twice as long.
CLOSE = 5_000_000
# Bytes that are worth waking them, in one launch or in several that follow each other closely. There, AdamW's step of
# 117 MB took 7.9 ms with those that sleep behind 60 ms of pause, and 4.4 behind 15, from where they wake sooner; 5.7
# and 6.5 on threads of our own. A hundred steps of 7 MB without a pause: 0.32 ms each, 0.37 where nothing wakes them.
BYTES_WORTH_WAKING = 100_000_000

_forked = False


class _Mine(threading.local):
    """What a thread knows of its team.

    Attributes:
        clock: Of a member's CPU time, if it is known.
        launched: When the last launch on the team was over.
        asked: When the last launch asked for the team.
        missed: Bytes that launches close behind each other have moved without it.
    """

    clock: int | None = None
    launched = asked = -CLOSE
    missed = 0


_mine = _Mine()


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def is_there(threads: int) -> bool:
    """Whether so many of torch's threads can be had: if torch uses another number, it would end some of them."""
    return not _forked and threads == torch.get_num_threads() and _parallel() is not None


def is_worth(size: int) -> bool:
    """Whether a launch that moves `size` bytes gains by the team: it is awake, or it is time that it wakes.

    A loop of small steps, without an operation of torch's between them, would else never have it.
    """
    now, mine = time.perf_counter_ns(), _mine
    follows, mine.asked = now - mine.asked < CLOSE, now
    mine.missed = size + (mine.missed if follows else 0)
    if now - mine.launched > JUST and mine.missed < BYTES_WORTH_WAKING and not is_awake():
        return False
    mine.missed = 0
    return True


def is_awake() -> bool:
    """Whether this thread's team looks for work; also where that is not known, as before the first launch."""
    clock = _mine.clock
    if clock is None:
        return True
    try:
        before = time.clock_gettime_ns(clock)
        return time.clock_gettime_ns(clock) > before
    except OSError:  # that thread has ended, as torch was given another number of them
        _mine.clock = None
        return True


def launch(function: Any, record: Words, threads: int) -> None:
    """Calls `function(record, 0)` on `threads` threads of torch's, this one among them, and waits for all of them.

    Args:
        function: Machine code of `(record, leader) -> finished`, as `callable_of` makes it.
        threads: As many as `is_there` was asked for.
    """
    parallel = _parallel()
    assert parallel is not None
    address = ctypes.cast(function, ctypes.c_void_p).value
    task = row_of([address or 0, address_of_row(record), _own_name(), threading.get_ident(), 0])
    parallel(_member().address, address_of_row(task), threads, 0)
    member = task[_MEMBER]
    try:
        # Asked for while that thread is there for certain: the C library looks into its memory.
        _mine.clock = time.pthread_getcpuclockid(member) if member else None
    except OSError:
        _mine.clock = None
    _mine.launched = time.perf_counter_ns()


_MEMBER = 4
"""The word of a task that becomes the name of a thread that took part, other than the one that launched; 0 if none did,
as with OMP_DYNAMIC and OMP_THREAD_LIMIT."""


@functools.cache
def _member() -> Any:
    """Machine code of what each thread does, given a task."""
    call, name, place = caller([types.int64, types.int64]), caller([], types.int64), _MEMBER

    def member(task: Any) -> None:
        mine = name(read_int(task, 2))
        if mine != read_int(task, 3):
            write_int(task, place, mine)
        call(read_int(task, 0), read_int(task, 1), 0)

    return native(member, types.void(types.int64))


@functools.cache
def _own_name() -> int:
    """The address of `pthread_self`."""
    return ctypes.cast(ctypes.CDLL(None).pthread_self, ctypes.c_void_p).value or 0


@functools.cache
def _parallel() -> Callable[..., None] | None:
    """`GOMP_parallel(function, data, threads, flags)` of the library that torch uses, which gives up the lock.

    Asked for by its file: another library of the same name may be loaded as well, and has other threads.
    """
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if len(found) != 1:
        return None
    try:
        library = ctypes.CDLL(str(found[0]), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        function: Callable[..., None] = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.restype = None  # type: ignore[attr-defined]
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]  # type: ignore[attr-defined]
    return function
