"""Values and gradients of a whole store: as buffers, as a vector, as those of another one."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Self

from ..memory.layout import Region
from ..modules.path import Real
from ..variables.registry import HasRegistry
from . import transfer
from .given import registry_in
from .looking import looked_at, only_region, region_of
from .named import ByName


class FlatStore(ByName):
    """A part of `VarStore`."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """One per dtype: which lengths the streams have. What left the store is taken in first, as by `values`."""
        return looked_at(self.registry).layout.regions

    @property
    def values(self) -> Tensor:
        """The flat values of a uniform store, [numel with padding]; padding is zero.

        What left the store (`.data =`, `module.double()`, a buffer that was replaced) is taken in first, unless
        `on_moved="error"`. A conversion or a new variable makes new buffers: ask again after it.
        """
        registry = looked_at(self.registry)
        return registry.streams.values(only_region(registry))

    @property
    def grads(self) -> Tensor:
        """The flat gradients of a uniform store, [trainable numel with padding]; gathers what is pending.

        Float32 for bfloat16 and float16 variables in "gather" mode. Variables without a gradient hold zeros.
        """
        return self._gradients.read_stream(only_region(looked_at(self.registry), gradients=True))

    def values_of(self, dtype: torch.dtype) -> Tensor:
        """The flat values of the region of a dtype; see `values`.

        Raises:
            FlatvarsError: the store has no variable of that dtype.
        """
        registry = looked_at(self.registry)
        return registry.streams.values(region_of(registry, dtype))

    def grads_of(self, dtype: torch.dtype) -> Tensor:
        """The flat gradients of the region of a dtype; see `grads`.

        Raises:
            FlatvarsError: the store has no variable of that dtype.
        """
        return self._gradients.read_stream(region_of(looked_at(self.registry), dtype))

    def copy_(self, other: HasRegistry) -> Self:
        """Copies the values of another store by name, converted to this one's dtypes and device.

        Variables that only the other store has are ignored. One copy a region where both stores have one layout.

        Raises:
            UnknownNameError: this store has variables that the other has not.
            SpecError: shapes differ. Nothing has changed in either case.
        """
        transfer.copy_(self.registry, registry_in(other, "copy_"))
        return self

    def lerp_(self, other: HasRegistry, weight: Real) -> Self:
        """Moves every value towards another store's: v + weight * (v_other - v), the soft update of a target network.

        Integer variables are copied. Variables are matched by name as by `copy_`, and it raises the same. One launch a
        region where both stores have one layout.
        """
        transfer.lerp_(self.registry, registry_in(other, "lerp_"), weight)
        return self

    def ravel(self) -> Tensor:
        """All values as one vector, [numel], a copy without padding: variables in creation order, row-major.

        Its dtype is the one all variables promote to.
        """
        return transfer.ravel(self.registry)

    def unravel(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector like `ravel()`'s, [numel], as tensors by name in the variables' shapes and dtypes; writes nothing.

        Raises:
            SpecError: a vector of another length.
        """
        return transfer.unravel(self.registry, vector)

    def float32(self, name: str) -> Tensor:
        """The numbers of a variable as float32, [shape]: all bits of them where `values="split"`; a copy.

        Raises:
            UnknownNameError: the store has no variable of that name.

        Example:
            >>> store = VarStore.from_module(nn.Linear(4, 2), dtype=torch.bfloat16, values="split")
            >>> store.write("bias", torch.tensor([0.1, 1 / 3]))
            >>> store.float32("bias").tolist(), store["bias"].value.tolist()
            ([0.10000000149011612, 0.3333333432674408], [0.10009765625, 0.333984375])
        """
        return self.registry.read(self[name]).detach().to(torch.float32, copy=True)

    def write(self, name: str, numbers: Tensor) -> None:
        """Replaces the values of a variable by numbers, [shape]; float32 is kept as it is where `values="split"`.

        Copying into the Parameter instead, of such a store, is a write of bfloat16.

        Raises:
            UnknownNameError: the store has no variable of that name.
            SpecError: another shape.
        """
        self[name].set_value(numbers)
