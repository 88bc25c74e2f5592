"""The one door to the kernels: Triton's for GPU tensors, Numba's for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from .errors import FlatvarsError
from .kernels import fills
from .kernels.addresses import CODE_OF, EMPTY, Sources, all_in_memory_order, in_memory_order
from .kernels.fills import Draw, Fill
from .kernels.formats import (
    CORRECTED,
    SPLIT,
    STATE_FORMATS,
    STOCHASTIC,
    Format,
    FormatPart,
    Stored,
    is_rounded,
    state_format_of,
)
from .kernels.hyper import is_fixed_group
from .kernels.lang import HAS_TRITON, INTERPRETED
from .kernels.launches import Again, Compiler
from .kernels.looks import FEWEST, Looks, are_same
from .kernels.plan import Plan, Stage
from .kernels.rules import (
    ADADELTA,
    ADAFACTOR,
    ADAFACTOR_GRADIENT,
    ADAGRAD,
    ADAM,
    ADAMAX,
    ADAMW,
    ADAN,
    ADEMAMIX,
    ADOPT,
    AMSGRAD,
    AMSGRADW,
    ASGD,
    ASIDE,
    AVERAGE,
    BEGIN,
    EXCHANGE,
    GRAMS,
    LAMB,
    LARS,
    LION,
    MARS,
    MUON,
    MUON_APPLY,
    MUON_DIRECTION,
    NADAM,
    OBSERVED,
    PRODIGY,
    PUT_BACK,
    RADAM,
    RMSPROP,
    RMSPROP_CENTERED,
    RMSPROP_CENTERED_MOMENTUM,
    RMSPROP_MOMENTUM,
    RPROP,
    SCHEDULE_FREE_ADAMW,
    SCHEDULE_FREE_SGD,
    SCHEDULES,
    SET_ASIDE,
    SGD,
    SGD_MOMENTUM,
    STABLE_ADAMW,
    TO_X,
    TO_Y,
    UPDATES,
    VALUE,
    Rule,
    Scalars,
    Statistics,
    averaged,
    cautious_updates,
    rule,
    scalars,
    statistics,
    with_decay,
)
from .kernels.segments import UNIT, Segments, round_up, unit_counts

__all__ = [
    "ADADELTA",
    "ADAFACTOR",
    "ADAFACTOR_GRADIENT",
    "ADAGRAD",
    "ADAM",
    "ADAMAX",
    "ADAMW",
    "ADAN",
    "ADEMAMIX",
    "ADOPT",
    "AMSGRAD",
    "AMSGRADW",
    "ASGD",
    "ASIDE",
    "AVERAGE",
    "BEGIN",
    "CODE_OF",
    "CORRECTED",
    "EMPTY",
    "EXCHANGE",
    "FEWEST",
    "GRAMS",
    "LAMB",
    "LARS",
    "LION",
    "MARS",
    "MUON",
    "MUON_APPLY",
    "MUON_DIRECTION",
    "NADAM",
    "OBSERVED",
    "PRODIGY",
    "PUT_BACK",
    "RADAM",
    "RMSPROP",
    "RMSPROP_CENTERED",
    "RMSPROP_CENTERED_MOMENTUM",
    "RMSPROP_MOMENTUM",
    "RPROP",
    "SCHEDULES",
    "SCHEDULE_FREE_ADAMW",
    "SCHEDULE_FREE_SGD",
    "SET_ASIDE",
    "SGD",
    "SGD_MOMENTUM",
    "SPLIT",
    "STABLE_ADAMW",
    "STATE_FORMATS",
    "STOCHASTIC",
    "TO_X",
    "TO_Y",
    "UNIT",
    "UPDATES",
    "VALUE",
    "Again",
    "Draw",
    "Fill",
    "Format",
    "FormatPart",
    "Looks",
    "Rule",
    "Scalars",
    "Segments",
    "Sources",
    "Stage",
    "Statistics",
    "Stored",
    "all_in_memory_order",
    "are_same",
    "averaged",
    "backend_for",
    "cautious_updates",
    "fill_",
    "fills",
    "in_memory_order",
    "is_fixed_group",
    "is_rounded",
    "make_plan",
    "round_up",
    "rule",
    "scalars",
    "state_format_of",
    "statistics",
    "unit_counts",
    "use_backend",
    "with_decay",
]

_forced: ContextVar[str | None] = ContextVar("flatvars_backend", default=None)


def backend_for(device: torch.device) -> str:
    """Which backend plans made now will use on a device: "triton" on GPUs, "cpu" on host memory, unless forced.

    Raises:
        FlatvarsError: Triton is needed and not there, or cannot run on the device; no kernels exist for the device.
    """
    on_gpu = device.type == "cuda"  # HIP devices carry the same name in torch
    if not on_gpu and device.type != "cpu":
        raise FlatvarsError(
            f"flatvars has kernels for CUDA and HIP GPUs and for CPUs, none for {device.type!r}; move the module to "
            "one of those devices first"
        )
    name = _forced.get() or ("triton" if on_gpu else "cpu")
    if name == "cpu" and on_gpu:
        raise FlatvarsError("the cpu backend works on host memory; GPU tensors need the triton backend")
    if name == "triton" and not HAS_TRITON:
        raise FlatvarsError(f"tensors on {device} need Triton, which is not installed: pip install triton")
    if name == "triton" and not on_gpu and not INTERPRETED:
        raise FlatvarsError(
            f"the triton backend runs on {device} only in Triton's interpreter: "
            "set TRITON_INTERPRET=1 before the first import of flatvars"
        )
    return name


def _compiler(device: torch.device) -> Compiler:
    """The package of kernels for a device, imported when it is first needed."""
    if backend_for(device) == "triton":
        from .kernels.triton import launches as triton_launches

        return triton_launches
    from .kernels.cpu import launches as cpu_launches

    return cpu_launches


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces the backend of plans made in this context, for tests: "triton" or "cpu"."""
    if name not in ("triton", "cpu"):
        raise ValueError(f"backend {name!r} does not exist; use 'triton' or 'cpu'")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def make_plan(
    segments: Segments, device: torch.device, norm: Tensor, sums: Tensor, slot: int, frozen: Tensor | None
) -> Plan:
    """A plan of the backend for a device; `kernels/plan.py` documents its arguments and methods."""
    return Plan(_compiler(device).bind(segments, device, frozen), norm, sums, slot)


def fill_(stream: Tensor, fills: Sequence[Fill], seed: int) -> None:
    """Writes variables of a stream, [numel] contiguous, each by its draw: one launch."""
    _compiler(stream.device).fill(stream, fills, seed)
