"""Bias correction of exponential averages without cancellation."""

from __future__ import annotations

from ..lang import device_function, exp, where


@device_function
def bias_correction(step, log_beta):
    """1 - beta**step, accurate in float32: -expm1(step * log(beta)), with log(beta) rounded from double.

    Computed as `1 - pow(beta, step)`, float32 would lose 4.7e-5 of the first step's value for beta = 0.999. Near zero
    expm1 is its Taylor series to the 10th power (remainder below 1e-10 relative for |x| < 0.5), else exp(x) - 1.
    """
    x = step * log_beta
    series = x * 2.755731922398589e-07 + 2.7557319223985893e-06
    series = series * x + 2.48015873015873e-05
    series = series * x + 1.984126984126984e-04
    series = series * x + 1.388888888888889e-03
    series = series * x + 8.333333333333333e-03
    series = series * x + 4.1666666666666664e-02
    series = series * x + 1.6666666666666666e-01
    series = series * x + 0.5
    series = (series * x) * x + x
    return where(x > -0.5, 0.0 - series, 1.0 - exp(x))
