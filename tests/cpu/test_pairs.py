"""Steps over bfloat16 streams alone, two elements at a time: the bits of one element at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flatvars.init import name_key
from flatvars.kernels.cpu.loop import Loop
from tests.support.memory import in_poison
from tests.support.rig import Rig
from tests.support.rules import CASES
from tests.support.tolerances import assert_same_bits

SHAPES = [(), (0,), (1,), (17,), (2, 3), (128,), (2049,), (70, 70)]
SPECIAL = [torch.nan, torch.inf, -torch.inf, -0.0, 3.3e38, -1e-40, 1.0]
KEYS = np.array([2**63 + 42, *(name_key(f"v{i}") for i in range(len(SHAPES)))], dtype=np.uint64)


def stepped(name, *, masks, shift, keys, at_random):
    """Streams after two steps; gradients lie `shift` elements off an aligned address."""
    torch.manual_seed(0)
    case, half = CASES[name], torch.bfloat16
    rig = Rig(SHAPES, half, rule=case.rule, masks=masks, backend="cpu")
    rig.spans(rig.values.stream)[-2][: len(SPECIAL)] = torch.tensor(SPECIAL)
    for _ in range(2):
        grads = rig.random_grads(half)
        grads[-1].view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)
        lying = [in_poison(grad, shift) for grad in grads]
        drawn_by = torch.from_numpy(KEYS.view(np.int64)) if keys else None
        rig.step(lying, [case.group], keys=drawn_by, at_random=at_random)
    rig.assert_clean()
    return [stream.stream for stream in (rig.values, *rig.states)]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    ("name", "keys", "at_random"),
    [("sgd", False, False), ("momentum", False, False), ("adamw", False, False), ("adamw", True, False)]
    + [("amsgradw", True, True), ("adagrad-all", True, False)],
)
def test_pairs_are_their_elements(name, keys, at_random, shift):
    """Masks of which all elements train are for the loop of one element at a time."""
    everything = [torch.ones(shape, dtype=torch.bool) for shape in SHAPES]
    assert goes_by_pairs(name, "bfloat16", "bfloat16")
    found, wanted = (
        stepped(name, masks=masks, shift=shift, keys=keys, at_random=at_random) for masks in (None, everything)
    )
    for mine, theirs in zip(found, wanted, strict=True):
        assert_same_bits(mine, theirs)


def goes_by_pairs(name, states, source, masked=False):
    rule = CASES[name].rule
    kinds, stored = ("bfloat16", *[states] * len(rule.states)), range(rule.stored)
    options = {"starts": rule.step_starts, "values": True, "states": stored, "terms": 0, "source": source}
    return Loop(rule, kinds, np.float32, masked, (), **options).pairs is not None


def test_others_are_no_pairs():
    """Of float32 streams two neighbors lie apart, and a mask is of single elements."""
    assert not goes_by_pairs("momentum", "float32", "bfloat16")
    assert not goes_by_pairs("momentum", "bfloat16", "float32")
    assert not goes_by_pairs("momentum", "bfloat16", None)
    assert not goes_by_pairs("momentum", "bfloat16", "bfloat16", masked=True)
