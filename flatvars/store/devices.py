"""Where a store lies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..errors import FlatvarsError


def check_arguments(device: object, dtype: object) -> None:
    """Raises TypeError for a module, parameters or anything else that is given where a store wants to know a device."""
    if device is not None and not isinstance(device, (str, int, torch.device)):
        raise TypeError(
            f"VarStore(device, dtype) makes an empty store, and a {type(device).__name__} is no device; "
            "VarStore.from_module(module) makes one of a module's parameters, store.add(name, parameter) adds one"
        )
    if not isinstance(dtype, torch.dtype):
        raise TypeError(
            f"VarStore(device, dtype) got a {type(dtype).__name__} as dtype; give a torch.dtype. A module is adopted "
            "by VarStore.from_module(module)"
        )


def concrete(device: torch.device | str | None) -> torch.device:
    """A device with its index: tensors report "cuda:0", never "cuda"."""
    device = torch.device("cpu" if device is None else device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def device_of(parameters: Iterable[nn.Parameter]) -> torch.device:
    """The one device of a module's parameters; the CPU for those on meta.

    Raises:
        FlatvarsError: there are several.
    """
    devices = {parameter.device for parameter in parameters} - {torch.device("meta")}
    if len(devices) > 1:
        raise FlatvarsError(
            f"the module lies on several devices ({sorted(map(str, devices))}); pass device=, or one store each"
        )
    return devices.pop() if devices else torch.device("cpu")
