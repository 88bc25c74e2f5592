"""What tensors say of themselves, asked of libtorch for a thousand at once, without a turn of Python for each.

A question to a tensor takes Python 40 to 100 ns, and five are needed to know where a gradient lies and how; here, all
five take 15. `kernels/looks.py` says what is asked, and asks nothing where `load` finds a torch it does not know.

What is relied on: behind its head, a Python tensor holds a word that is an `at::Tensor`, the address of its
`TensorImpl`; the functions `aoti_torch_*` of libtorch, whose C interface torch promises to keep, take the address of
such a word, and so do `at::native::_version`, `is_neg` and `is_inference`, and `torch::autograd::impl::bump_version`;
`c10::TensorImpl::grad() const` returns one. `load` compares what it is told in this way with what Python says, first
the word, then each answer.

Nothing is asked by way of torch's dispatcher, which tells profilers and dispatch modes of every question as of an
operator that ran: it takes longer to ask than to answer, and a step would be an operator for each variable.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
import torch
from numba import types
from torch import Tensor, nn

from .compile import compiled, native
from .memory import address_of, caller, prefetch, read_int, read_int32, stack, write_int

HEAD = 16
"""Bytes of a Python object before its own first word: the count of references and the type."""

NAMES = 4
"""Words of a row before the strides: address, number of axes; of a gradient, dtype as libtorch numbers it and number of
elements, which a tensor that was looked at before keeps."""

MOST_AXES = 60
"""That tensors may have; torch allows 64, and these functions are not asked of more."""

ABSENT = -1
"""In the place of the number of axes, where a parameter has no gradient."""

_SHIM = tuple(f"aoti_torch_get_{what}" for what in ("layout", "data_ptr", "dtype", "numel", "dim", "strides"))
_GRAD, _UNDEFINED = "_ZNK3c1010TensorImpl4gradEv", "undefined"
_BUMP, _IS_INFERENCE = (
    "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
    "_ZN2at6native12is_inferenceERKNS_6TensorE",
)
_VERSION, _IS_NEG = "_ZN2at6native8_versionERKNS_6TensorE", "_ZN2at6native6is_negERKNS_6TensorE"

AHEAD = 6
"""Tensors that are asked for before they are needed."""

Function = Callable[..., int]


class Looks(NamedTuple):
    """Functions of addresses, which hold the interpreter's lock.

    Attributes:
        describe: `(tensors, count, of_grad, rows, width)`: writes a row of `width` words for each of these tensors,
            or of what lies in its `.grad`; returns whether all could be told: not of sparse gradients, which have no
            address, nor of those that are read with the other sign, nor of tensors with more axes than there is room
            for.
        compare: The same arguments: whether `describe` would write what is there.
        hold: `(tensors, count, others, addresses, versions)`: whether what lies in `.grad` of each of these tensors is
            the other one, which lies at its address; writes the versions of the others, int64, if there is an address
            to write them to.
        count: `(tensors, count)`: adds one to the version of each, as a write in place does, but of those that
            inference mode made and that have none.
    """

    describe: Function
    compare: Function
    hold: Function
    count: Function


def load() -> Looks | None:
    """None in a Python or a torch where any of the above is otherwise."""
    libraries = _libraries()
    if libraries is None or not _words_are_tensors():
        return None
    try:
        layout, *_ = (_address(libraries[0], name) for name in (*_SHIM, _VERSION, _IS_NEG, _BUMP, _IS_INFERENCE))
        grad = _address(libraries[1], _GRAD)
    except AttributeError:
        return None
    undefined = _undefined(grad)
    if undefined is None:
        return None
    llvm.add_symbol(_known(_UNDEFINED), undefined)
    looks = Looks(*_describers(_layout(layout)), _hold(), _count())
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


def _samples() -> list[Tensor]:
    """Tensors of several kinds, some with a gradient."""
    plain = torch.zeros(4, 3)
    found = [plain, plain[1:], plain.T, plain.detach(), nn.Parameter(plain[2]), torch.zeros(0, 2), torch.tensor(1.0)]
    found += [nn.Parameter(torch.zeros(5, 2, dtype=dtype)) for dtype in (torch.bfloat16, torch.float16, torch.float64)]
    for param in found[-3:]:
        param.grad = torch.ones_like(param)
    found[-2].grad = torch.ones_like(found[-2]).add_(1)  # another version
    found[-1].grad = None  # there was one
    return found


def _words_are_tensors() -> bool:
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    if sys.implementation.name != "cpython" or not has_lock or Tensor.__basicsize__ < HEAD + 8:
        return False
    return all(ctypes.c_int64.from_address(id(t) + HEAD).value == t._cdata for t in _samples())  # type: ignore[attr-defined]


def _undefined(grad: int) -> int | None:
    """The address that stands for no gradient; None if a gradient is found by `grad` elsewhere than by Python."""
    ask = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(grad)
    without, empty, having = nn.Parameter(torch.zeros(1)), torch.zeros(1), nn.Parameter(torch.zeros(1))
    having.grad = torch.ones(1)
    found = [ctypes.c_int64.from_address(ask(t._cdata)).value for t in (without, empty, having)]  # type: ignore[attr-defined]
    return found[0] if found[0] == found[1] and found[2] == having.grad._cdata else None  # type: ignore[attr-defined]


def _describers(strided: int) -> tuple[Function, Function]:
    layout, data_ptr, dtype, numel, dim, strides = (address_of(_known(name)) for name in _SHIM)
    grad, is_neg, undefined = (address_of(_known(name)) for name in (_GRAD, _IS_NEG, _UNDEFINED))
    ask, ask_grad, room = caller([types.int64, types.int64], types.int32), caller([types.int64], types.int64), stack(8)
    ask_whether, row_room = caller([types.int64], types.boolean), stack(8 * (NAMES + MOST_AXES))
    axes, absent = NAMES, ABSENT

    @compiled
    def describe_place(tensor: Any, row: Any, width: Any, answer: Any) -> Any:
        if ask(data_ptr(), tensor, answer) != 0:
            return False
        write_int(row, 0, read_int(answer, 0))
        ask(dim(), tensor, answer)
        count = read_int(answer, 0)
        write_int(row, 1, count)
        if count > width - axes:
            return False
        ask(strides(), tensor, answer)
        stride = read_int(answer, 0)
        for axis in range(count):
            write_int(row, axes + axis, read_int(stride, axis))
        return True

    @compiled
    def describe_kind(tensor: Any, row: Any, answer: Any) -> Any:
        if ask(layout(), tensor, answer) != 0 or read_int32(answer, 0) != strided:
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
        if of_grad != 0:
            tensor = ask_grad(grad(), read_int(tensor, 0))
            if read_int(tensor, 0) == undefined():
                write_int(row, 1, absent)
                return True
            if not describe_kind(tensor, row, answer):
                return False
        told = describe_place(tensor, row, width, answer)
        return told and (of_grad == 0 or not ask_whether(is_neg(), tensor))

    def describe(tensors: Any, count: Any, of_grad: Any, rows: Any, width: Any) -> Any:
        answer = room()
        for i in range(count):
            look_ahead(tensors, i, count)
            if not describe_one(read_int(tensors, i), of_grad, rows + 8 * width * i, width, answer):
                return 0
        return 1

    def compare(tensors: Any, count: Any, of_grad: Any, rows: Any, width: Any) -> Any:
        answer, found = room(), row_room()
        for i in range(count):
            look_ahead(tensors, i, count)
            if not describe_one(read_int(tensors, i), of_grad, found, width, answer):
                return 0
            known = rows + 8 * width * i
            for word in range(axes + max(0, read_int(found, 1))):
                if read_int(found, word) != read_int(known, word):
                    return 0
        return 1

    return _function(describe, 5), _function(compare, 5)


@compiled
def look_ahead(tensors: Any, i: Any, count: Any) -> None:
    """Asks for what the next tensors are: they lie all over memory, and each would be waited for."""
    if i + 2 * AHEAD < count:
        prefetch(read_int(tensors, i + 2 * AHEAD))
    if i + AHEAD < count:
        tensor = read_int(read_int(tensors, i + AHEAD), 0)
        for line in range(3):
            prefetch(tensor + 64 * line)


def _layout(layout: int) -> int:
    """How libtorch numbers the layout of a dense tensor."""
    answer = ctypes.c_int32()
    ask = ctypes.PYFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p)(layout)
    plain = torch.zeros(1)
    ask(id(plain) + HEAD, ctypes.addressof(answer))
    return answer.value


def _hold() -> Function:
    grad, data_ptr, version = (address_of(_known(name)) for name in (_GRAD, _SHIM[1], _VERSION))
    ask_word, ask, room = caller([types.int64], types.int64), caller([types.int64] * 2, types.int32), stack(8)

    def hold(tensors: Any, count: Any, others: Any, addresses: Any, versions: Any) -> Any:
        answer = room()
        for i in range(count):
            look_ahead(tensors, i, count)
            look_ahead(others, i, count)
            tensor, other = read_int(tensors, i), read_int(others, i)
            if read_int(ask_word(grad(), read_int(tensor, 0)), 0) != read_int(other, 0):
                return 0
            if ask(data_ptr(), other, answer) != 0 or read_int(answer, 0) != read_int(addresses, i):
                return 0
            if versions != 0:
                write_int(versions, i, ask_word(version(), other))
        return 1

    return _function(hold, 5)


def _count() -> Function:
    bump, is_inference = address_of(_known(_BUMP)), address_of(_known(_IS_INFERENCE))
    ask, ask_whether = caller([types.int64]), caller([types.int64], types.boolean)

    def count(tensors: Any, number: Any) -> Any:
        for i in range(number):
            look_ahead(tensors, i, number)
            if not ask_whether(is_inference(), read_int(tensors, i)):
                ask(bump(), read_int(tensors, i))
        return number

    return _function(count, 2)


def _function(code: Callable[..., Any], arguments: int) -> Function:
    made = native(code, types.int64(*[types.int64] * arguments))
    return ctypes.PYFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arguments)(made.address)


def words_of(tensors: list[Tensor]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where the words of some tensors are; as long as somebody holds these."""
    return np.fromiter(map(id, tensors), dtype=np.int64, count=len(tensors)) + HEAD


