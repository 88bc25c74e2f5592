"""Whether a sample is one of a distribution: moments and Kolmogorov-Smirnov, with limits that chance seldom passes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

# Five standard errors: chance passes them once in two million samples, and seeds are fixed.
SIGMAS = 5.0
# Of the Kolmogorov distribution: P(sqrt(n) D > 2.2) is 1 in 8,000.
KS_LIMIT = 2.2


def normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def ks_statistic(sample: Tensor, cdf: Callable[[float], float]) -> float:
    """sqrt(n) times the largest distance between the sample's distribution function and the true one."""
    ordered = np.sort(sample.double().flatten().numpy())
    n = len(ordered)
    true = np.array([cdf(x) for x in ordered])
    steps = np.arange(n + 1) / n
    distance = max(np.max(true - steps[:-1]), np.max(steps[1:] - true))
    return math.sqrt(n) * float(distance)


def assert_moments(sample: Tensor, mean: float, variance: float, fourth: float) -> None:
    """Compares mean and variance with the truth, in standard errors.

    Args:
        fourth: The distribution's fourth central moment, which says how far a variance strays.
    """
    x = sample.double().flatten()
    n = x.numel()
    assert abs(x.mean().item() - mean) <= SIGMAS * math.sqrt(variance / n)
    error = math.sqrt((fourth - variance**2) / n)
    assert abs((x - mean).square().mean().item() - variance) <= SIGMAS * error


def assert_distribution(sample: Tensor, cdf: Callable[[float], float]) -> None:
    """Kolmogorov-Smirnov."""
    statistic = ks_statistic(sample, cdf)
    assert statistic <= KS_LIMIT, f"sqrt(n) D = {statistic:.2f}"
