"""Errors that kernels and the library share; `flatvars.errors` offers them all."""

from __future__ import annotations


class FlatvarsError(Exception):
    """Base of all errors that flatvars raises on purpose."""


class GradientError(FlatvarsError, ValueError):
    """A gradient that cannot be used: wrong shape or dtype, or non-finite where that was refused."""
