"""What a step can tell of its variables: sums of terms of their elements, taken where all of them are in registers."""

from __future__ import annotations

from ..lang import device_function, where

OBSERVED = ("value", "gradient", "update", "agreement", "momentum", "nonfinite", "zeros", "stuck")
"""Names of the sums: squares of the value after the step, of the gradient, of what the step adds; products of gradient
and momentum; squares of the momentum; gradients that are not finite, and that are 0; values that should have moved and
are stored as they were."""

MOMENTA = ("exp_avg", "momentum_buffer", "exp_avg_fast", "momentum")
"""Names of states that are a momentum."""

NO_MOMENTUM, OWN_MOMENTUM = -1, -2
"""Where a rule has no momentum; where its value is one."""


@device_function
def observe(old, new, stored, g, m):
    """The terms of an element.

    Args:
        old, new: The value before and after, in the precision of the arithmetic.
        stored: The new one as it is stored.
        g: The gradient, unscaled and not clipped.
        m: The momentum, before the step where the step moves it.
    """
    move = new - old
    finite = g - g == 0.0
    stuck = (stored == old) & (new != old)
    return (
        new * new,
        g * g,
        move * move,
        g * m,
        m * m,
        where(finite, 0.0, 1.0),
        where(g == 0.0, 1.0, 0.0),
        where(stuck, 1.0, 0.0),
    )
