"""Where objects of Python and torch keep what `looks.py` reads of them, and whether they keep it there: by samples.

Nothing here is asked of an object that is not held, and memory is read inside of objects alone.
"""

from __future__ import annotations

import ctypes
import sys
from typing import NamedTuple

import torch
from torch import Tensor, nn

HEAD = 16
"""Bytes of a Python object before its own first word: the count of references and the type. A tensor's is that of its
`TensorImpl`; a list's, its length."""

ITEMS = 24
"""Bytes of a list before the address of its row of items."""

WORDS = 12
"""Of a `TensorImpl`, which has twenty: among them is the address of all that it consists of."""


class Parts(NamedTuple):
    """Which words of a `TensorImpl` are addresses of its parts, to fetch them into the cache before they are needed.

    Attributes:
        storage: Its storage.
        version: Its count of versions.
        beside: What autograd keeps of it; 0 where it keeps nothing.
        grad: Bytes from there to the word of its gradient.
    """

    storage: int
    version: int
    beside: int
    grad: int


def samples() -> list[Tensor]:
    """Tensors of several kinds, some with a gradient."""
    plain = torch.zeros(4, 3)
    found = [plain, plain[1:], plain.T, plain.detach(), nn.Parameter(plain[2]), torch.zeros(0, 2), torch.tensor(1.0)]
    found += [nn.Parameter(torch.zeros(5, 2, dtype=dtype)) for dtype in (torch.bfloat16, torch.float16, torch.float64)]
    for param in found[-3:]:
        param.grad = torch.ones_like(param)
    found[-2].grad = torch.ones_like(found[-2]).add_(1)  # another version
    found[-1].grad = None  # there was one
    return found


def are_as_said() -> bool:
    """Whether tensors and lists are objects as above."""
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    if sys.implementation.name != "cpython" or not has_lock or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    if Tensor.__basicsize__ < HEAD + 8:
        return False
    if any(word_at(id(tensor) + HEAD) != tensor._cdata for tensor in samples()):  # type: ignore[attr-defined]
        return False
    return _lists_are_rows()


def _lists_are_rows() -> bool:
    """Nothing is taken for an address that might be none: it is the one word of a list that is no count."""
    if list.__basicsize__ != HEAD + 3 * 8:
        return False
    row: list[object] = [None] * 100
    for k in range(100):
        row[k] = object()
    row.pop()  # of the room for 100
    length, place, room = word_at(id(row) + HEAD), word_at(id(row) + ITEMS), word_at(id(row) + HEAD + 16)
    if (length, room) != (99, 100) or place % 8 or place < 1 << 16:
        return False
    return [word_at(place + 8 * k) for k in range(99)] == list(map(id, row))


def word_at(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


def undefined(grad: int) -> int | None:
    """The address that stands for no gradient; None if a gradient is found by `grad` elsewhere than by Python."""
    ask = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(grad)
    without, empty, having = nn.Parameter(torch.zeros(1)), torch.zeros(1), nn.Parameter(torch.zeros(1))
    having.grad = torch.ones(1)
    found = [word_at(ask(t._cdata)) for t in (without, empty, having)]  # type: ignore[attr-defined]
    return found[0] if found[0] == found[1] and found[2] == having.grad._cdata else None  # type: ignore[attr-defined]


def parts(grad: int, version_counter: int) -> Parts | None:
    """Which words these are, by what `grad` and `version_counter` tell of a sample; None where one is not found."""
    ask_grad = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(grad)
    ask_version = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(version_counter)
    sample, bare = nn.Parameter(torch.zeros(1)), torch.zeros(1)
    sample.grad = torch.ones(1)
    words, fewer = ([word_at(t._cdata + 8 * k) for k in range(WORDS)] for t in (sample, bare))  # type: ignore[attr-defined]
    place = ask_grad(sample._cdata)  # type: ignore[attr-defined]
    storages = [k for k, word in enumerate(words) if word == sample.untyped_storage()._cdata]
    besides = [k for k, word in enumerate(words) if 0 <= place - word < 128 and fewer[k] == 0]
    version = ask_version(id(sample) + HEAD) - sample._cdata  # type: ignore[attr-defined]
    if len(storages) != 1 or len(besides) != 1 or version % 8 or not 0 <= version < 8 * WORDS:
        return None
    return Parts(storages[0], version // 8, besides[0], place - words[besides[0]])


def strided(layout: int) -> int:
    """How libtorch numbers the layout of a dense tensor."""
    answer = ctypes.c_int32()
    ask = ctypes.PYFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p)(layout)
    plain = torch.zeros(1)
    ask(id(plain) + HEAD, ctypes.addressof(answer))
    return answer.value
