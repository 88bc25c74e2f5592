"""Where a store lies."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import FlatvarsError


def concrete(device: torch.device | str | None) -> torch.device:
    """A device with its index: tensors report "cuda:0", never "cuda"."""
    device = torch.device("cpu" if device is None else device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def device_of(module: nn.Module) -> torch.device:
    """The one device of a module's parameters; the CPU for those on meta.

    Raises:
        FlatvarsError: there are several.
    """
    devices = {p.device for p in module.parameters() if not p.is_meta}
    if len(devices) > 1:
        raise FlatvarsError(
            f"the module lies on several devices ({sorted(map(str, devices))}); pass device=, or one store each"
        )
    return devices.pop() if devices else torch.device("cpu")
