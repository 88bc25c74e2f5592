"""Gathering into the flat stream: overwrite, add, scale; the norm is that of what is left behind."""

from __future__ import annotations

import pytest
import torch

from tests.support import reference
from tests.support.memory import in_poison
from tests.support.rig import Rig
from tests.support.tolerances import assert_norm, assert_same_bits

SHAPES = [(20,), (2060,), (3, 5), (16,)]


# Scales are exact in float32, so that the launcher may pass any float: binary fractions lose nothing on the way.
@pytest.mark.parametrize(
    ("source", "scale"),
    [(torch.float32, 1.0), (torch.bfloat16, 0.5), (torch.float16, -2.0), (torch.bfloat16, 0.0)],
    ids=str,
)
def test_overwrite_then_add(source, scale, device):
    rig = Rig(SHAPES, torch.bfloat16, device=device)
    expected = None
    for add in (False, True, True):
        grads = rig.random_grads(source)
        rig.accumulate([in_poison(grad) for grad in grads], scale, add=add)
        scaled = [grad.float().flatten() * scale for grad in grads]
        expected = scaled if expected is None else [a + b for a, b in zip(expected, scaled, strict=True)]
    for span, truth in zip(rig.spans(rig.grads.stream), expected, strict=True):
        assert_same_bits(span + 0.0, truth + 0.0)
    assert_norm(rig.norm, reference.norm_of(expected), torch.float32)
    rig.assert_clean()


def test_micro_batches_of_bfloat16_add_up_in_float32(device):
    """256 + 1 is 256 in bfloat16: eight micro-batches of 1 would be lost there."""
    rig = Rig([(20,)], torch.bfloat16, device=device)
    rig.accumulate([torch.full((20,), 256.0, dtype=torch.bfloat16, device=device)])
    for _ in range(8):
        rig.accumulate([torch.ones(20, dtype=torch.bfloat16, device=device)], add=True)
    assert rig.spans(rig.grads.stream)[0].tolist() == [264.0] * 20


@pytest.mark.parametrize("scale", [0.1, 1 / 3])
def test_float64_keeps_the_scale_in_double(scale, device):
    rig = Rig([(20,)], torch.float64, device=device)
    rig.accumulate([torch.ones(20, dtype=torch.float64, device=device)], scale)
    # Two float32 parts of a scale carry 48 of its 53 bits.
    assert rig.spans(rig.grads.stream)[0].tolist() == pytest.approx([scale] * 20, rel=1e-14)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_place(bad, device):
    rig = Rig([(20,), (40,)], device=device)
    grads = rig.random_grads()
    grads[0][19] = bad
    rig.accumulate(grads)
    assert_same_bits(rig.spans(rig.grads.stream)[0], grads[0])
    assert_same_bits(rig.spans(rig.grads.stream)[1], grads[1])
    assert rig.norm.isnan().item() if bad != bad else rig.norm.item() == torch.inf
    rig.assert_clean()


def test_norm_alone_writes_no_gradient(device):
    rig = Rig(SHAPES, device=device)
    grads = rig.random_grads()
    rig.accumulate(grads)
    kept = rig.grads.storage.clone()
    other = [grad * 2.0 for grad in grads]
    rig.plan.norm_(rig.plan.scattered(other))
    assert_same_bits(rig.grads.storage, kept)
    assert_norm(rig.norm, reference.norm_of(other), torch.float32)
