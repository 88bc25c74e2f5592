"""Steps over streams of a format as compiled: streams as wide as can be, nothing spilled, no contraction."""

from __future__ import annotations

import pytest
import torch

from flatvars.kernels.formats import ROOT8, ROOT8_SQUARES, SPLIT, Stored
from tests.support.catch import SMALL
from tests.support.compiled import GFX942, SM80, SM90, SM100, captured, compile_for, threads
from tests.support.rig import Rig
from tests.support.rules import CASES

TARGETS = {"sm80": SM80, "sm90": SM90, "sm100": SM100, "gfx942": GFX942}


def stream_of(rig, format_):
    units = sum(-(-numel // 128) for numel in rig.segments.numels)
    parts = [torch.zeros(units if part.units else rig.numel, dtype=part.dtype) for part in format_.parts]
    return Stored(parts[0], format_, tuple(parts[1:]))


def step_code(target, split, states):
    """AdamW, clipped, with gradients of the values' dtype."""
    case, dtype = CASES["adamw"], torch.bfloat16 if split else torch.float32
    rig = Rig(SMALL, dtype, rule=case.rule, fill=False, backend="triton")
    values = stream_of(rig, SPLIT) if split else rig.values.stream
    held = [stream_of(rig, form) if form else torch.zeros(rig.numel) for form in states]
    sources = rig.plan.scattered([torch.zeros(shape, dtype=dtype) for shape in SMALL])
    given = {"steps": rig.steps, "norm": rig.norm, "max_norm": 1.0, "skip": False, "skipped": rig.skipped}
    return compile_for(
        target, captured(lambda: rig.plan.step_(sources, case.rule, values, held, [case.group], **given))
    )


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize(
    ("split", "states"), [(True, [None, None]), (True, [ROOT8, ROOT8_SQUARES])], ids=["split", "split-root8"]
)
def test_streams_are_as_wide_as_can_be(split, states, target):
    code = step_code(target, split, states)
    elements = code.block // threads(target, code.tile)
    assert elements == 8
    # A value and its low bits, 2 B each; a state of float32, or of 8 bits, of which eight are 8 B.
    wide = 2 + (0 if states[0] else 2 * 2)
    assert code.wide("st") == wide
    assert code.wide("ld") == wide + 1  # and the gradient
    assert code.widths["st"].count(8) == (2 if states[0] else 0)
    assert code.spilled == 0
    if target is not GFX942:
        assert code.double_arithmetic() == []
        assert "fma." not in code.assembly
        assert ".local" not in code.assembly
