"""What every part of a VarStore shares: the registry and what looks after gradients, masks and declarations."""

from __future__ import annotations

from typing import Any

import torch

from ..gradients.attached import gradients_of, make_registry
from ..modules.declare import Declarations


class Core:
    """The state of a VarStore; see there for the arguments."""

    def __init__(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        *,
        grads: str = "gather",
        on_duplicate: str = "suffix",
    ) -> None:
        self._registry = make_registry(concrete(device), grads, seed)
        self._gradients = gradients_of(self._registry)
        self._declarations = Declarations(self._registry, dtype, on_duplicate)

    @property
    def device(self) -> torch.device:
        return self._registry.device

    @property
    def dtype(self) -> torch.dtype:
        """Of variables that are declared without one."""
        return self._declarations.dtype

    @property
    def seed(self) -> int:
        """Of initializers that the store runs."""
        return self._registry.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._registry.seed = seed

    # Copies -----------------------------------------------------------------------------------------------------------
    # `copies.py` says how: copy.deepcopy((module, store, optimizer)) and pickle.dumps(...) keep all three together.

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_gradients"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._gradients = gradients_of(self._registry)


def concrete(device: torch.device | str | None) -> torch.device:
    """A device with its index: tensors report "cuda:0", never "cuda"."""
    device = torch.device("cpu" if device is None else device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
