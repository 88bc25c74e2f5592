"""One step, compared with the truth variable by variable, from the very numbers the step started with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import reference
from .rig import Rig, memory_order
from .rules import Case
from .tolerances import assert_close, assert_norm, assert_same_bits


def check_step(
    rig: Rig,
    grads: Sequence[Tensor | None],
    cases: Sequence[Case],
    *,
    max_norm: float | None = None,
    **options: Any,
) -> None:
    """Steps `rig` and compares values, states and counts with float64, of untouched variables bit by bit.

    Args:
        cases: One per param group, all of `rig.rule`.
        max_norm, options: As of `Rig.step`.
    """
    streams = [rig.values.stream, *(state.stream for state in rig.states)]
    untouched = [[span.clone() for span in rig.spans(stream)] for stream in streams]
    before = [rig.copies(stream) for stream in streams]
    counts = rig.steps.tolist()
    own = [scalar.clone() for scalar in rig.own]
    rig.step(grads, [case.group for case in cases], max_norm=max_norm, **options)
    coefficient = 1.0
    if max_norm is not None:
        norm = reference.norm_of([None if g is None else memory_order(g, rig.segments, i) for i, g in enumerate(grads)])
        assert_norm(rig.norm, norm, rig.compute)
        coefficient = reference.clip_coefficient(norm, max_norm)
    after = [rig.spans(stream) for stream in streams]
    for i, grad in enumerate(grads):
        if grad is None:
            for stream, kept in zip(after, untouched, strict=True):
                assert_same_bits(stream[i], kept[i])
            for scalar, old in zip(rig.own, own, strict=True):
                assert_same_bits(scalar[i], old[i])
            continue
        counts[i] += 1
        case = cases[rig.segments.groups[i]]
        value, *states = [stream[i] for stream in before]
        states += [scalar[i].cpu().double() for scalar in own]
        scaled = memory_order(grad, rig.segments, i) * coefficient
        expected, kept = case.truth(value, scaled, tuple(states), case.group, counts[i])
        for actual, truth in zip((*after, *rig.own), (expected, *kept), strict=True):
            assert_close(actual[i], truth)
    assert rig.steps.tolist() == counts