def _is_right(looks: Looks) -> bool:
    """Whether the samples are told as Python tells them."""
    samples = _samples()
    words = words_of(samples)
    for of_grad in (False, True):
        rows = np.zeros((len(samples), NAMES + 2), dtype=np.int64)
        if looks.describe(words.ctypes.data, len(words), of_grad, rows.ctypes.data, rows.shape[1]) != 1:
            return False
        for row, sample in zip(rows.tolist(), samples, strict=True):
            tensor = sample.grad if of_grad else sample
            if tensor is None:
                expected = [0, ABSENT, 0, 0, 0, 0]
            else:
                strides = (*tensor.stride(), 0, 0)[:2]
                kind = [row[2], tensor.numel()] if of_grad else [0, 0]
                expected = [tensor.data_ptr(), tensor.dim(), *kind, *strides]
            if row != expected:
                return False
    having = [sample for sample in samples if sample.grad is not None]
    grads = [sample.grad for sample in having if sample.grad is not None]
    places = np.array([grad.data_ptr() for grad in grads])
    versions = np.zeros(len(grads), dtype=np.int64)
    others, moved, swapped = words_of(grads), places + 1, words_of(grads[::-1])
    answers = [
        looks.hold(words_of(having).ctypes.data, len(having), others.ctypes.data, at.ctypes.data, versions.ctypes.data)
        for others, at in ((others, moved), (swapped, places), (others, places))
    ]
    if answers != [0, 0, 1] or versions.tolist() != [grad._version for grad in grads]:
        return False
    with torch.inference_mode():
        grads.append(torch.zeros(1))
    looks.count(words_of(grads).ctypes.data, len(grads))
    return (versions + 1).tolist() == [grad._version for grad in grads[:-1]]
