"""The one door to the kernels: Triton for GPU tensors, torch for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .errors import FlatvarsError
from .kernels import fills
from .kernels.addresses import all_in_memory_order, in_memory_order
from .kernels.fills import Draw, Fill
from .kernels.lang import HAS_TRITON, INTERPRETED
from .kernels.rules import (
    ADAM,
    ADAMW,
    AMSGRAD,
    AMSGRADW,
    LION,
    RMSPROP,
    RMSPROP_CENTERED,
    RMSPROP_CENTERED_MOMENTUM,
    RMSPROP_MOMENTUM,
    SGD,
    SGD_MOMENTUM,
    Rule,
    rule,
)
from .kernels.segments import Segments, round_up

__all__ = [
    "ADAM",
    "ADAMW",
    "AMSGRAD",
    "AMSGRADW",
    "LION",
    "RMSPROP",
    "RMSPROP_CENTERED",
    "RMSPROP_CENTERED_MOMENTUM",
    "RMSPROP_MOMENTUM",
    "SGD",
    "SGD_MOMENTUM",
    "Draw",
    "Fill",
    "Rule",
    "Segments",
    "all_in_memory_order",
    "backend_for",
    "fill_",
    "fills",
    "in_memory_order",
    "make_plan",
    "round_up",
    "rule",
    "use_backend",
]

_forced: ContextVar[str | None] = ContextVar("flatvars_backend", default=None)


def backend_for(device: torch.device) -> str:
    """Which backend plans made now will use on a device: "triton" on GPUs, else "torch", unless forced.

    Raises:
        FlatvarsError: Triton is needed and not there, or cannot run on the device.
    """
    on_gpu = device.type == "cuda"  # HIP devices carry the same name in torch
    name = _forced.get() or ("triton" if on_gpu else "torch")
    if name == "torch" and on_gpu:
        raise FlatvarsError("the torch backend works on host memory; GPU tensors need the triton backend")
    if name == "triton" and not HAS_TRITON:
        raise FlatvarsError(f"tensors on {device} need Triton, which is not installed: pip install triton")
    if name == "triton" and not on_gpu and not INTERPRETED:
        raise FlatvarsError(
            f"the triton backend runs on {device} only in Triton's interpreter: "
            "set TRITON_INTERPRET=1 before the first import of flatvars"
        )
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces the backend of plans made in this context, for tests: "triton" or "torch"."""
    if name not in ("triton", "torch"):
        raise ValueError(f"backend {name!r} does not exist; use 'triton' or 'torch'")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def make_plan(
    segments: Segments, device: torch.device, norm: Tensor, sums: Tensor, slot: int, frozen: Tensor | None
) -> Any:
    """A plan of the backend for a device; `kernels/plan.py` documents its arguments and methods."""
    if backend_for(device) == "triton":
        from .kernels.plan import Plan
        from .kernels.triton import launches

        return Plan(launches.bind(segments, device, frozen), norm, sums, slot)
    from .kernels.eager.plan import Plan as EagerPlan

    return EagerPlan(segments, device, norm, sums, slot, frozen)


def fill_(stream: Tensor, fills: Sequence[Fill], seed: int) -> None:
    """Writes variables of a stream, [numel] contiguous, each by its draw: one launch on a GPU."""
    if backend_for(stream.device) == "triton":
        from .kernels.triton.fill import fill_ as launch
    else:
        from .kernels.eager.fill import fill_ as launch
    launch(stream, fills, seed)
