"""The threads that torch's operations run on, where these are GNU OpenMP's: launches that want all of them borrow them.

After an operation, and so after a backward pass, they look for the next one for some 20 milliseconds before they sleep.
Who finds them so has them at once; threads of our own would share their cores with them, and take up to twice as long.
They are torch's by the thread that calls: two Python threads have two teams.

A forked child has none of its parent's threads, and GNU OpenMP does not know it: there `threads.py` goes on with its
own, as it does where torch was built upon something else.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numba import types

from .compile import native
from .memory import caller, read_int
from .record import Words, address_of_row, row_of

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def is_there(threads: int) -> bool:
    """Whether so many of torch's threads can be had: if torch uses another number, it would end some of them."""
    return not _forked and threads == torch.get_num_threads() and _parallel() is not None


def launch(function: Any, record: Words, threads: int) -> bool:
    """Calls `function(record, 0)` on `threads` threads of torch's, this one among them, and waits for all of them.

    Args:
        function: Machine code of `(record, leader) -> finished`, as `callable_of` makes it.

    Returns:
        Whether it did.
    """
    if not is_there(threads):
        return False
    parallel = _parallel()
    assert parallel is not None
    address = ctypes.cast(function, ctypes.c_void_p).value
    task = row_of([address or 0, address_of_row(record)])
    parallel(_member().address, address_of_row(task), threads, 0)
    return True


@functools.cache
def _member() -> Any:
    """Machine code of what each thread does, given the addresses of a launch's function and record."""
    call = caller([types.int64, types.int64])

    def member(task: Any) -> None:
        call(read_int(task, 0), read_int(task, 1), 0)

    return native(member, types.void(types.int64))


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
