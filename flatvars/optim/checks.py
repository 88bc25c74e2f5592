"""What optimizers refuse: hyper-parameters that make no sense, and variables that were forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..errors import GradientError


def check_complete(untouched: list[str]) -> None:
    """Raises GradientError for trained variables without a gradient."""
    if untouched:
        raise GradientError(
            f"{len(untouched)} variables have no gradient: {', '.join(map(repr, untouched[:10]))}; nothing was "
            "stepped. Use them in the loss, freeze them, or call step() without strict=True"
        )


def check_at_least(minimum: float, **numbers: Any) -> None:
    """Raises ValueError, in torch's words, for a hyper-parameter below a minimum (or NaN)."""
    for name, number in numbers.items():
        if not isinstance(number, Tensor) and not number >= minimum:
            raise ValueError(f"Invalid {name} value: {number}; it must be at least {minimum}")


def check_betas(betas: Iterable[float]) -> None:
    """Raises ValueError, in torch's words, for a beta outside [0, 1)."""
    for i, beta in enumerate(betas):
        if not 0.0 <= float(beta) < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
