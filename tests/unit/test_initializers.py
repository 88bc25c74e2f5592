"""Initializers as data: arguments, fans, gains, and what they say when they do not fit."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.init import Initializer, fans

F32 = torch.float32


@pytest.mark.row("T-I-04")
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), (1, 1)), ((5,), (1, 5)), ((4, 3), (3, 4)), ((8, 4, 3, 3), (36, 72)), ((8, 4, 0), (0, 0))],
    ids=str,
)
def test_fans(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert fans(shape) == expected
    if len(shape) > 1:
        assert expected == nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))


@pytest.mark.row("T-I-04")
def test_a_variable_without_elements_has_no_scale_and_needs_none() -> None:
    made = fv.init.tensor(fv.init.kaiming_uniform(), (3, 0), "w")
    assert made.shape == (3, 0)


@pytest.mark.row("T-I-05")
@pytest.mark.parametrize(
    ("name", "param", "expected"),
    [
        ("relu", None, math.sqrt(2.0)),
        ("tanh", None, 5.0 / 3.0),
        ("linear", None, 1.0),
        ("conv2d", None, 1.0),
        ("sigmoid", None, 1.0),
        ("selu", None, 0.75),
        ("leaky_relu", None, math.sqrt(2.0 / (1.0 + 0.01**2))),
        ("leaky_relu", 0.3, math.sqrt(2.0 / (1.0 + 0.3**2))),
    ],
)
def test_gains(name: str, param: float | None, expected: float) -> None:
    assert fv.init.calculate_gain(name, param) == pytest.approx(expected, rel=1e-15)
    assert fv.init.calculate_gain(name, param) == nn.init.calculate_gain(name, param)  # type: ignore[arg-type]


@pytest.mark.row("T-I-05")
def test_an_explicit_gain_takes_the_place_of_the_nonlinearity() -> None:
    assert fv.init.kaiming_normal(gain=0.25).std((7, 4)) == 0.125  # type: ignore[attr-defined]


@pytest.mark.row("T-I-07")
@pytest.mark.parametrize("make", [fv.init.kaiming_uniform, fv.init.kaiming_normal])
def test_default_kaiming_is_relu_and_fan_in(make: object) -> None:
    assert make().std((7, 50)) == pytest.approx(math.sqrt(2.0 / 50.0))  # type: ignore[operator]
    assert make() == make(mode="fan_in", nonlinearity="relu")  # type: ignore[operator]


@pytest.mark.row("T-I-07")
def test_the_bound_of_the_default() -> None:
    low, width, _ = fv.init.kaiming_uniform().draw((7, 50), F32).numbers
    assert low == pytest.approx(-math.sqrt(6.0 / 50.0), rel=1e-7)
    assert width == pytest.approx(2.0 * math.sqrt(6.0 / 50.0), rel=1e-7)


@pytest.mark.row("B-14")
def test_explicit_fans() -> None:
    shape = (8, 4)
    assert fv.init.kaiming_normal(gain=1.0, fan=100).std(shape) == 0.1  # type: ignore[attr-defined]
    assert fv.init.kaiming_normal(gain=1.0, fan=25, mode="fan_out").std(shape) == 0.2  # type: ignore[attr-defined]
    assert fv.init.xavier_normal(fan_in=10).std(shape) == pytest.approx(math.sqrt(2.0 / 18.0))  # type: ignore[attr-defined]
    assert fv.init.xavier_normal(fan_in=10, fan_out=40).std(shape) == 0.2  # type: ignore[attr-defined]
    assert fv.init.lecun_normal(fan=16).std(shape) == 0.25  # type: ignore[attr-defined]
    # A vector has no fan of its own that torch would take; one can be given.
    assert fv.init.kaiming_normal(gain=1.0, fan=4).std((9,)) == 0.5  # type: ignore[attr-defined]


NAMES = ["uniform", "normal", "trunc_normal", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"]


@pytest.mark.row("T-I-12")
@pytest.mark.parametrize("name", [*NAMES, "constant", "zeros", "ones", "eye", "dirac", "sparse", "orthogonal"])
def test_arguments_and_defaults_are_torchs(name: str) -> None:
    theirs = dict(inspect.signature(getattr(nn.init, f"{name}_")).parameters)
    mine = inspect.signature(getattr(fv.init, name)).parameters
    skip = {"tensor", "generator"}
    expected = {key: parameter.default for key, parameter in theirs.items() if key not in skip}
    positional = {key: p.default for key, p in mine.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY}
    assert list(positional) == list(expected)
    assert positional == expected


def test_initializers_are_values() -> None:
    assert fv.init.kaiming_uniform() == fv.init.kaiming_uniform()
    assert len({fv.init.normal(), fv.init.normal(0.0, 1.0), fv.init.normal(0.0, 2.0)}) == 2
    assert repr(fv.init.normal(0.0, 0.02)) == "Normal(mean=0.0, std=0.02)"
    with pytest.raises(AttributeError):
        fv.init.normal().std = 3.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fv.init.uniform(2.0, 1.0),
            r"uniform_ expects to return a \[from, to\) range, but found from=2.0 > to",
        ),
        (lambda: fv.init.uniform(0.0, math.inf), "not a finite float32"),
        (lambda: fv.init.uniform(-3e38, 3e38), "6e.38 is not a finite float32"),
        (lambda: fv.init.uniform(math.nan, 1.0), "uniform_ expects"),
        (lambda: fv.init.normal(0.0, -1.0), "normal expects std >= 0.0, but found std -1.0"),
        (lambda: fv.init.normal(1e39), "not a finite float32"),
        (lambda: fv.init.trunc_normal(std=math.inf), "not a finite float32"),
        (lambda: fv.init.trunc_normal(std=0.0), "needs std > 0"),
        (lambda: fv.init.trunc_normal(a=2.0, b=1.0), "a < b"),
        (lambda: fv.init.trunc_normal(a=40.0, b=41.0), "move the bounds"),
        (lambda: fv.init.kaiming_normal(mode="fan_avg"), "Mode fan_avg not supported"),
        (lambda: fv.init.kaiming_normal(nonlinearity="gelu"), "Unsupported nonlinearity gelu.*gain="),
        (lambda: fv.init.kaiming_normal(fan=0), "fan 0 is not positive"),
        (lambda: fv.init.xavier_normal(gain=-1.0), "gain -1.0"),
        (lambda: fv.init.sparse(1.5), "sparsity 1.5"),
        (lambda: fv.init.sparse(0.5, std=-1.0), "normal expects std"),
        (lambda: fv.init.orthogonal(math.inf), "gain inf"),
    ],
)
@pytest.mark.row("T-I-02")
@pytest.mark.row("T-I-03")
@pytest.mark.row("T-I-12")
def test_impossible_arguments(make: object, message: str) -> None:
    with pytest.raises(fv.InitError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("initializer", "shape", "message"),
    [
        (fv.init.eye(), (3,), "Only tensors with 2 dimensions are supported"),
        (fv.init.sparse(0.1), (3, 2, 2), "Only tensors with 2 dimensions are supported"),
        (fv.init.dirac(), (3, 2), "Only tensors with 3, 4, or 5 dimensions are supported"),
        (fv.init.dirac(2), (3, 2, 1), "dim 0 must be divisible by groups"),
        (fv.init.orthogonal(), (3,), "Only tensors with 2 or more dimensions are supported"),
        (fv.init.constant(1e6), (3,), "does not fit torch.float16"),
    ],
    ids=str,
)
@pytest.mark.row("T-I-08")
@pytest.mark.row("T-I-12")
def test_shapes_that_do_not_fit(initializer: Initializer, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=rf"variable 'w': .*{message}"):
        fv.init.tensor(initializer, shape, "w", dtype=torch.float16)


@pytest.mark.row("T-I-02")
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1e-3, 1e-3), (1.0, 1.0), (16777216.0, 16777218.0)])
def test_the_largest_uniform_lies_below_the_end(low: float, high: float) -> None:
    """Rounding low + unit * width up could give the end itself."""
    first, width, top = fv.init.uniform(low, high).draw((1,), F32).numbers
    assert top == first if low == high else first <= top < high
    assert width == torch.tensor(high - low).item()
