"""Errors that kernels and the library share; `flatvars.errors` offers them all."""

from __future__ import annotations


class FlatvarsError(Exception):
    """Base of all errors that flatvars raises on purpose."""


class GradientError(FlatvarsError, ValueError):
    """A gradient that cannot be used: wrong shape or dtype, or non-finite where that was refused."""


def check_order(order: float) -> None:
    """Raises ValueError where `order` is not that of a norm."""
    if not order > 0.0:
        raise ValueError(f"order {order} is not that of a norm; give a number above 0, or inf")
