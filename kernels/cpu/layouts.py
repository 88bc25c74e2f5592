"""Where objects of Python and torch keep what `looks.py` reads of them, and whether they keep it there: by samples.

Nothing here is asked of an object that is not held, and memory is read inside of objects alone.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

HEAD = 16
"""Bytes of a Python object before its own first word: the count of references and the type. A tensor's is that of its
`TensorImpl`; a list's, its length."""

ITEMS = 24
"""Bytes of a list before the address of its row of items."""

WORDS = 22
"""Of a `TensorImpl`, that many are looked through for what is read of it."""

INLINE = 5
"""Axes whose lengths and strides lie in the `TensorImpl` itself: lengths behind their number, then strides."""


class Fields(NamedTuple):
    """What is read of a dense tensor on a CPU, and where it is kept.

    Attributes:
        storage: Word of a `TensorImpl`: the address of its storage.
        beside: The address of what autograd keeps of it; 0 where it keeps nothing.
        version: The address of its count of versions; 0 of tensors that inference mode made.
        axes: Their number.
        offset: Of its first element, in elements of its storage.
        numel: Number of elements.
        dtype: As libtorch numbers it, in the lower half of the word's lower half.
        keys: The keys of torch's dispatcher, which say what kind of tensor it is.
        grad: Bytes from what autograd keeps to the word of its gradient.
        data: Word of a storage: the address of its first byte.
        deleter: What frees it, by which those that wait to be copied until they are written to are known.
        number: Bytes from a count of versions to the number, 32 bits.
        plain: The keys of a dense tensor on a CPU, with nothing to do before it is read.
        lazy: The deleter of those that wait to be copied.
    """

    storage: int
    beside: int
    version: int
    axes: int
    offset: int
    numel: int
    dtype: int
    keys: int
    grad: int
    data: int
    deleter: int
    number: int
    plain: int
    lazy: int


SIZES = {torch.float32: 4, torch.float64: 8, torch.bfloat16: 2, torch.float16: 2}
"""Bytes of an element, of dtypes whose tensors are read in this way."""


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


def fields(grad: int, version_counter: int, dtype: int) -> Fields | None:
    """Which words these are, by what torch tells of samples; None where one is not found.

    Args:
        grad: Addresses of functions: of a tensor's gradient, its count of versions, its dtype.
    """
    ask_grad = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(grad)
    ask_version = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(version_counter)
    sample = nn.Parameter(torch.zeros(50_000).as_strided((17, 7, 11), (1009, 13, 3), 777))
    sample.grad = torch.ones(17, 7, 11)
    words, bare = _words(sample), _words(torch.zeros(1))
    storage, place = sample.untyped_storage(), ask_grad(_impl(sample))
    beside = _only(k for k in range(WORDS) if 0 <= place - words[k] < 128 and bare[k] == 0)
    shape = [3, 17, 7, 11], [1009, 13, 3]
    found = {
        "storage": _only(k for k in range(WORDS) if words[k] == storage._cdata),
        "beside": beside,
        "version": _only([(ask_version(id(sample) + HEAD) - _impl(sample)) // 8]),
        "axes": _only(k for k in range(WORDS) if (words[k : k + 4], words[k + 1 + INLINE : k + 4 + INLINE]) == shape),
        "offset": _only(k for k in range(WORDS) if words[k] == 777),
        "numel": _only(k for k in range(WORDS) if words[k] == sample.numel()),
        "dtype": _where_dtypes_are(dtype),
        "keys": _only(k for k in range(WORDS) if words[k] == torch._C._dispatch_keys(sample).raw_repr()),
        "grad": None if beside is None else place - words[beside],
        **_of_storages(),
        "number": None,
        "plain": torch._C._dispatch_keys(sample).raw_repr(),
    }
    if found["version"] is not None and 0 <= found["version"] < WORDS:
        found["number"] = _where_versions_are(found["version"])
    if any(position is None for position in found.values()):
        return None
    return Fields(**found)  # type: ignore[arg-type]


def _impl(tensor: Tensor) -> int:
    address: int = tensor._cdata  # type: ignore[attr-defined]
    return address


def _words(tensor: Tensor) -> list[int]:
    return [word_at(_impl(tensor) + 8 * k) for k in range(WORDS)]


def _only(positions: Iterable[int]) -> int | None:
    found = list(positions)
    return found[0] if len(found) == 1 else None


def _where_dtypes_are(dtype: int) -> int | None:
    tensors = [torch.zeros(1, dtype=each) for each in SIZES]
    rows = [(_words(tensor), number_of(dtype, tensor)) for tensor in tensors]
    # Of the word's upper half some bits are nobody's.
    return _only(k for k in range(WORDS) if all(words[k] & 0xFFFF == number for words, number in rows))


def _where_versions_are(version: int) -> int | None:
    tensors = [torch.zeros(1) for _ in range(2)]
    for tensor, times in zip(tensors, (1234, 4321), strict=True):
        for _ in range(times):
            torch.autograd.graph.increment_version(tensor)
    places = [word_at(_impl(tensor) + 8 * version) for tensor in tensors]
    return _only(
        at
        for at in range(0, 24, 4)
        if all(
            ctypes.c_uint32.from_address(place + at).value == tensor._version
            for place, tensor in zip(places, tensors, strict=True)
        )
    )


def _of_storages() -> dict[str, int | None]:
    """Of storages, five words are looked through; all have more."""
    plain, origins = torch.ones(3), [torch.ones(3), torch.ones(5)]
    places = list(map(Tensor.data_ptr, origins))  # asked for later, it would be that of a copy
    try:
        copies = [torch._lazy_clone(origin) for origin in origins]
    except (AttributeError, RuntimeError):
        return {"data": None}
    free, *lazy = (
        [word_at(each.untyped_storage()._cdata + 8 * k) for k in range(5)] for each in (plain, *origins, *copies)
    )
    data = _only(k for k in range(5) if [row[k] for row in lazy] == places + places and free[k] == plain.data_ptr())
    deleter = _only(k for k in range(5) if len({row[k] for row in lazy}) == 1 and lazy[0][k] not in (free[k], 0))
    return {"data": data, "deleter": deleter, "lazy": None if deleter is None else lazy[0][deleter]}


def number_of(dtype: int, tensor: Tensor) -> int:
    """How libtorch numbers the dtype of a tensor, or its layout, by the function at an address."""
    answer = ctypes.c_int32()
    ask = ctypes.PYFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p)(dtype)
    ask(id(tensor) + HEAD, ctypes.addressof(answer))
    return answer.value
