"""The launches of a plan, caught before they run: what `compiled.py` compiles."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch

from flatvars.kernels.launch import PROGRAMS_PER_MULTIPROCESSOR, TILE

from .compiled import Captured, captured
from .memory import in_poison
from .rig import Rig
from .rules import Case

# Of an H100. A plan of that many tiles uses them all, so the reduction over programs is the one that would run.
MULTIPROCESSORS = 132
PROGRAMS = MULTIPROCESSORS * PROGRAMS_PER_MULTIPROCESSOR
SMALL = [(5000,), (31,)]


def _grads(rig: Rig, source: torch.dtype | None, shift: int, mixed: bool) -> list[Any]:
    grads = [in_poison(grad, shift) for grad in rig.random_grads(source)]
    if mixed:
        grads[0] = grads[0].to(torch.bfloat16 if grads[0].dtype != torch.bfloat16 else torch.float32)
    return grads


def step_launch(
    case: Case,
    dtype: torch.dtype = torch.float32,
    *,
    source: torch.dtype | None = None,
    shift: int = 0,
    mixed: bool = False,
    state_dtype: torch.dtype | None = None,
    max_norm: float | None = 1.0,
    skip: bool = True,
    scaled: bool = False,
) -> Captured:
    """A step from gradients of one dtype (`source`, the values' if not given), misaligned for `shift`, or `mixed`.

    Args:
        scaled: By a GradScaler.
    """
    rig = Rig(SMALL, dtype, rule=case.rule, state_dtype=state_dtype, fill=False)
    sources = rig.plan.scattered(_grads(rig, source, shift, mixed))
    states = [state.stream for state in rig.states]
    options = {"norm": rig.norm, "max_norm": max_norm, "skip": skip, "skipped": rig.skipped}
    if scaled:
        options |= {"grad_scale": torch.ones(()), "found_inf": torch.zeros(())}
    return captured(lambda: rig.plan.step_(sources, case.rule, rig.values.stream, states, [case.group], **options))


def accumulate_launch(
    mode: str, dtype: torch.dtype = torch.float32, *, source: torch.dtype | None = None, shift: int = 0
) -> Captured:
    """Mode "overwrite", "add" or "norm"."""
    with patch("flatvars.kernels.plan.program_limit", return_value=PROGRAMS):
        rig = Rig([(PROGRAMS * TILE.block,)], dtype, fill=False)
    grads = _grads(rig, source, shift, mixed=False)
    if mode == "norm":
        return captured(lambda: rig.plan.norm_(rig.plan.scattered(grads)))
    return captured(lambda: rig.accumulate(grads, 0.5, add=mode == "add"))


def norms_launch(
    order: float, dtype: torch.dtype = torch.float32, *, values: bool = True, grads: bool = True
) -> Captured:
    """Norms of every variable."""
    rig = Rig(SMALL, dtype, fill=False)
    sources = rig.plan.scattered(rig.random_grads()) if grads else None
    return captured(lambda: rig.plan.variable_norms(rig.values.stream if values else None, sources, order))
