"""Plain tensors read where they lie: fewer instructions than to ask for each part, and no line of memory in vain."""

from __future__ import annotations

from typing import Any, NamedTuple

from .compile import compiled
from .layouts import Fields
from .memory import prefetch, read_int

AHEAD = 4
"""Tensors that are looked at while what the next ones consist of is on its way from memory."""


class Plain(NamedTuple):
    """What is read of plain tensors: dense, on a CPU, of a dtype whose size is known, and nothing to do before.

    Attributes:
        is_plain: `(tensor)`, by the address of a `TensorImpl`.
        address: `(tensor)`, of a plain one: that of its first element, 0 if it has none.
        dtype: `(tensor)`.
    """

    is_plain: Any
    address: Any
    dtype: Any


def plain_of(fields: Fields, sizes: int, lazy: Any) -> Plain:
    """Reads these.

    Args:
        sizes: Bytes of an element, 4 bits for each dtype, by its number; 0 of dtypes that are not read here.
        lazy: `()`: the deleter of storages that wait to be copied.
    """

    @compiled
    def dtype(tensor: Any) -> Any:
        return read_int(tensor, fields.dtype) & 0xFFFF

    @compiled
    def size(tensor: Any) -> Any:
        number = dtype(tensor)
        return (sizes >> (4 * number)) & 15 if number < 16 else 0

    @compiled
    def is_plain(tensor: Any) -> Any:
        storage = read_int(tensor, fields.storage)
        if read_int(tensor, fields.keys) != fields.plain or size(tensor) == 0 or storage == 0:
            return False
        return read_int(storage, fields.deleter) != lazy()

    @compiled
    def address(tensor: Any) -> Any:
        if read_int(tensor, fields.numel) == 0:
            return 0
        begin = read_int(read_int(tensor, fields.storage), fields.data)
        return begin + read_int(tensor, fields.offset) * size(tensor)

    return Plain(is_plain, address, dtype)


def gradient_of(fields: Fields, undefined: Any) -> Any:
    """`gradient(tensor)`: the address of the word of what lies in `.grad` of a `TensorImpl`; 0 where it is None.

    Args:
        undefined: `()`: the address that stands for no gradient.
    """

    @compiled
    def gradient(tensor: Any) -> Any:
        beside = read_int(tensor, fields.beside)
        if beside == 0 or read_int(beside + fields.grad, 0) == undefined():
            return 0
        return beside + fields.grad

    return gradient


class Ahead:
    """Asks memory for what is read of the next tensors: they lie all over it, and each part would be waited for.

    Attributes:
        objects: `(tensors, i, count)`: Python's objects, first of all.
        parts: Behind these, where and how a tensor lies.
        version: Its count of versions.
        grad: The word of its gradient.
        left: Objects, their gradients, and where and how these lie.
    """

    def __init__(self, fields: Fields) -> None:
        first, last = 8 * fields.storage, 8 * fields.keys
        storage, version, beside, to_grad = fields.storage, fields.version, fields.beside, fields.grad

        @compiled
        def impl(tensors: Any, i: Any) -> Any:
            return read_int(read_int(tensors, i), 0)

        @compiled
        def fetch(tensor: Any) -> None:
            prefetch(tensor + first)
            prefetch(tensor + first + 64)
            prefetch(tensor + last - 24)
            prefetch(tensor + last)

        @compiled
        def objects(tensors: Any, i: Any, count: Any) -> None:
            if i + 3 * AHEAD < count:
                prefetch(read_int(tensors, i + 3 * AHEAD))

        @compiled
        def parts(tensors: Any, i: Any, count: Any) -> None:
            if i + 2 * AHEAD < count:
                fetch(impl(tensors, i + 2 * AHEAD))
            if i + AHEAD < count:
                prefetch(read_int(impl(tensors, i + AHEAD), storage))

        @compiled
        def counter(tensors: Any, i: Any, count: Any) -> None:
            if i + 2 * AHEAD < count:
                prefetch(impl(tensors, i + 2 * AHEAD) + 8 * version)
            if i + AHEAD < count:
                prefetch(read_int(impl(tensors, i + AHEAD), version))

        @compiled
        def grad(tensors: Any, i: Any, count: Any) -> None:
            if i + 2 * AHEAD < count:
                prefetch(impl(tensors, i + 2 * AHEAD) + 8 * beside)
            if i + AHEAD < count:
                prefetch(read_int(impl(tensors, i + AHEAD), beside) + to_grad)

        @compiled
        def gradient(tensors: Any, i: Any) -> Any:
            found = read_int(impl(tensors, i), beside)
            return 0 if found == 0 else read_int(found + to_grad, 0)

        @compiled
        def left(tensors: Any, i: Any, count: Any) -> None:
            if i + 5 * AHEAD < count:
                prefetch(read_int(tensors, i + 5 * AHEAD))
            if i + 4 * AHEAD < count:
                prefetch(impl(tensors, i + 4 * AHEAD) + 8 * beside)
            if i + 3 * AHEAD < count:
                prefetch(read_int(impl(tensors, i + 3 * AHEAD), beside) + to_grad)
            if i + 2 * AHEAD < count:
                fetch(gradient(tensors, i + 2 * AHEAD))
            if i + AHEAD < count:
                found = gradient(tensors, i + AHEAD)
                if found != 0:
                    prefetch(read_int(found, storage))

        self.objects, self.parts, self.version, self.grad, self.left = objects, parts, counter, grad, left
