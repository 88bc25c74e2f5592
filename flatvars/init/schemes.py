"""Initializers by torch.nn.init's names, with its arguments and default values; and LeCun's.

Arguments that no initializer can have raise InitError here, a shape that does not fit when the variable is made.
"""

from __future__ import annotations

import math
from typing import Literal

from ..errors import InitError
from .fans import Nonlinearity, calculate_gain
from .initializers import Constant, Dirac, Eye, Initializer, Normal, Orthogonal, Scaled, Sparse, TruncNormal, Uniform

FanMode = Literal["fan_in", "fan_out"]
"""Which width of a layer its variance is kept by: of the forward or the backward pass."""


def zeros() -> Initializer:
    """0 everywhere."""
    return Constant(0)


def ones() -> Initializer:
    """1 everywhere."""
    return Constant(1)


def constant(val: float) -> Initializer:
    """One number everywhere, rounded to the variable's dtype once.

    Example:
        >>> fv.init.constant(0.5)
        Constant(value=0.5)
    """
    return Constant(val)


def uniform(a: float = 0.0, b: float = 1.0) -> Initializer:
    """U[a, b) in float32, 2^24 values apart by (b - a) / 2^24; rounding to a narrower dtype may give b itself.

    Raises:
        InitError: a > b, or bounds that are not finite.
    """
    return Uniform(a, b)


def normal(mean: float = 0.0, std: float = 1.0) -> Initializer:
    """N(mean, std^2).

    Raises:
        InitError: std < 0.
    """
    return Normal(mean, std)


def trunc_normal(mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Initializer:
    """N(mean, std^2) within [a, b]; the bounds are values, not multiples of std, as in torch.

    Raises:
        InitError: std <= 0, a >= b, or a probability below 1e-30 between the bounds.
    """
    return TruncNormal(mean, std, a, b)


def kaiming_uniform(
    a: float = 0.0,
    mode: FanMode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    *,
    gain: float | None = None,
    fan: float | None = None,
) -> Initializer:
    """U(-bound, bound) with bound = gain * sqrt(3 / fan). He et al. (2015), https://arxiv.org/abs/1502.01852

    By default gain sqrt(2) and fan_in, for ReLU. `nn.Linear` initializes itself with a=sqrt(5).

    Args:
        a: Negative slope of leaky_relu.
        mode: "fan_in" keeps the variance of the forward pass, "fan_out" of the backward pass.
        nonlinearity: What `calculate_gain` knows.
        gain: Instead of `a` and `nonlinearity`.
        fan: Instead of what the shape says.

    Raises:
        InitError: an unknown mode or nonlinearity, a negative gain, a fan that is not positive.

    Example:
        >>> fv.init.kaiming_uniform(gain=1.0)
        Scaled(distribution='uniform', gain=1.0, mode='fan_in', fan_in=None, fan_out=None)
    """
    return _kaiming("uniform", a, mode, nonlinearity, gain, fan)


def kaiming_normal(
    a: float = 0.0,
    mode: FanMode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    *,
    gain: float | None = None,
    fan: float | None = None,
) -> Initializer:
    """N(0, std^2) with std = gain / sqrt(fan); arguments and errors as for `kaiming_uniform`."""
    return _kaiming("normal", a, mode, nonlinearity, gain, fan)


def _kaiming(
    distribution: str, a: float, mode: FanMode, nonlinearity: Nonlinearity, gain: float | None, fan: float | None
) -> Initializer:
    if mode not in ("fan_in", "fan_out"):
        raise InitError(f"Mode {mode} not supported, please use one of ['fan_in', 'fan_out']")
    factor = calculate_gain(nonlinearity, a) if gain is None else gain
    given = (fan, None) if mode == "fan_in" else (None, fan)
    return Scaled(distribution, factor, mode, *given)


def xavier_uniform(gain: float = 1.0, *, fan_in: float | None = None, fan_out: float | None = None) -> Initializer:
    """U(-bound, bound) with bound = gain * sqrt(6 / (fan_in + fan_out)). Glorot and Bengio (2010).

    Args:
        fan_in, fan_out: Instead of what the shape says.

    Raises:
        InitError: a negative gain, a fan that is not positive.
    """
    return Scaled("uniform", gain, "fan_avg", fan_in, fan_out)


def xavier_normal(gain: float = 1.0, *, fan_in: float | None = None, fan_out: float | None = None) -> Initializer:
    """N(0, std^2) with std = gain * sqrt(2 / (fan_in + fan_out)); arguments and errors as for `xavier_uniform`."""
    return Scaled("normal", gain, "fan_avg", fan_in, fan_out)


def lecun_uniform(*, fan: float | None = None) -> Initializer:
    """U(-bound, bound) with bound = sqrt(3 / fan_in). LeCun et al., Efficient BackProp (1998).

    Args:
        fan: Instead of the shape's fan_in.

    Raises:
        InitError: a fan that is not positive.
    """
    return Scaled("uniform", 1.0, "fan_in", fan)


def lecun_normal(*, fan: float | None = None) -> Initializer:
    """N(0, 1 / fan_in), not truncated (JAX's and Keras' is); arguments and errors as for `lecun_uniform`."""
    return Scaled("normal", 1.0, "fan_in", fan)


def eye() -> Initializer:
    """The identity, for matrices; other shapes raise InitError when the variable is made."""
    return Eye()


def dirac(groups: int = 1) -> Initializer:
    """A convolution that passes its input through, for 3 to 5 axes; other shapes raise InitError."""
    return Dirac(groups)


def sparse(sparsity: float, std: float = 0.01) -> Initializer:
    """N(0, std^2) with `ceil(sparsity * rows)` zeros in each column, for matrices.

    Raises:
        InitError: a sparsity outside [0, 1], std < 0.
    """
    return Sparse(sparsity, std)


def orthogonal(gain: float = 1.0) -> Initializer:
    """A (semi-)orthogonal matrix [shape[0], the rest] times gain, for 2 and more axes; the shape is kept.

    The QR is in float32 (float64 for float64 variables) and the result is rounded last, so bfloat16 works. Backends
    differ in the factorization's own rounding. Saxe et al. (2013), https://arxiv.org/abs/1312.6120

    Raises:
        InitError: a gain that is not finite.
    """
    if not math.isfinite(gain):
        raise InitError(f"gain {gain} is not finite")
    return Orthogonal(gain)
