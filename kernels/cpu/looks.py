"""What tensors say of themselves, asked of libtorch for a thousand at once, without a turn of Python for each.

A question to a tensor takes Python 40 to 100 ns, and five are needed to know where a gradient lies and how; here, all
five take 15. `kernels/looks.py` says what is asked, and asks nothing where `load` finds a torch it does not know.

What is relied on: behind its head, a Python tensor holds a word that is an `at::Tensor`, the address of its
`TensorImpl` (`layouts.py`); the functions `aoti_torch_*` of libtorch, whose C interface torch promises to keep, take
the address of such a word, and so do `at::native::_version`, `is_neg` and `is_inference`, and
`torch::autograd::impl::bump_version`; `c10::TensorImpl::grad() const` returns one. `load` compares what it is told in
this way with what Python says, first the word, then each answer.

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
from .layouts import HEAD, ITEMS, Parts, are_as_said, parts, samples, strided, undefined
from .memory import address_of, caller, prefetch, read_int, read_int32, stack, write_int

NAMES = 4
"""Words of a row before stride and length of each axis: address, number of axes; of a gradient, dtype as libtorch
numbers it and number of elements, which a tensor that was looked at before keeps."""

MOST_AXES = 60
"""That tensors may have; torch allows 64, and these functions are not asked of more."""

ABSENT = -1
"""In the place of the number of axes, where a parameter has no gradient."""

_SHIM = tuple(f"aoti_torch_get_{what}" for what in ("layout", "data_ptr", "dtype", "numel", "dim", "strides", "sizes"))
_GRAD, _UNDEFINED = "_ZNK3c1010TensorImpl4gradEv", "undefined"
_BUMP, _IS_INFERENCE = (
    "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
    "_ZN2at6native12is_inferenceERKNS_6TensorE",
)
_COUNTER = "_ZN5torch8autograd4impl15version_counterERKN2at6TensorE"
_VERSION, _IS_NEG = "_ZN2at6native8_versionERKNS_6TensorE", "_ZN2at6native6is_negERKNS_6TensorE"

COMPARE, RENEW, WRITE = 0, 1, 2
"""What to do with rows. The first two are the first word that is compared."""

AHEAD = 4
"""Tensors that are looked at while what the next ones consist of is on its way from memory."""

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
        layout, *_ = (_address(libraries[0], name) for name in (*_SHIM, _VERSION, _IS_NEG, _BUMP, _IS_INFERENCE))
        grad, counter = _address(libraries[1], _GRAD), _address(libraries[0], _COUNTER)
    except AttributeError:
        return None
    absent, found = undefined(grad), parts(grad, counter)
    if absent is None or found is None:
        return None
    llvm.add_symbol(_known(_UNDEFINED), absent)
    ahead = _looker_ahead(found)
    looks = Looks(_look(strided(layout), ahead), _hold(ahead), _count(ahead), _same())
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


def _look(dense: int, ahead: Any) -> Function:
    layout, data_ptr, dtype, numel, dim, strides, sizes = (address_of(_known(name)) for name in _SHIM)
    grad, is_neg, undefined = (address_of(_known(name)) for name in (_GRAD, _IS_NEG, _UNDEFINED))
    ask, ask_grad, room = caller([types.int64, types.int64], types.int32), caller([types.int64], types.int64), stack(8)
    ask_whether, row_room = caller([types.int64], types.boolean), stack(8 * (NAMES + 2 * MOST_AXES))
    axes, absent, write = NAMES, ABSENT, WRITE

    @compiled
    def describe_place(tensor: Any, row: Any, width: Any, answer: Any) -> Any:
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
    def describe_kind(tensor: Any, row: Any, answer: Any) -> Any:
        if ask(layout(), tensor, answer) != 0 or read_int32(answer, 0) != dense:
            return False
        ask(dtype(), tensor, answer)
        write_int(row, 2, read_int32(answer, 0))
        ask(numel(), tensor, answer)
        write_int(row, 3, read_int(answer, 0))
        return True

    @compiled
    def describe_one(tensor: Any, of_grad: Any, row: Any, width: Any, answer: Any) -> Any:
        for i in range(axes):
            write_int(row, i, 0)
        if of_grad == 1:
            tensor = ask_grad(grad(), read_int(tensor, 0))
            if read_int(tensor, 0) == undefined():
                write_int(row, 1, absent)
                return True
        if of_grad != 0 and not describe_kind(tensor, row, answer):
            return False
        told = describe_place(tensor, row, width, answer)
        return told and (of_grad == 0 or not ask_whether(is_neg(), tensor))

    @compiled
    def differs(found: Any, known: Any, first: Any) -> Any:
        for word in range(first, axes + 2 * max(0, read_int(found, 1))):
            if read_int(found, word) != read_int(known, word):
                return True
        return False

    def look(tensors: Any, count: Any, of_grad: Any, rows: Any, width: Any, how: Any) -> Any:
        answer, found, result = room(), row_room(), 1
        for i in range(count):
            ahead(tensors, i, count, of_grad)
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


def _looker_ahead(parts: Parts) -> Any:
    """`ahead(tensors, i, count, of_grad)`: asks memory for what the next tensors are, and in turn for what these name.

    They lie all over memory, and so does all that each consists of; every one would be waited for.
    """
    storage, version, beside, to_grad = parts

    @compiled
    def fetch_tensor(tensor: Any) -> None:
        for line in range(3):
            prefetch(tensor + 64 * line)

    @compiled
    def ahead(tensors: Any, i: Any, count: Any, of_grad: Any) -> None:
        if i + 4 * AHEAD < count:
            prefetch(read_int(tensors, i + 4 * AHEAD))
        if i + 3 * AHEAD < count:
            fetch_tensor(read_int(read_int(tensors, i + 3 * AHEAD), 0))
        if i + 2 * AHEAD < count:
            tensor = read_int(read_int(tensors, i + 2 * AHEAD), 0)
            prefetch(read_int(tensor, storage))
            prefetch(read_int(tensor, version))
            prefetch(read_int(tensor, beside))
        if of_grad == 1 and i + AHEAD < count:
            kept = read_int(read_int(read_int(tensors, i + AHEAD), 0), beside)
            if kept != 0:
                fetch_tensor(read_int(kept + to_grad, 0))

    return ahead


def _hold(ahead: Any) -> Function:
    grad, data_ptr, version = (address_of(_known(name)) for name in (_GRAD, _SHIM[1], _VERSION))
    ask_word, ask, room = caller([types.int64], types.int64), caller([types.int64] * 2, types.int32), stack(8)

    def hold(tensors: Any, count: Any, others: Any, addresses: Any, versions: Any, before: Any) -> Any:
        answer, found = room(), 1 if before == 0 or versions == 0 else 2
        for i in range(count):
            ahead(tensors, i, count, 0)
            ahead(others, i, count, 0)
            tensor, other = read_int(tensors, i), read_int(others, i)
            if read_int(ask_word(grad(), read_int(tensor, 0)), 0) != read_int(other, 0):
                return 0
            if ask(data_ptr(), other, answer) != 0 or read_int(answer, 0) != read_int(addresses, i):
                return 0
            if versions != 0:
                now = ask_word(version(), other)
                write_int(versions, i, now)
                if before != 0 and read_int(before, i) == now:
                    found = 1
        return found

    return _function(hold, 6)


def _count(ahead: Any) -> Function:
    bump, is_inference = address_of(_known(_BUMP)), address_of(_known(_IS_INFERENCE))
    ask, ask_whether = caller([types.int64]), caller([types.int64], types.boolean)

    def count(tensors: Any, number: Any) -> Any:
        for i in range(number):
            ahead(tensors, i, number, 0)
            if not ask_whether(is_inference(), read_int(tensors, i)):
                ask(bump(), read_int(tensors, i))
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
