"""What tensors say of themselves, for a thousand at once, without a turn of Python for each.

A question to a tensor takes Python 40 to 100 ns, and five are needed to know where a gradient lies and how; here, all
five take 30 where tensors lie in the processor's caches, and 80 to 140 where they come from memory. `kernels/looks.py`
says what is asked, and asks nothing where `load` finds a torch it does not know.

What is relied on: behind its head, a Python tensor holds a word that is an `at::Tensor`, the address of its
`TensorImpl`. Of that, and of what it names, a plain tensor's place, kind and version are read (`plain.py`) at words
that `layouts.py` finds by what torch says of samples. Other tensors are described by the functions `aoti_torch_*` of
libtorch, whose C interface torch promises to keep, and `at::native::is_neg`. `load` compares what it is told in this
way with what Python says, first the words, then each answer.

Nothing is asked by way of torch's dispatcher, which tells profilers and dispatch modes of every question as of an
operator that ran: it takes longer to ask than to answer, and a step would be an operator for each variable.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
import torch
from numba import types
from torch import Tensor

from .compile import compiled, native
from .layouts import HEAD, INLINE, ITEMS, SIZES, Fields, are_as_said, fields, number_of, samples, undefined
from .memory import address_of, caller, fetch_add_int32, read_int, read_int32, stack, write_int
from .plain import Ahead, Plain, gradient_of, plain_of

NAMES = 4
"""Words of a row before stride and length of each axis: address, number of axes; of a gradient, dtype as libtorch
numbers it and number of elements, which a tensor that was looked at before keeps."""

MOST_AXES = 60
"""That tensors may have; torch allows 64, and these functions are not asked of more."""

ABSENT = -1
"""In the place of the number of axes, where a parameter has no gradient."""

_SHIM = tuple(f"aoti_torch_get_{what}" for what in ("layout", "data_ptr", "dtype", "numel", "dim", "strides", "sizes"))
_GRAD, _COUNTER = "_ZNK3c1010TensorImpl4gradEv", "_ZN5torch8autograd4impl15version_counterERKN2at6TensorE"
_IS_NEG, _UNDEFINED, _LAZY = "_ZN2at6native6is_negERKNS_6TensorE", "undefined", "lazy"

COMPARE, RENEW, WRITE = 0, 1, 2
"""What to do with rows. The first two are the first word that is compared."""

Function = Callable[..., int]


class Looks(NamedTuple):
    """Functions of addresses, which hold the interpreter's lock.

    Attributes:
        look: `(tensors, count, of_grad, rows, width, how)`: finds a row of `width` words for each of these tensors, of
            what lies in its `.grad` if `of_grad` is 1, or of itself as of a gradient if it is 2. `WRITE` writes all
            rows, `COMPARE` compares with what is there, and `RENEW` compares all but addresses, and writes these. 0
            where something is otherwise or cannot be told: of sparse gradients, which have no address, of those that
            are read with the other sign, of tensors with more axes than there is room for; some of the rows are written
            then. 2 where `RENEW` wrote another address, and else 1.
        hold: `(tensors, count, others, addresses, versions, before)`: whether what lies in `.grad` of each of these
            tensors is the other one, which lies at its address; writes the versions of the others, int64, if there is
            an address to write them to. It is 2, not 1, where each is another version than `before`, if that is given.
        count: `(tensors, count)`: adds one to the version of each, as a write in place does, but of those that
            inference mode made and that have none.
        same: `(left, right)`: whether two lists, by the addresses of these objects, hold the same items.
    """

    look: Function
    hold: Function
    count: Function
    same: Function


def load() -> Looks | None:
    """None in a Python or a torch where any of the above is otherwise."""
    libraries = _libraries()
    if libraries is None or not are_as_said():
        return None
    try:
        layout, _, dtype, *_ = (_address(libraries[0], name) for name in (*_SHIM, _IS_NEG))
        grad, counter = _address(libraries[1], _GRAD), _address(libraries[0], _COUNTER)
    except AttributeError:
        return None
    absent, found = undefined(grad), fields(grad, counter, dtype)
    if absent is None or found is None:
        return None
    llvm.add_symbol(_known(_UNDEFINED), absent)
    llvm.add_symbol(_known(_LAZY), found.lazy)
    sizes = sum(size << 4 * number_of(dtype, torch.zeros(0, dtype=each)) for each, size in SIZES.items())
    found = found._replace(lazy=0)  # an address of this process alone: compiled code is kept for others
    ahead, known = Ahead(found), plain_of(found, sizes, address_of(_known(_LAZY)))
    dense = number_of(layout, torch.zeros(1))
    looks = Looks(_look(dense, found, ahead, known), _hold(found, ahead, known), _count(found, ahead), _same())
    return looks if _is_right(looks) else None


def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL] | None:
    folder = Path(torch.__file__).parent / "lib"
    try:
        return tuple(ctypes.CDLL(str(folder / f"{name}.so"), mode=_LOADED) for name in ("libtorch_cpu", "libc10"))  # type: ignore[return-value]
    except OSError:
        return None


_LOADED = getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_NOW", 0)


def _address(library: ctypes.CDLL, name: str) -> int:
    """That of a function, which compiled code knows from here on."""
    found = ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    llvm.add_symbol(_known(name), found)
    return found


def _known(name: str) -> str:
    return f"flatvars.{name}"


def _look(dense: int, fields: Fields, ahead: Ahead, known: Plain) -> Function:
    layout, data_ptr, dtype, numel, dim, strides, sizes = (address_of(_known(name)) for name in _SHIM)
    is_neg, gradient = address_of(_known(_IS_NEG)), gradient_of(fields, address_of(_known(_UNDEFINED)))
    ask, room = caller([types.int64, types.int64], types.int32), stack(8)
    ask_whether, row_room = caller([types.int64], types.boolean), stack(8 * (NAMES + 2 * MOST_AXES))
    axes, absent, write, inline = NAMES, ABSENT, WRITE, INLINE
    objects, parts, left = ahead.objects, ahead.parts, ahead.left

    @compiled
    def tell(tensor: Any, row: Any, width: Any, answer: Any) -> Any:
        """As libtorch tells it, of any tensor."""
        if ask(data_ptr(), tensor, answer) != 0:
            return False
        write_int(row, 0, read_int(answer, 0))
        ask(dim(), tensor, answer)
        count = read_int(answer, 0)
        write_int(row, 1, count)
        if 2 * count > width - axes:
            return False
        ask(strides(), tensor, answer)
        stride = read_int(answer, 0)
        ask(sizes(), tensor, answer)
        size = read_int(answer, 0)
        for axis in range(count):
            write_int(row, axes + 2 * axis, read_int(stride, axis))
            write_int(row, axes + 2 * axis + 1, read_int(size, axis))
        return True

    @compiled
    def tell_kind(tensor: Any, row: Any, answer: Any) -> Any:
        if ask(layout(), tensor, answer) != 0 or read_int32(answer, 0) != dense or ask_whether(is_neg(), tensor):
            return False
        ask(dtype(), tensor, answer)
        write_int(row, 2, read_int32(answer, 0))
        ask(numel(), tensor, answer)
        write_int(row, 3, read_int(answer, 0))
        return True

    @compiled
    def read(tensor: Any, count: Any, of_grad: Any, row: Any) -> None:
        """The same of a plain one, by its own address."""
        write_int(row, 0, known.address(tensor))
        write_int(row, 1, count)
        if of_grad != 0:
            write_int(row, 2, known.dtype(tensor))
            write_int(row, 3, read_int(tensor, fields.numel))
        for axis in range(count):
            write_int(row, axes + 2 * axis, read_int(tensor, fields.axes + 1 + inline + axis))
            write_int(row, axes + 2 * axis + 1, read_int(tensor, fields.axes + 1 + axis))

    @compiled
    def describe_one(word: Any, of_grad: Any, row: Any, width: Any, answer: Any) -> Any:
        for i in range(axes):
            write_int(row, i, 0)
        if of_grad == 1:
            word = gradient(read_int(word, 0))
            if word == 0:
                write_int(row, 1, absent)
                return True
        tensor = read_int(word, 0)
        count = read_int(tensor, fields.axes)
        if known.is_plain(tensor) and 0 <= count <= inline and 2 * count <= width - axes:
            read(tensor, count, of_grad, row)
            return True
        return (of_grad == 0 or tell_kind(word, row, answer)) and tell(word, row, width, answer)

    @compiled
    def differs(found: Any, known: Any, first: Any) -> Any:
        for word in range(first, axes + 2 * max(0, read_int(found, 1))):
            if read_int(found, word) != read_int(known, word):
                return True
        return False

    def look(tensors: Any, count: Any, of_grad: Any, rows: Any, width: Any, how: Any) -> Any:
        answer, found, result = room(), row_room(), 1
        for i in range(count):
            if of_grad == 1:
                left(tensors, i, count)
            else:
                objects(tensors, i, count)
                parts(tensors, i, count)
            row = rows + 8 * width * i
            if not describe_one(read_int(tensors, i), of_grad, found, width, answer):
                return 0
            if how == write:
                for word in range(axes + 2 * max(0, read_int(found, 1))):
                    write_int(row, word, read_int(found, word))
            elif differs(found, row, how):
                return 0
            elif read_int(found, 0) != read_int(row, 0):
                write_int(row, 0, read_int(found, 0))
                result = 2
        return result

    return _function(look, 6)


def _hold(fields: Fields, ahead: Ahead, known: Plain) -> Function:
    data_ptr, gradient = address_of(_known(_SHIM[1])), gradient_of(fields, address_of(_known(_UNDEFINED)))
    ask, room = caller([types.int64] * 2, types.int32), stack(8)
    objects, parts, counters, grads = ahead.objects, ahead.parts, ahead.version, ahead.grad

    @compiled
    def address_of_other(word: Any, answer: Any) -> Any:
        tensor = read_int(word, 0)
        if known.is_plain(tensor):
            return known.address(tensor)
        return read_int(answer, 0) if ask(data_ptr(), word, answer) == 0 else -1

    def hold(tensors: Any, count: Any, others: Any, addresses: Any, versions: Any, before: Any) -> Any:
        answer, found = room(), 1 if before == 0 or versions == 0 else 2
        for i in range(count):
            objects(tensors, i, count)
            grads(tensors, i, count)
            objects(others, i, count)
            parts(others, i, count)
            if versions != 0:
                counters(others, i, count)
            grad, other = gradient(read_int(read_int(tensors, i), 0)), read_int(others, i)
            if grad == 0 or read_int(grad, 0) != read_int(other, 0):
                return 0
            if address_of_other(other, answer) != read_int(addresses, i):
                return 0
            if versions != 0:
                counter = read_int(read_int(other, 0), fields.version)
                if counter == 0:
                    return 0
                now = read_int32(counter + fields.number, 0)
                write_int(versions, i, now)
                if before != 0 and read_int(before, i) == now:
                    found = 1
        return found

    return _function(hold, 6)


def _count(fields: Fields, ahead: Ahead) -> Function:
    objects, counters = ahead.objects, ahead.version

    def count(tensors: Any, number: Any) -> Any:
        for i in range(number):
            objects(tensors, i, number)
            counters(tensors, i, number)
            counter = read_int(read_int(read_int(tensors, i), 0), fields.version)
            if counter != 0:  # inference mode makes tensors without one
                fetch_add_int32(counter + fields.number, 1)
        return number

    return _function(count, 2)


def _same() -> Function:
    length, items = HEAD // 8, ITEMS // 8

    def same(left: Any, right: Any) -> Any:
        count = read_int(left, length)
        if read_int(right, length) != count:
            return 0
        mine, theirs = read_int(left, items), read_int(right, items)
        for i in range(count):
            if read_int(mine, i) != read_int(theirs, i):
                return 0
        return 1

    return _function(same, 2)


def _function(code: Callable[..., Any], arguments: int) -> Function:
    made = native(code, types.int64(*[types.int64] * arguments))
    return ctypes.PYFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arguments)(made.address)


def words_of(tensors: list[Tensor]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where the words of some tensors are; as long as somebody holds these."""
    return np.fromiter(map(id, tensors), dtype=np.int64, count=len(tensors)) + HEAD


