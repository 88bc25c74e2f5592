"""Whether Triton is here, and the two lives of a device function.

This is the only module of the library that asks. With Triton, `device_function` is `triton.jit` and `tl` is
`triton.language`. Without it, `tl` is `EagerMath`, the same names over torch, so that a rule can be written, imported
and run on any machine. `eager_twin` gives, in both cases, the function as plain Python over torch tensors.
"""

from __future__ import annotations

import functools
import math
import os
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class EagerMath:
    """The names of `triton.language` that a rule may use, over torch tensors, NumPy arrays and Python floats."""

    @staticmethod
    def sqrt_rn(x: Any) -> Any:
        # torch's goes through MKL on x86, off by an ulp once in 150 float32; so are torch.optim's results, which rules
        # follow. NumPy's is the processor's: what must be bit-equal to a GPU runs on arrays.
        if isinstance(x, np.ndarray):
            return np.sqrt(x)
        return torch.sqrt(x) if isinstance(x, torch.Tensor) else math.sqrt(x)

    @staticmethod
    def div_rn(x: Any, y: Any) -> Any:
        return x / y

    @staticmethod
    def exp(x: Any) -> Any:
        return torch.exp(x) if isinstance(x, torch.Tensor) else math.exp(x)

    @staticmethod
    def log(x: Any) -> Any:
        return torch.log(x) if isinstance(x, torch.Tensor) else math.log(x)

    @staticmethod
    def abs(x: Any) -> Any:
        return abs(x)

    @staticmethod
    def where(condition: Any, x: Any, y: Any) -> Any:
        if isinstance(condition, torch.Tensor):
            return torch.where(condition, x, y)
        if isinstance(condition, np.ndarray):
            return np.where(condition, x, y)
        return x if condition else y

    @staticmethod
    def maximum(x: Any, y: Any) -> Any:
        if isinstance(x, np.ndarray):
            return np.maximum(x, y)
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return torch.maximum(x, y)
        if isinstance(x, torch.Tensor):
            return x.clamp(min=y)
        return y.clamp(min=x) if isinstance(y, torch.Tensor) else max(x, y)

    @staticmethod
    def minimum(x: Any, y: Any) -> Any:
        return -EagerMath.maximum(-x, -y)


def eager_sign(x: Any) -> Any:
    """The twin of `sign`, over torch tensors and Python floats."""
    if not isinstance(x, torch.Tensor):
        return x if math.isnan(x) or x == 0.0 else math.copysign(1.0, x)
    # Comparing and choosing are the slowest operators there are on a CPU. The smallest number times these is above 1,
    # and clamp lets NaN through.
    large = 2.0**600 if x.dtype == torch.float64 else 2.0**80
    return ((x * large) * large).clamp(-1.0, 1.0)


def eager_split_exponent(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The twin of `split_exponent`, over float32 arrays."""
    bits = x.view(np.int32) - 0x3F3504F3
    mantissa = ((bits & 0x7FFFFF) + 0x3F3504F3).view(np.float32)
    return mantissa, (bits >> 23).astype(np.float32)


try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:
    triton: Any = None  # type: ignore[no-redef]
    tl: Any = EagerMath  # type: ignore[no-redef]
    HAS_TRITON = False

if HAS_TRITON:

    @triton.jit
    def sqrt_rn(x):  # type: ignore[no-untyped-def]
        """IEEE square root of any width; `tl.sqrt_rn` takes float32 alone, and `tl.sqrt` is exact in float64."""
        if x.dtype == tl.float64:
            root = tl.sqrt(x)
        else:
            root = tl.sqrt_rn(x)
        return root

    @triton.jit
    def div_rn(x, y):  # type: ignore[no-untyped-def]
        """IEEE quotient of any width."""
        if x.dtype == tl.float64:
            quotient = x / y
        else:
            quotient = tl.div_rn(x, y)
        return quotient

    @triton.jit
    def sign(x):  # type: ignore[no-untyped-def]
        """-1, 0 or 1; NaN of NaN."""
        return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))

    @triton.jit
    def split_exponent(x):  # type: ignore[no-untyped-def]
        """x = mantissa * 2^exponent of a normal positive float32, mantissa in [sqrt(1/2), sqrt(2)), both float32."""
        bits = x.to(tl.int32, bitcast=True) - 0x3F3504F3
        mantissa = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
        return mantissa, (bits >> 23).to(tl.float32)

else:
    sqrt_rn = EagerMath.sqrt_rn
    div_rn = EagerMath.div_rn
    sign = eager_sign
    split_exponent = eager_split_exponent

# Triton reads the same variable when a kernel is decorated: the kernels of this process then run on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def device_function(function: Callable[..., Any]) -> Any:
    """Makes `function` callable from a Triton kernel; without Triton, returns it as it is.

    The body may use its arguments, arithmetic, comparisons, tuples, other device functions, and of `tl` the names of
    `EagerMath`: then `eager_twin` runs it on torch tensors as well.
    """
    return triton.jit(function) if HAS_TRITON else function


@functools.cache
def eager_twin(function: Any) -> Callable[..., Any]:
    """Returns a device function as plain Python over torch tensors: same code, with `tl` and its callees replaced."""
    plain = getattr(function, "fn", function)
    names = {name: _eager_value(value) for name, value in plain.__globals__.items() if name in plain.__code__.co_names}
    twin = types.FunctionType(plain.__code__, {**plain.__globals__, **names}, plain.__name__, plain.__defaults__)
    twin.__doc__ = plain.__doc__
    return twin


def _eager_value(value: Any) -> Any:
    if value is tl:
        return EagerMath
    if value is sqrt_rn:
        return EagerMath.sqrt_rn
    if value is div_rn:
        return EagerMath.div_rn
    if value is sign:
        return eager_sign
    if value is split_exponent:
        return eager_split_exponent
    if hasattr(value, "fn") and isinstance(value.fn, types.FunctionType):  # a triton.jit function
        return eager_twin(value)
    if HAS_TRITON and isinstance(value, tl.constexpr):
        return value.value
    return value
