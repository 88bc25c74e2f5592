"""Every rule against its formula in float64, over several steps, dtypes and hyper-parameters."""

from __future__ import annotations

import pytest
import torch

from tests.support.rig import Rig
from tests.support.rules import CASES, adam_group
from tests.support.stepping import check_step

from .conftest import BACKENDS

SHAPES = [(33,), (), (300,)]
STEPS = 2
# A dtype is loads and stores around the rule, which are the same for all: one rule of each kind shows every dtype.
OTHERS = [(name, dtype) for name in ("amsgradw", "nadam", "lamb") for dtype in (torch.bfloat16, torch.float64)]


# By one compiler: `test_backends.py` shows that the other makes the same bits of every rule.
@pytest.mark.parametrize("backend", BACKENDS[-1:], indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_steps(name, device):
    check_steps(name, torch.float32, device)


@pytest.mark.parametrize(("name", "dtype"), OTHERS, ids=str)
def test_steps_in_other_dtypes(name, dtype, device):
    check_steps(name, dtype, device)


def check_steps(name, dtype, device):
    """Two steps: the second reads what the first has stored."""
    case = CASES[name]
    # What statistics move is read again as it is stored: the truth knows of no rounding in between.
    moves = case.rule.statistics is not None and case.rule.statistics.moves
    state_dtype = torch.float32 if moves and dtype == torch.bfloat16 else None
    rig = Rig(SHAPES, dtype, rule=case.rule, state_dtype=state_dtype, device=device)
    for state in rig.states:
        state.stream.zero_()
    for _ in range(STEPS):
        check_step(rig, rig.random_grads(), [case])
    rig.assert_clean()


@pytest.mark.parametrize(
    ("values", "states"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("name", ["momentum", "amsgradw"])
def test_state_dtype(name, values, states, device):
    case = CASES[name]
    rig = Rig(SHAPES, values, rule=case.rule, state_dtype=states, device=device)
    for _ in range(STEPS):
        check_step(rig, rig.random_grads(), [case])
    rig.assert_clean()


@pytest.mark.parametrize("name", ["user", "adamw", "lamb"])
def test_padding_stays_zero_where_a_rule_moves_zeros(name, device):
    case = CASES[name]
    rig = Rig([(1,), (17,), (0,)], rule=case.rule, device=device)
    rig.step([torch.ones_like(grad) for grad in rig.random_grads()], [case.group])
    rig.assert_clean()


def test_many_steps_keep_their_precision(device):
    """A whole trajectory, nothing re-read from the kernel: errors add, they do not grow."""
    case = CASES["adamw"]
    rig = Rig([(50,)], torch.float32, rule=case.rule, device=device)
    for state in rig.states:
        state.stream.zero_()
    value, *states = [rig.copies(stream)[0] for stream in (rig.values.stream, *(s.stream for s in rig.states))]
    for step in range(1, 41):
        grad = torch.randn(50)
        rig.step([grad.to(device)], [case.group])
        value, states = case.truth(value, grad.double(), tuple(states), case.group, step)
    # 40 roundings of values below 4, half an ulp (1.2e-7) each.
    torch.testing.assert_close(rig.copies(rig.values.stream)[0], value, rtol=0, atol=5e-6)


def test_a_first_gradient_of_zero_does_not_divide_by_zero(device):
    case = CASES["adam"]
    rig = Rig([(20,)], rule=case.rule, device=device, fill=False)
    rig.step([torch.zeros(20, device=device)], [case.group])
    assert rig.values.stream.count_nonzero() == 0


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_nan_stays_in_its_own_element(weight_decay, device):
    case = CASES["adamw"]
    rig = Rig([(40,)], rule=case.rule, device=device)
    grad = torch.randn(40, device=device)
    grad[7] = torch.nan
    rig.step([grad], [adam_group(weight_decay=weight_decay)])
    assert rig.spans(rig.values.stream)[0].isnan().nonzero().tolist() == [[7]]
    rig.assert_clean()
