"""Values that lie wherever somebody put them, each variable at an address of its own: the bits of a stream."""

from __future__ import annotations

import pytest
import torch

from flatvars.kernels.formats import Stored
from tests.support.rig import Rig
from tests.support.rules import CASES

SHAPES = ((300,), (0,), (7, 5), (), (2070,))
GUARD = 7.0


@pytest.mark.parametrize(("name", "dtype"), [("adamw", torch.bfloat16), ("lamb", torch.float32)])
def test_values_by_address_are_stepped_as_those_of_a_stream(
    name: str, dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    case = CASES[name]
    rig = Rig(SHAPES, dtype, rule=case.rule, backend=backend, device=device)
    # No address is aligned to more than one element, and what lies behind the last one is somebody's.
    homes = [torch.full((numel + 3,), GUARD, dtype=dtype, device=device) for numel in rig.segments.numels]
    placed = [home[1 : 1 + numel] for home, numel in zip(homes, rig.segments.numels, strict=True)]
    for place, span in zip(placed, rig.spans(rig.values.stream), strict=True):
        place.copy_(span)
    places = torch.tensor([place.data_ptr() for place in placed], dtype=torch.int64).to(device)
    grads = rig.random_grads()
    untouched = [*grads[:2], None, *grads[3:]]
    states = [state.stream.clone() for state in rig.states]
    steps, skipped = rig.steps.clone(), rig.skipped.clone()
    rig.step(untouched, [case.group], max_norm=0.5)
    source = rig.plan.scattered(untouched)
    values = Stored(torch.empty(0, dtype=dtype, device=device), places=places)
    rest = {"norm": rig.norm, "max_norm": 0.5, "skip": False, "skipped": skipped}
    rig.plan.step_(source, case.rule, values, states, [case.group], steps=steps, **rest)
    for place, span in zip(placed, rig.spans(rig.values.stream), strict=True):
        assert torch.equal(place, span)
    assert all(torch.equal(mine, theirs.stream) for mine, theirs in zip(states, rig.states, strict=True))
    assert torch.equal(steps, rig.steps)
    assert all(bool((home[[0, -2, -1]] == GUARD).all()) for home in homes), "no padding is touched"
