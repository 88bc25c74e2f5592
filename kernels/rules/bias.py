"""Bias correction of exponential averages without cancellation."""

from __future__ import annotations

import math

from ..lang import device_function, exp, where


@device_function
def bias_correction(step, log_beta):
    """1 - beta**step, accurate in both precisions: -expm1(step * log(beta)), with log(beta) rounded from double.

    Computed as `1 - pow(beta, step)`, float32 would lose 4.7e-5 of the first step's value for beta = 0.999. Near zero
    expm1 is its Taylor series to the 15th power (remainder below 1e-16 relative for |x| < 0.5), else exp(x) - 1.
    """
    x = step * log_beta
    series = x * 7.647163731819816e-13 + 1.1470745597729725e-11
    series = series * x + 1.6059043836821613e-10
    series = series * x + 2.08767569878681e-09
    series = series * x + 2.505210838544172e-08
    series = series * x + 2.755731922398589e-07
    series = series * x + 2.7557319223985893e-06
    series = series * x + 2.48015873015873e-05
    series = series * x + 0.0001984126984126984
    series = series * x + 0.001388888888888889
    series = series * x + 0.008333333333333333
    series = series * x + 0.041666666666666664
    series = series * x + 0.16666666666666666
    series = series * x + 0.5
    series = (series * x) * x + x
    return where(x > -0.5, 0.0 - series, 1.0 - exp(x))


def log_of(beta: float) -> float:
    """log(beta), of 0 as well: what `bias_correction` and powers of `beta` start from."""
    return math.log(beta) if beta > 0.0 else -math.inf
