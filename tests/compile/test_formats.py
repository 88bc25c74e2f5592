"""Steps over streams of a format as compiled: streams as wide as can be, nothing spilled, no contraction."""

from __future__ import annotations

import pytest
import torch

from flatvars.kernels.formats import CORRECTED, LOG4, ROOT8, ROOT8_SQUARES, SPLIT, Stored
from tests.support.catch import SMALL
from tests.support.compiled import GFX942, SM80, SM90, SM100, captured, compile_for, threads
from tests.support.rig import Rig
from tests.support.rules import CASES

TARGETS = {"sm80": SM80, "sm90": SM90, "sm100": SM100, "gfx942": GFX942}


def stream_of(rig, format_):
    units = sum(-(-numel // 128) for numel in rig.segments.numels)
    lengths = [units if part.units else part.items(rig.numel) for part in format_.parts]
    parts = [torch.zeros(n, dtype=part.dtype) for n, part in zip(lengths, format_.parts, strict=True)]
    return Stored(parts[0], format_, tuple(parts[1:]))


BESIDE = {"split": SPLIT, "corrected": CORRECTED}
KINDS = {
    "split": ("split", [None, None]),
    "corrected-root8": ("corrected", [ROOT8, ROOT8_SQUARES]),
    "split-log4": ("split", [ROOT8, LOG4]),
    "stochastic-log4": ("stochastic", [ROOT8, LOG4]),
    "float32-root8": (None, [ROOT8, ROOT8_SQUARES]),
}


def step_code(target, kind, states):
    """AdamW, clipped, with gradients of the values' dtype."""
    case, dtype = CASES["adamw"], torch.bfloat16 if kind else torch.float32
    rig = Rig(SMALL, dtype, rule=case.rule, fill=False, backend="triton")
    values = Stored(rig.values.stream, at_random=kind == "stochastic")
    if kind in BESIDE:
        values = stream_of(rig, BESIDE[kind])
    held = [stream_of(rig, form) if form else torch.zeros(rig.numel) for form in states]
    sources = rig.plan.scattered([torch.zeros(shape, dtype=dtype) for shape in SMALL])
    given = {"steps": rig.steps, "norm": rig.norm, "max_norm": 1.0, "skip": False, "skipped": rig.skipped}
    given["keys"] = torch.zeros(1 + len(SMALL), dtype=torch.int64)
    return compile_for(
        target, captured(lambda: rig.plan.step_(sources, case.rule, values, held, [case.group], **given))
    )


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize(("kind", "states"), KINDS.values(), ids=KINDS)
def test_streams_are_as_wide_as_can_be(kind, states, target):
    code = step_code(target, kind, states)
    elements = code.block // threads(target, code.tile)
    assert elements == 8
    # 16 B of eight elements: a value and its low bits of 2 B each, one of float32 twice, a state of float32 twice.
    values = {"split": 2, "corrected": 1, "stochastic": 1, None: 2}[kind]
    wide = values + (0 if states[0] else 2 * 2)
    gradient = 1 if kind else 2
    assert code.wide("st") == wide
    assert code.wide("ld") == wide + gradient
    eights = [form for form in states if form in (ROOT8, ROOT8_SQUARES)]
    assert code.widths["st"].count(8) == len(eights) + (kind == "corrected")
    # Pairs of 4-bit codes, 4 B, beside one for each buffer of units, one for the count of steps and one for arrivals.
    units = (kind in BESIDE) + 2 * (states[0] is not None)
    assert code.widths["st"].count(4) == units + 2 + (LOG4 in states)
    assert code.spilled == 0
    if target is not GFX942:
        assert code.double_arithmetic() == []
        assert "fma." not in code.assembly
        assert ".local" not in code.assembly
