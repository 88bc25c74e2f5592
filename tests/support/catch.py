"""The launches of a plan, caught before they run: what `compiled.py` compiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flatvars.kernels.fills import CONSTANT, NORMAL, Draw, Fill
from flatvars.kernels.formats import Stored
from flatvars.kernels.rules import OBSERVED
from flatvars.kernels.triton.fill import fill_

from .compiled import Captured, captured, captured_all
from .memory import in_poison
from .rig import Rig, Shape
from .rules import Case

SMALL = [(50_000,), (31,)]
# A stream of masks is there, whatever it says.
MASKS = [None, None]


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
    masked: bool = False,
    scaled: bool = False,
    viewed: bool = False,
    drawn: bool = False,
    shapes: Sequence[Shape] = SMALL,
    statistics: bool = False,
    observed: bool = False,
    placed: bool = False,
    clear: bool = False,
) -> Captured:
    """A step from gradients of one dtype (`source`, the values' if not given), misaligned for `shift`, or `mixed`.

    Args:
        shapes: Of the variables: their sizes decide the block.
        viewed: From views of the stream.
        masked: Some elements do not train.
        scaled: By a GradScaler.
        drawn: States in bfloat16 are rounded at random, where the rule says so.
        statistics: The launch before it, of a rule that has one.
        observed: It tells of its variables.
        placed: Values lie at an address for each variable.
        clear: Gradients of views become -0.0.
    """
    rig = Rig(
        shapes,
        dtype,
        rule=case.rule,
        state_dtype=state_dtype,
        masks=MASKS if masked else None,
        fill=False,
        backend="triton",
    )
    stream = rig.grads.stream if source is None else rig.grads.stream.to(source)
    sources = rig.plan.viewed(stream) if viewed else rig.plan.scattered(_grads(rig, source, shift, mixed))
    states = [state.stream for state in rig.states]
    options: dict[str, Any] = {
        "steps": rig.steps,
        "norm": rig.norm,
        "max_norm": max_norm,
        "skip": skip,
        "skipped": rig.skipped,
        "own": rig.own,
        "clear": clear,
    }
    if observed:
        options["observed"] = torch.zeros((len(shapes), len(OBSERVED)), dtype=torch.float64)
    if drawn:
        options["keys"] = torch.zeros(1 + len(shapes), dtype=torch.int64)
    if scaled:
        options |= {"grad_scale": torch.ones(()), "found_inf": torch.zeros(())}
    values = rig.values.stream
    if placed:
        values = Stored(torch.empty(0, dtype=dtype), places=torch.zeros(len(shapes), dtype=torch.int64))
    launches = captured_all(
        lambda: rig.plan.step_(sources, case.rule, values, states, [case.group], **options),
        1 if case.rule.statistics is None else 2,
    )
    return launches[0 if statistics else -1]


def accumulate_launch(
    mode: str,
    dtype: torch.dtype = torch.float32,
    *,
    source: torch.dtype | None = None,
    shift: int = 0,
    masked: bool = False,
    viewed: bool = False,
    shapes: Sequence[Shape] = SMALL[:1],
) -> Captured:
    """Mode "overwrite", "add" or "norm"; of views, if `viewed`."""
    rig = Rig(shapes, dtype, masks=[None] if masked else None, fill=False, backend="triton")
    if viewed:
        return captured(lambda: rig.plan.norm_(rig.plan.viewed(rig.grads.stream)))
    grads = _grads(rig, source, shift, mixed=False)
    if mode == "norm":
        return captured(lambda: rig.plan.norm_(rig.plan.scattered(grads)))
    return captured(lambda: rig.accumulate(grads, 0.5, add=mode == "add"))


def norms_launch(
    order: float,
    dtype: torch.dtype = torch.float32,
    *,
    values: bool = True,
    grads: bool = True,
    masked: bool = False,
) -> Captured:
    """Norms of every variable."""
    rig = Rig(SMALL, dtype, masks=MASKS if masked else None, fill=False, backend="triton")
    sources = rig.plan.scattered(rig.random_grads()) if grads else None
    return captured(lambda: rig.plan.variable_norms(rig.values.stream if values else None, sources, order))


def fill_launch(dtype: torch.dtype = torch.float32, *, permuted: bool = False) -> Captured:
    """An initialization; `permuted` variables lie in another order than that of their indices."""
    fills = [
        Fill(0, (50, 100), (100, 1), Draw(NORMAL, (0.0, 1.0)), 5, 0, 5000),
        Fill(5008, (4, 6), (1, 4) if permuted else (6, 1), Draw(CONSTANT, (0.0,)), 6, 0, 24),
    ]
    return captured(lambda: fill_(torch.zeros(5040, dtype=dtype), fills, 1))
