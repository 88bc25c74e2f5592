"""What a step tells by the way: sums of the terms of `rules/observe.py`, the same bits from both compilers."""

from __future__ import annotations

import pytest
import torch

from flatvars.kernels.rules import OBSERVED
from tests.support.rig import Rig, memory_order
from tests.support.rules import CASES
from tests.support.tolerances import assert_same_bits

SHAPES = [(33,), (), (2049,), (0,), (3, 5)]


def observed_of(name, dtype, masked, backend=None, device=None):
    """Sums of a second step from given numbers, and the truth of the first six of them."""
    torch.manual_seed(0)
    case = CASES[name]
    masks = [torch.arange(torch.Size(shape).numel()).reshape(shape) % 2 == 0 for shape in SHAPES]
    rig = Rig(SHAPES, dtype, rule=case.rule, masks=masks if masked else None, backend=backend, device=device)
    rig.steps.fill_(1.0)
    for own in rig.own:
        own.fill_(1.0)
    grads = rig.random_grads()
    grads[0][:4] = torch.tensor([0.0, -0.0, 1.0, 2.0])
    grads[3] = None
    table = torch.full((len(SHAPES), len(OBSERVED)), torch.nan, dtype=torch.float64, device=rig.device)
    old, states = rig.copies(rig.values.stream), [rig.copies(state.stream) for state in rig.states]
    rig.step(grads, [case.group], max_norm=0.5, observed=table)
    new = rig.copies(rig.values.stream)
    truth = []
    for i, grad in enumerate(grads):
        if grad is None:
            truth.append([torch.nan] * len(OBSERVED))
            continue
        trains = memory_order(masks[i], rig.segments, i) != 0 if masked else torch.ones_like(old[i], dtype=torch.bool)
        g = memory_order(grad, rig.segments, i)[trains]
        m = states[case.rule.momentum][i][trains] if case.rule.momentum >= 0 else torch.zeros_like(g)
        before, after = old[i][trains], new[i][trains]
        terms = [after**2, g**2, (after - before) ** 2, g * m, m**2, ~g.isfinite(), g == 0]
        truth.append([float(term.double().sum()) for term in terms] + [torch.nan])
    return table, torch.tensor(truth, dtype=torch.float64), case


@pytest.mark.parametrize(("name", "masked"), [("sgd", False), ("adamw", False), ("nadam", True)])
def test_sums_are_those_of_the_step(name, masked, device):
    table, truth, _ = observed_of(name, torch.float32, masked, device=device)
    # What the step adds is a difference of values here, and of numbers that were not stored there.
    torch.testing.assert_close(table.cpu()[:, :7], truth[:, :7], rtol=2e-5, atol=1e-5, equal_nan=True)
    stuck = table[:, OBSERVED.index("stuck")]
    assert stuck[3].isnan()
    assert bool((stuck[:3] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_compilers_tell_the_same(dtype, device):
    if device.type != "cpu":
        pytest.skip("the cpu backend works on host memory")
    tables = [observed_of("adamw", dtype, True, backend, device)[0] for backend in ("triton", "cpu")]
    assert_same_bits(*tables)


def test_values_that_cannot_move_are_counted(device):
    """A step of a thousandth of a bfloat16 that is 1 is lost, and one of a hundredth is not."""
    case = CASES["sgd"]
    rig = Rig([(40,)], torch.bfloat16, rule=case.rule, device=device)
    rig.values.stream.fill_(1.0)
    grad = torch.full((40,), 0.01, dtype=torch.bfloat16, device=device)
    grad[:7] = 0.2
    grad[9], grad[10] = 0.0, torch.nan
    table = torch.zeros((1, len(OBSERVED)), dtype=torch.float64, device=device)
    rig.step([grad], [case.group], observed=table)
    told = dict(zip(OBSERVED, table[0].tolist(), strict=True))
    assert (told["stuck"], told["zeros"], told["nonfinite"]) == (31.0, 1.0, 1.0)
