"""What a GradScaler asks of optimizers that unscale and skip inside their step.

It checks every `.grad` for infinities, sets `grad_scale` and `found_inf` on the optimizer, calls `step()` whatever it
found, and deletes both: nothing is read back to the host. `grad_scale` is None where `unscale_()` ran before. A user
may set `grad_scale` alone as well, to divide all gradients of a step by a device scalar.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import GradientError


def read_scaling(optimizer: Any, device: torch.device, gathered: bool) -> dict[str, Tensor | None]:
    """`grad_scale` and `found_inf` as the step's launch takes them: float32 [] on the store's device, or None.

    Args:
        gathered: Whether gradients were taken out of `.grad`, where the scaler did not see them.

    Raises:
        GradientError: the scaler checked no gradient, or not those of this step.
    """
    grad_scale = getattr(optimizer, "grad_scale", None)
    found_inf = getattr(optimizer, "found_inf", None)
    if grad_scale is None and found_inf is None:
        return {"grad_scale": None, "found_inf": None}
    if found_inf is not None and (not isinstance(found_inf, Tensor) or (gathered and grad_scale is not None)):
        raise GradientError(
            "the GradScaler checked no gradient of this step for infinities: "
            + (
                "store.accumulate() took them out of .grad. Leave them in .grad, where they add up as well, or call "
                "scaler.unscale_(optimizer) before store.accumulate()"
                if gathered
                else "none of the optimizer's parameters has one. Call backward() on a scaled loss first"
            )
            + "; nothing was stepped"
        )
    return {"grad_scale": _scalar(grad_scale, device), "found_inf": _scalar(found_inf, device)}


def scale_of(scaler: Any, device: torch.device) -> Tensor | None:
    """What a GradScaler multiplies losses by now, float32 []; None without one, or of one that is disabled."""
    if scaler is None or not scaler.is_enabled():
        return None
    scaled: Tensor = scaler.scale(torch.ones((), device=device))
    return scaled


def moves_of(arguments: Mapping[str, Any]) -> Tensor | None:
    """Whether a step with these arguments of `Plan.step_` is none of those that the device skips.

    Returns:
        bool [] on the device; None where no step can be skipped.
    """
    finite: Tensor | None = arguments["norm"].isfinite() if arguments["skip"] else None
    found_inf = arguments["found_inf"]
    if found_inf is None:
        return finite
    good: Tensor = found_inf.reshape(()) == 0.0
    return good if finite is None else good & finite


def _scalar(number: Any, device: torch.device) -> Tensor | None:
    if number is None:
        return None
    if not isinstance(number, Tensor):
        return torch.tensor(float(number), dtype=torch.float32, device=device)
    number = number.detach()
    if number.device != device or number.dtype != torch.float32:
        number = number.to(device, torch.float32, non_blocking=True)
    scalar: Tensor = number.reshape(()) if number.dim() else number  # torch's scaler keeps its scale as [] or [1]
    return scalar
