"""Muon's conventions by name, and what a matrix's shape makes of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

Convention = Literal["torch", "keller", "moonshot", "dion"]
"""Whose arguments of `Muon`."""

Adjustment = Literal["original", "match_rms_adamw", "spectral_norm", "none"]
"""What a matrix's shape makes of its learning rate."""

CONVENTIONS: Mapping[Convention, Mapping[str, Any]] = {
    # torch.optim.Muon: the defaults of `Muon`.
    "torch": {},
    # github.com/KellerJordan/Muon
    "keller": {"lr": 0.02, "weight_decay": 0.0, "add_eps": True, "convolutions": True},
    # github.com/MoonshotAI/Moonlight
    "moonshot": {"sum_momentum": True, "add_eps": True, "adjust_lr_fn": "match_rms_adamw"},
    # github.com/microsoft/dion
    "dion": {
        "lr": 0.01,
        "weight_decay": 0.01,
        "nesterov": False,
        "ns_coefficients": "polar",
        "ns_steps": None,
        "adjust_lr_fn": "spectral_norm",
        "sum_momentum": True,
        "add_eps": True,
        "convolutions": True,
    },
}
"""Arguments of `Muon` that differ from torch's."""


def muon_settings(convention: Convention, **changes: Any) -> dict[str, Any]:
    """Arguments of `Muon` by whose convention they are, with changes.

    Args:
        convention: "torch", "keller" (Keller Jordan's repository), "moonshot" (Moonlight) or "dion" (Microsoft's).
        changes: Arguments of `Muon` that are to be other than the convention's.

    Raises:
        ValueError: no such convention.

    Example:
        >>> fv.optim.Muon(store, **fv.optim.muon_settings("moonshot", lr=3e-4))
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"there is no convention {convention!r}; there are {', '.join(CONVENTIONS)}")
    return {**CONVENTIONS[convention], **changes}


ADJUSTMENTS: Mapping[Adjustment, Callable[[int, int, tuple[int, int]], float]] = {
    "original": lambda out, into, sides: math.sqrt(max(1.0, sides[0] / sides[1])),
    "match_rms_adamw": lambda out, into, sides: 0.2 * math.sqrt(max(out, into)),
    "spectral_norm": lambda out, into, sides: math.sqrt(out / into),
    "none": lambda out, into, sides: 1.0,
}
"""Factor of the learning rate, by name, of a matrix that makes `out` numbers of `into`; `sides`: its last two axes."""


def check_adjustment(name: Any) -> None:
    """Raises ValueError, in torch's words, for what is no name of an adjustment, and not None."""
    if name is not None and name not in ADJUSTMENTS:
        raise ValueError(
            f"Adjust learning rate function {name} is not supported: adjust_lr_fn is one of {', '.join(ADJUSTMENTS)}, "
            "and None for the first"
        )


def adjustment(name: Adjustment | None, out: int, into: int, sides: tuple[int, int]) -> float:
    """The factor of the learning rate."""
    return ADJUSTMENTS["original" if name is None else name](out, into, sides)
