"""Random initializers against their distributions and against torch.nn.init: moments, shape, tails, resolution."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.init import Initializer
from flatvars.kernels import distributions
from tests.support.statistics import KS_LIMIT, assert_distribution, assert_moments, ks_statistic, normal_cdf

N = 40_000


def sample(initializer: Initializer, shape: tuple[int, ...] = (N,), seed: int = 0) -> torch.Tensor:
    return fv.init.tensor(initializer, shape, "sample", seed=seed)


def uniform_cdf(low: float, high: float):
    return lambda x: min(max((x - low) / (high - low), 0.0), 1.0)


def trunc_cdf(mean: float, std: float, a: float, b: float):
    low, high = normal_cdf((a - mean) / std), normal_cdf((b - mean) / std)
    return lambda x: (normal_cdf((x - mean) / std) - low) / (high - low)


@pytest.mark.row("T-I-02")
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 0.5), (1.0, 2.0)])
def test_uniform(low: float, high: float) -> None:
    x = sample(fv.init.uniform(low, high))
    assert x.min() >= low
    assert x.max() < high
    width = high - low
    assert_moments(x, (low + high) / 2, width**2 / 12, width**4 / 80)
    assert_distribution(x, uniform_cdf(low, high))


@pytest.mark.row("T-I-02")
def test_a_hundred_uniforms_between_1_and_2() -> None:
    x = sample(fv.init.uniform(1.0, 2.0), (100,))
    assert x.min() >= 1.0
    assert x.max() < 2.0
    assert 0.15 < x.std().item() < 0.35


@pytest.mark.row("T-I-03")
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-2.0, 0.02), (5.0, 0.0)])
def test_normal(mean: float, std: float) -> None:
    x = sample(fv.init.normal(mean, std))
    # A mean adds the rounding of float32 around it.
    assert abs(x.double().mean().item() - mean) <= 5.0 * std / math.sqrt(N) + 1e-6
    assert abs(x.double().std().item() - std) <= 5.0 * std / math.sqrt(2 * N) + 1e-6
    if std:
        assert_distribution((x - mean) / std, normal_cdf)


@pytest.mark.row("T-I-03")
def test_kurtosis_and_independence_of_neighbors() -> None:
    """The two normals of a Box-Muller pair share a radius, not a sign or a size."""
    x = sample(fv.init.normal()).double()
    assert_moments(x, 0.0, 1.0, 3.0)
    assert abs(x.pow(4).mean().item() - 3.0) <= 5.0 * math.sqrt(96.0 / N)
    even, odd = x[0::2], x[1::2]
    limit = 5.0 / math.sqrt(N / 2)
    assert abs((even * odd).mean().item()) <= limit
    assert abs(((even.square() - 1.0) * (odd.square() - 1.0)).mean().item() / 2.0) <= limit
    assert abs((x[1:-1:2] * x[2::2]).mean().item()) <= limit


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"),
    [(0.0, 1.0, -2.0, 2.0), (0.0, 0.02, -2.0, 2.0), (0.0, 1.0, 1.0, 1.5), (3.0, 2.0, -6.0, 2.0), (0.0, 1.0, 5.0, 9.0)],
)
@pytest.mark.row("T-I-12")
def test_trunc_normal(mean: float, std: float, a: float, b: float) -> None:
    x = sample(fv.init.trunc_normal(mean, std, a, b))
    assert a <= x.min()
    assert x.max() <= b
    cdf = trunc_cdf(mean, std, a, b)
    if a == 5.0:  # far out the truth must be taken from the other tail, where it keeps its digits
        low, high = normal_cdf(-9.0), normal_cdf(-5.0)
        cdf = lambda x: 1.0 - (normal_cdf(-x) - low) / (high - low)  # noqa: E731
    assert_distribution(x, cdf)


def test_the_check_finds_a_wrong_distribution() -> None:
    x = sample(fv.init.normal())
    assert ks_statistic(x * 1.05, normal_cdf) > KS_LIMIT
    assert ks_statistic(x + 0.05, normal_cdf) > KS_LIMIT
    assert ks_statistic(x.clamp(-2.0, 2.0), normal_cdf) > KS_LIMIT


# How far out --------------------------------------------------------------------------------------------------------


@pytest.mark.row("T-I-03")
def test_tails_beyond_four_sigma_have_their_share() -> None:
    x = sample(fv.init.normal(), (2_000_000,)).abs()
    for bound in (3.0, 3.5, 4.0):
        expected = 2.0 * normal_cdf(-bound) * x.numel()
        assert abs(int((x > bound).sum()) - expected) <= 5.0 * math.sqrt(expected)


@pytest.mark.row("J-14")
def test_normals_beyond_5_7_sigma_exist() -> None:
    """Where a generator clamps its uniform at 1e-7, as `tl.randn` does, 5.68 is the largest."""
    radius, _ = distributions.normal_pair(*np.float32([[0.0], [0.0], [0.0], [1.0]]))
    assert 6.76 < radius.item() < 6.77
    clamped = math.sqrt(-2.0 * math.log(1e-7))
    assert clamped < 5.68
    # A word below this gives a radius of more than 5.7, wherever it lies in a stream.
    word = math.floor(2.0**32 * math.exp(-(5.7**2) / 2.0))
    beyond, _ = distributions.normal_pair(*np.float32([[word - 1.0], [0.0], [0.0], [1.0]]))
    assert word > 300
    assert beyond.item() > 5.7


@pytest.mark.row("J-14")
def test_one_normal_beyond_5_7_sigma_in_a_stream() -> None:
    """Words of one name are searched for a small one; the element that it becomes is then made alone."""
    key, chunk = fv.init.name_key("sample"), 1 << 22
    generator = np.random.Philox(key=np.array([0, key], dtype=np.uint64))
    index = -1
    for base in range(0, 1 << 28, 2 * chunk):
        found = np.nonzero(generator.random_raw(chunk).view(np.uint32)[::2] < 300)[0]
        if len(found):
            index = base + 2 * int(found[0])
            break
    stream = torch.empty(2)
    target = fv.init.Target("sample", fv.init.normal(), stream, 0, (index + 2,), (1,), first=index, count=2)
    fv.init.fill_([target], 0)
    assert stream.norm().item() > 5.7


@pytest.mark.row("T-I-02")
def test_uniforms_are_multiples_of_2_to_the_minus_24() -> None:
    x = sample(fv.init.uniform())
    assert torch.equal(x * 2.0**24, (x * 2.0**24).round())
    assert bool(((x * 2.0**24) % 2 == 1).any())


# Accuracy -----------------------------------------------------------------------------------------------------------


def test_normals_are_within_6_ulp_of_exact_mathematics() -> None:
    counts = np.arange(0, 2**32, 65_521, dtype=np.int64).astype(np.float32)
    turns = (np.arange(len(counts), dtype=np.int64) * 2_654_435_761 % 2**30 - 2**29).astype(np.float32)
    one = np.ones_like(counts)
    actual = distributions.normal_pair(counts, turns, 0.0 * one, one)
    uniform = ((counts + np.float32(0.5)) * np.float32(2.0**-32)).astype(np.float64)
    radius, angle = np.sqrt(-2.0 * np.log(uniform)), turns * (np.pi / 2.0**31)
    for x, truth in zip(actual, (radius * np.cos(angle), radius * np.sin(angle)), strict=True):
        assert x.dtype == np.float32
        assert (np.abs(x - truth) / np.spacing(np.abs(truth).astype(np.float32))).max() <= 6.0


def test_quantiles_are_within_2e_6() -> None:
    p = np.concatenate([np.geomspace(1e-30, 0.1, 2000), np.linspace(0.1, 0.5, 2000)]).astype(np.float32)
    q = (1.0 - p.astype(np.float64)).astype(np.float32)
    truth = np.array([NormalDist().inv_cdf(x) for x in p.astype(np.float64).tolist()])
    quantile = distributions.quantile
    assert (np.abs(quantile(p, q) - truth) / np.maximum(np.abs(truth), 1.0)).max() <= 2e-6
    assert (quantile(q, p) == -quantile(p, q)).all()


# torch.nn.init ------------------------------------------------------------------------------------------------------

SHAPE = (100, 40, 2, 2)
PAIRS = {
    "kaiming_uniform": {},
    "kaiming_uniform-out": {"mode": "fan_out", "nonlinearity": "tanh"},
    "kaiming_uniform-leaky": {"a": math.sqrt(5.0)},
    "kaiming_normal": {"nonlinearity": "selu"},
    "xavier_uniform": {"gain": 2.0},
    "xavier_normal": {},
}


@pytest.mark.row("T-I-06")
@pytest.mark.row("T-I-12")
@pytest.mark.parametrize(("name", "arguments"), PAIRS.items(), ids=PAIRS)
def test_scaled_initializers_have_torchs_scale(name: str, arguments: dict[str, object]) -> None:
    name = name.split("-")[0]
    x = sample(getattr(fv.init, name)(**arguments), SHAPE)
    theirs = getattr(nn.init, f"{name}_")(torch.empty(SHAPE), **arguments)
    assert x.std().item() == pytest.approx(theirs.std().item(), rel=0.03)
    if "uniform" in name:
        assert x.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=1e-3)
        bound = math.sqrt(3.0) * getattr(fv.init, name)(**arguments).std(SHAPE)
        assert_distribution(x, uniform_cdf(-bound, bound))
    else:
        assert_distribution(x / getattr(fv.init, name)(**arguments).std(SHAPE), normal_cdf)


@pytest.mark.row("T-I-06")
@pytest.mark.parametrize(("make", "limit"), [(fv.init.kaiming_uniform, 2e-3), (fv.init.kaiming_normal, 3e-3)])
def test_kaiming_of_20_by_100(make, limit: float) -> None:
    x = sample(make(), (20, 100))
    assert abs(x.mean().item()) < 5e-3
    assert abs(x.std().item() - math.sqrt(2.0 / 100.0)) < limit


@pytest.mark.parametrize(("make", "cdf"), [(fv.init.lecun_uniform, "uniform"), (fv.init.lecun_normal, "normal")])
def test_lecun(make, cdf: str) -> None:
    x = sample(make(), (200, 100))
    assert x.std().item() == pytest.approx(0.1, rel=0.03)
    bound = math.sqrt(3.0 / 100.0)
    assert_distribution(
        x if cdf == "uniform" else x * 10.0, uniform_cdf(-bound, bound) if cdf == "uniform" else normal_cdf
    )
