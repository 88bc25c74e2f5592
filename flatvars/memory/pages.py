"""Large buffers of host memory on large pages, where the system gives them to those who ask.

A pass over a store walks memory from one end to the other. On pages of 4 KiB every tile needs new entries of the
processor's address tables, which on a virtual machine take two walks each.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

import torch
from torch import Tensor

PAGE = 1 << 21
"""Bytes of a large page on x86-64, and on ARM with pages of 4 KiB."""

# Below this, the ends of a buffer, which lie on small pages all the same, are a large part of it.
SMALLEST = 2 * PAGE

_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


def paged_zeros(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A buffer of zeros, [numel]."""
    if device.type != "cpu" or _ADVICE is None or numel * dtype.itemsize < SMALLEST:
        return torch.zeros(numel, dtype=dtype, device=device)
    buffer = torch.empty(numel, dtype=dtype, device=device)
    _advise(buffer)
    return buffer.zero_()


def _advise(buffer: Tensor) -> None:
    """Asks for large pages for what a buffer holds of them whole; before it is written, for it is cheapest then."""
    madvise = _madvise()
    start = -(-buffer.data_ptr() // PAGE) * PAGE
    length = (buffer.data_ptr() + buffer.nbytes) // PAGE * PAGE - start
    if madvise is not None and length > 0:
        # An advice: a system without large pages says no, and nothing else is different.
        madvise(start, length, _ADVICE)


@functools.cache
def _madvise() -> Callable[..., int] | None:
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), "madvise", None)
    if found is not None:
        found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]  # type: ignore[attr-defined]
    return found