def _is_right(looks: Looks) -> bool:
    """Whether the samples are told as Python tells them."""
    tensors = samples()
    words = words_of(tensors)
    for of_grad in (0, 1, 2):
        rows = np.zeros((len(tensors), NAMES + 4), dtype=np.int64)
        if looks.look(words.ctypes.data, len(words), of_grad, rows.ctypes.data, rows.shape[1], WRITE) != 1:
            return False
        for row, sample in zip(rows.tolist(), tensors, strict=True):
            tensor = sample.grad if of_grad == 1 else sample
            if tensor is None:
                expected = [0, ABSENT, 0, 0, 0, 0, 0, 0]
            else:
                lengths = [number for pair in zip(tensor.stride(), tensor.shape, strict=True) for number in pair]
                kind = [row[2], tensor.numel()] if of_grad else [0, 0]
                expected = [tensor.data_ptr(), tensor.dim(), *kind, *[*lengths, 0, 0, 0, 0][:4]]
            if row != expected:
                return False
    having = [sample for sample in tensors if sample.grad is not None]
    grads = [sample.grad for sample in having if sample.grad is not None]
    places = np.array([grad.data_ptr() for grad in grads])
    versions = np.zeros(len(grads), dtype=np.int64)
    asked = [(words_of(grads), places + 1), (words_of(grads[::-1]), places), (words_of(grads), places)]
    before = np.full(len(grads), -1)
    mine, told = words_of(having).ctypes.data, versions.ctypes.data
    for since, expected in ((None, [0, 0, 1]), (before, [0, 0, 2]), (versions, [0, 0, 1])):
        known = 0 if since is None else since.ctypes.data
        if [
            looks.hold(mine, len(having), others.ctypes.data, at.ctypes.data, told, known) for others, at in asked
        ] != expected:
            return False
    if versions.tolist() != [grad._version for grad in grads]:
        return False
    lists = [tensors, tensors[:], tensors[:-1], [*tensors[:-1], tensors[0]]]
    if [looks.same(id(tensors), id(each)) for each in lists] != [1, 1, 0, 0]:
        return False
    with torch.inference_mode():
        grads.append(torch.zeros(1))
    looks.count(words_of(grads).ctypes.data, len(grads))
    return (versions + 1).tolist() == [grad._version for grad in grads[:-1]]
