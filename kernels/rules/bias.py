"""Bias correction of exponential averages without cancellation."""

from __future__ import annotations

from ..lang import device_function, tl


@device_function
def bias_correction(step, log_beta):  # type: ignore[no-untyped-def]
    """1 - beta**step, accurate in float32: -expm1(step * log(beta)), with log(beta) rounded from double.

    Computed as `1 - pow(beta, step)`, float32 would lose 4.7e-5 of the first step's value for beta = 0.999. Near zero
    expm1 is its Taylor series to the 10th power (remainder below 1e-10 relative for |x| < 0.5), else exp(x) - 1.
    """
    x = step * log_beta
    series = 1.0 + x / 9.0 * (1.0 + x / 10.0)
    series = 1.0 + x / 5.0 * (1.0 + x / 6.0 * (1.0 + x / 7.0 * (1.0 + x / 8.0 * series)))
    series = x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * series)))
    return tl.where(x > -0.5, -series, 1.0 - tl.exp(x))
