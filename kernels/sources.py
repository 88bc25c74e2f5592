"""Gradients as kernels want them: one dense run of memory per variable, in the variable's own order."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from .errors import GradientError

# Codes of the table that kernels read; the position is the code.
SOURCE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_DTYPES, _STRIDED = frozenset(SOURCE_DTYPES), frozenset({torch.strided})
_dtype, _layout, _shape = attrgetter("dtype"), attrgetter("layout"), attrgetter("shape")


def in_memory_order(name: str, grad: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Returns `grad` as dense memory with strides `stride`: itself where it is so already, else a copy.

    Args:
        name: Of the variable, for the message.
        grad: Gradient, [shape], of a floating dtype; sparse gradients are made dense.

    Raises:
        GradientError: wrong shape, or a dtype that is not floating.
    """
    if tuple(grad.shape) != shape:
        raise GradientError(
            f"the gradient of {name!r} has shape {tuple(grad.shape)}, but the variable has shape {shape}; "
            "assign a gradient of the variable's shape, or None"
        )
    if grad.dtype not in SOURCE_DTYPES:
        raise GradientError(
            f"the gradient of {name!r} has dtype {grad.dtype}; float32, bfloat16, float16 or float64 is needed"
        )
    if grad.layout != torch.strided:
        grad = grad.to_dense()
    grad = grad.resolve_neg()
    if same_order(grad.shape, grad.stride(), stride):
        return grad
    return torch.empty_strided(shape, stride, dtype=grad.dtype, device=grad.device).copy_(grad)


def all_in_memory_order(grads: Sequence[Tensor], shapes: list[tuple[int, ...]], strides: list[tuple[int, ...]]) -> bool:
    """Whether `in_memory_order` would return every one of these gradients as it is: a few loops in C.

    False also for strides that differ in axes of length 1 alone, which only a look at each can tell.
    """
    return (
        _STRIDED.issuperset(map(_layout, grads))
        and _DTYPES.issuperset(map(_dtype, grads))
        and list(map(_shape, grads)) == shapes
        and list(map(Tensor.stride, grads)) == strides
        and not any(map(Tensor.is_neg, grads))
    )


def same_order(shape: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    """Whether two strides of one shape address the same memory; axes of length 1 or 0 do not matter."""
    return left == right or 0 in shape or all(a == b for n, a, b in zip(shape, left, right, strict=True) if n > 1)


def flat(grad: Tensor) -> Tensor:
    """The memory of a dense tensor as [numel], whatever the order of its axes."""
    return grad.as_strided((grad.numel(),), (1,))
