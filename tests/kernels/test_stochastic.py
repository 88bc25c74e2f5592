"""States in bfloat16 that are rounded at random: by draws of the name, the step and the position alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flatvars.init import name_key
from flatvars.kernels.lang import tl  # noqa: F401 - the interpreter looks for it here
from flatvars.kernels.rules import OBSERVED, rule
from tests.support.draws import STATES, VALUES, draws
from tests.support.rig import Rig
from tests.support.rules import CASES
from tests.support.tolerances import assert_same_bits

SEED = 2**63 + 42
SHAPES = [(), (0,), (17,), (3, 5), (128,), (2049,), (70, 70)]
KEYS = [name_key(f"v{i}") for i in range(len(SHAPES))]


@rule(states=("plain", "first", "second"), hyper=(), stochastic=("second", "first"))
def keeping(p, g, state, hyper, step):
    """States that are the gradient."""
    return p, (g, g, g)


@rule(states=("square",), hyper=(), stochastic=("square",))
def replacing(p, g, state, hyper, step):
    """A value and a state that are the gradient."""
    return g, (g,)


def cut(x, random):
    bits = x.view(np.uint32)
    halves = np.where(np.isfinite(x), (bits + random) >> 16, bits >> 16)
    return np.where(np.isnan(x), 0x7FC0, halves).astype(np.uint16)


def test_the_specification():
    """Golden numbers, of values at step 7."""
    key = name_key("layer1.weight")
    assert key == 0x12FEF922F95DD999
    random = draws(42, key, 7, VALUES, 10)
    assert " ".join(f"{r:04X}" for r in random) == "60D0 6B2A 166E C0A0 8C19 1140 F7E6 94C7 9916 73BB"
    x = np.array([1.0, 1.001, -1.001, 3.1415927, -0.1, 0.33333334, 1e-3, 1e-40, 3.4e38, np.nan], dtype=np.float32)
    assert " ".join(f"{h:04X}" for h in cut(x, random)) == "3F80 3F80 BF80 4049 BDCD 3EAA 3A84 0001 7F80 7FC0"


def keys_of(device):
    return torch.from_numpy(np.array([SEED, *KEYS], dtype=np.uint64).view(np.int64)).to(device)


def one_step(backend, device, *, masks=None, keys=True, dtype=torch.float32):
    """A step, the fourth of each variable; with what the gradients were."""
    torch.manual_seed(0)
    rig = Rig(SHAPES, dtype, rule=keeping, state_dtype=torch.bfloat16, masks=masks, backend=backend, device=device)
    rig.steps.fill_(3.0)
    grads = rig.random_grads()
    for grad in grads:
        numbers = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 3.39e38, 1e-40], dtype=dtype)[: grad.numel()]
        grad.view(-1)[: len(numbers)] = numbers.to(device)
    rig.step(grads, [{}], keys=keys_of(device) if keys else None)
    return rig, grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_states_are_rounded_by_their_draws(dtype, backend, device):
    rig, grads = one_step(backend, device, dtype=dtype)
    for which, state in ((1, rig.states[1]), (0, rig.states[2])):
        for key, grad, span in zip(KEYS, grads, rig.spans(state.stream), strict=True):
            x = grad.flatten().cpu().float().numpy()
            wanted = cut(x, draws(SEED, key, 4, STATES + which, len(x)))
            np.testing.assert_array_equal(span.cpu().view(torch.int16).numpy().view(np.uint16), wanted)
    assert not torch.equal(rig.states[1].stream[16:], rig.states[2].stream[16:])


def test_others_are_rounded_to_nearest(backend, device):
    rig, grads = one_step(backend, device)
    without, _ = one_step(backend, device, keys=False)
    assert_same_bits(rig.states[0].stream, without.states[0].stream)
    for state in without.states[1:]:
        assert_same_bits(state.stream, without.states[0].stream)
    span = rig.spans(rig.states[0].stream)[-1]
    assert_same_bits(span[6:].cpu(), grads[-1].flatten()[6:].cpu().to(torch.bfloat16))


def test_masked_elements_stay(backend, device):
    torch.manual_seed(1)
    masks = [torch.rand(shape) < 0.5 for shape in SHAPES]
    rig, _ = one_step(backend, device, masks=masks)
    torch.manual_seed(0)
    before = Rig(SHAPES, rule=keeping, state_dtype=torch.bfloat16, masks=masks, backend=backend, device=device)
    plain, _ = one_step(backend, device)
    for state, old, free in zip(rig.states, before.states, plain.states, strict=True):
        spans = zip(*(rig.spans(x.stream) for x in (state, old, free)), masks, strict=True)
        for now, was, trained, mask in spans:
            keep = mask.flatten().to(device)
            assert_same_bits(now[~keep], was[~keep])
            assert_same_bits(now[keep], trained[keep])


def test_values_are_rounded_by_draws_of_their_own(backend, device):
    """Not by those of a state; masked elements stay."""
    torch.manual_seed(2)
    masks = [torch.rand(shape) < 0.9 for shape in SHAPES]
    rig = Rig(SHAPES, torch.bfloat16, rule=replacing, masks=masks, backend=backend, device=device)
    rig.steps.fill_(3.0)
    before = [span.clone() for span in rig.spans(rig.values.stream)]
    grads = [torch.randn(shape, device=device) for shape in SHAPES]
    rig.step(grads, [{}], keys=keys_of(device), at_random=True)
    rig.assert_clean()
    values, states = rig.spans(rig.values.stream), rig.spans(rig.states[0].stream)
    found = zip(KEYS, grads, masks, before, values, states, strict=True)
    for key, grad, mask, was, now, state in found:
        x, keep = grad.flatten().cpu().numpy(), mask.flatten()
        for purpose, span in ((VALUES, now), (STATES, state)):
            wanted = torch.from_numpy(cut(x, draws(SEED, key, 4, purpose, len(x))).view(np.int16))
            assert torch.equal(span.cpu().view(torch.int16)[keep], wanted[keep])
        assert_same_bits(now.cpu()[~keep], was.cpu()[~keep])


def test_the_mean_is_exact(backend, device):
    """Of a number between two, 1.001, over 4,900 draws: the error of such a mean is 1.6e-5 on average."""
    rig, _ = one_step(backend, device)
    grads = [torch.full(shape, 1.001, device=device) for shape in SHAPES]
    rig.step(grads, [{}], keys=keys_of(device))
    nearest, first = (rig.spans(state.stream)[-1].double() for state in rig.states[:2])
    assert set(first.tolist()) == {1.0, 1.0078125}
    assert abs(float(first.mean()) - 1.001) < 2e-4
    assert float(nearest.mean()) == 1.0


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_rules_store_the_same_bits_on_both(name, device):
    """LAMB's states are stored by the launch before its step; AdamW's values are rounded at random, and observed."""
    if device.type != "cpu":
        pytest.skip("the cpu backend works on host memory")
    case, found, at_random = CASES[name], [], name == "adamw"
    for compiler in ("triton", "cpu"):
        torch.manual_seed(0)
        dtype = torch.bfloat16 if at_random else torch.float32
        rig = Rig(SHAPES, dtype, rule=case.rule, state_dtype=torch.bfloat16, backend=compiler)
        observed = torch.zeros((len(SHAPES), len(OBSERVED)), dtype=torch.float64) if at_random else None
        for keys in (keys_of(device), None):
            grads = rig.random_grads()
            rig.step(grads, [case.group], keys=keys, at_random=at_random, observed=observed)
            seen = [] if observed is None else [observed.clone()]
            found.append([stream.stream.clone() for stream in (rig.values, *rig.states)] + seen)
    (drawn, nearest), (drawn_cpu, nearest_cpu) = found[:2], found[2:]
    for one, other in zip(drawn + nearest, drawn_cpu + nearest_cpu, strict=True):
        assert_same_bits(one, other)
