"""A device function as a function of Triton: the same source, in which `tl` and its callees are Triton's.

Triton compiles a function with the globals that it finds by its name. So a twin is the function once more, with globals
of its own: the primitives of `kernels.lang` as written below, other device functions as their twins, numbers as
constants.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CellType, FunctionType, ModuleType
from typing import Any

import triton
import triton.language as tl

from .. import lang
from ..errors import RuleError
from ..lang import PRIMITIVES, WORDS, is_device_function, is_words, used_names


@triton.jit
def sqrt_rn(x):
    """IEEE square root of any width; `tl.sqrt_rn` takes float32 alone, and `tl.sqrt` is exact in float64."""
    if x.dtype == tl.float64:
        root = tl.sqrt(x)
    else:
        root = tl.sqrt_rn(x)
    return root


@triton.jit
def div_rn(x, y):
    """IEEE quotient of any width; either may be a plain number."""
    if (x + y).dtype == tl.float64:
        quotient = x / y
    else:
        quotient = tl.div_rn(x, y)
    return quotient


@triton.jit
def where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def nearest(x):
    """Adding a number whose last bit is 1 rounds to integers."""
    if x.dtype == tl.float64:
        rounded = (x + 6755399441055744.0) - 6755399441055744.0
    else:
        rounded = (x + 12582912.0) - 12582912.0
    return rounded


@triton.jit
def power_of_two(n):
    if n.dtype == tl.float64:
        kept = tl.where(n < 1023.0, n, 1023.0)
        kept = tl.where(kept > -1022.0, kept, -1022.0)
        power = ((kept.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        kept = tl.where(n < 127.0, n, 127.0)
        kept = tl.where(kept > -126.0, kept, -126.0)
        power = ((kept.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return power


@triton.jit
def split_exponent(x):
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True) - 0x3FE6A09E667F3BCD
        mantissa = ((bits & 0xFFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).to(tl.float64, bitcast=True)
        exponent = (bits >> 52).to(tl.float64)
    else:
        bits = x.to(tl.int32, bitcast=True) - 0x3F3504F3
        mantissa = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
        exponent = (bits >> 23).to(tl.float32)
    return mantissa, exponent


@functools.cache
def twin(function: Callable[..., Any]) -> Any:
    """The device function, for kernels and other twins to call."""
    if function in PRIMITIVES:
        return globals()[function.__name__]
    names = {name: _replaced(function, name, value) for name, value in used_names(function).items()}
    plain: Any = function
    # The interpreter looks for `triton.language` among the globals, whatever it is called.
    space = {"__name__": plain.__module__, "triton_language": tl, **names}
    cells = tuple(CellType(names[name]) for name in plain.__code__.co_freevars)
    copy = FunctionType(plain.__code__, space, plain.__name__, plain.__defaults__, cells or None)
    copy.__module__, copy.__qualname__, copy.__doc__ = plain.__module__, plain.__qualname__, plain.__doc__
    return triton.jit(copy)


@functools.cache
def _words() -> ModuleType:
    module = ModuleType("flatvars_words")
    for name in WORDS:
        setattr(module, name, twin(getattr(lang.tl, name)))
    return module


def _replaced(function: Callable[..., Any], name: str, value: Any) -> Any:
    if is_words(value):
        return _words()
    if is_device_function(value) or value in PRIMITIVES:
        return twin(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return tl.constexpr(value)
    kind = type(value).__name__
    raise RuleError(
        function,
        None,
        f"{name!r} is {kind}, neither a number nor a device function",
        "decorate it with device_function",
    )
