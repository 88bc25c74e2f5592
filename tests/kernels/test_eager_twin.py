"""A rule's twin on torch tensors computes what the Triton rule computes, to float32 rounding."""

from __future__ import annotations

import math

import pytest
import torch

from flatvars.kernels.lang import EagerMath, eager_sign, eager_twin, tl
from tests.support.rig import Rig
from tests.support.rules import CASES, drift
from tests.support.tolerances import TWIN, assert_close

SHAPE = (1500,)


@pytest.mark.parametrize("step", [1, 2, 1000])
@pytest.mark.parametrize("name", CASES)
def test_same_numbers(name, step, device):
    case = CASES[name]
    rig = Rig([SHAPE], rule=case.rule, device=device)
    rig.steps.copy_(torch.tensor([step - 1]))
    grad = torch.randn(SHAPE)
    before = [rig.spans(s.stream)[0].cpu().clone() for s in (rig.values, *rig.states)]
    # As the kernel has them: every number in float32.
    hyper = tuple(torch.tensor(float(x)) for x in case.rule.hyper(case.group))
    twin = eager_twin(case.rule.function)
    value, states = twin(before[0], grad, tuple(before[1:]), hyper, torch.tensor(float(step)))
    rig.step([grad.to(device)], [case.group])
    for actual, expected in zip((rig.values, *rig.states), (value, *states), strict=True):
        assert_close(rig.spans(actual.stream)[0], expected, tolerance=TWIN)


@pytest.mark.parametrize("name", CASES)
def test_twin_is_plain_python_all_the_way_down(name):
    twin = eager_twin(CASES[name].rule.function)
    reached = [twin]
    for function in reached:
        used = {function.__globals__[n] for n in function.__code__.co_names if n in function.__globals__}
        assert tl not in used
        reached += [value for value in used if hasattr(value, "__code__") and value not in reached]


def test_twin_is_made_once():
    assert eager_twin(drift.function) is eager_twin(drift.function)


NAMES = ["sqrt_rn", "div_rn", "exp", "log", "abs", "where", "maximum", "minimum"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_eager_math_exist_in_triton(name):
    assert callable(getattr(tl, name))
    assert callable(getattr(EagerMath, name))


def test_eager_math_offers_nothing_more():
    assert sorted(name for name in vars(EagerMath) if not name.startswith("_")) == sorted(NAMES)


@pytest.mark.parametrize("x", [torch.tensor([0.25, 4.0]), 0.25], ids=["tensor", "float"])
def test_eager_math_takes_tensors_and_floats(x):
    unary = {"sqrt_rn": 0.5, "exp": 1.2840254, "log": -1.3862944, "abs": 0.25}
    for name, expected in unary.items():
        result = torch.as_tensor(getattr(EagerMath, name)(x)).flatten()[0]
        assert result.item() == pytest.approx(expected, rel=1e-6)
    binary = {"div_rn": 0.125, "maximum": 2.0, "minimum": 0.25}
    for name, expected in binary.items():
        assert torch.as_tensor(getattr(EagerMath, name)(x, 2.0)).flatten()[0].item() == expected
    assert torch.as_tensor(EagerMath.where(x == 0.25, x, 9.0)).flatten()[0].item() == 0.25


@pytest.mark.parametrize(("left", "right"), [("tensor", "tensor"), ("tensor", "float"), ("float", "tensor")])
def test_eager_maximum_keeps_nan(left, right):
    nan = torch.tensor([torch.nan]) if left == "tensor" else float("nan")
    one = torch.tensor([1.0]) if right == "tensor" else 1.0
    assert EagerMath.maximum(nan, one).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_twin_of_sign_is_exact_to_the_smallest_number(dtype):
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    numbers = [0.0, tiny, 1e-30, 1.0, torch.finfo(dtype).max, torch.inf]
    expected = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert tiny > 0.0
    found = eager_sign(torch.tensor(numbers + [-x for x in numbers] + [torch.nan], dtype=dtype))
    assert found.tolist()[:-1] == expected + [-x for x in expected]
    assert found[-1].isnan()
    assert [eager_sign(x) for x in numbers] == expected
    assert math.isnan(eager_sign(math.nan))
