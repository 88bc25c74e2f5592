"""Errors that kernels and the library share; `flatvars.errors` offers them all."""

from __future__ import annotations

from typing import Any


class FlatvarsError(Exception):
    """Base of all errors that flatvars raises on purpose."""


class GradientError(FlatvarsError, ValueError):
    """A gradient that cannot be used: wrong shape or dtype, or non-finite where that was refused."""


class RuleError(FlatvarsError, ValueError):
    """A rule that no compiler, or only one of them, would take.

    Args:
        function: Of the rule.
        line: Of its file; None where the fault is in no line.
        fault, remedy: What is wrong, and what to do instead.
    """

    def __init__(self, function: Any, line: int | None, fault: str, remedy: str) -> None:
        place = "" if line is None else f', "{function.__code__.co_filename}", line {line}'
        super().__init__(f"rule {function.__name__!r}{place}: {fault}; {remedy}")


def check_order(order: float) -> None:
    """Raises ValueError where `order` is not that of a norm."""
    if not order > 0.0:
        raise ValueError(f"order {order} is not that of a norm; give a number above 0, or inf")
