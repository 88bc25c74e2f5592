"""Other memory and other values: device, dtype, copies from other stores, and what came loose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..modules.adopt import watch
from ..modules.path import Path
from ..modules.rebind import rebind
from ..variables.binding import bind as bind_param
from . import transfer
from .core import Core, concrete
from .looking import Looking

if TYPE_CHECKING:
    from typing_extensions import Self

# Inside the class, `float` is the conversion method.
Real = float


class Moving(Looking):
    """Device, dtype, values, aliases."""

    def to(self, device: torch.device | str) -> Self:
        """Moves every stream to a device; Parameters, gradients and optimizer state follow."""
        self.check_aliases()
        self._registry.recarve([v.spec for v in self._registry.variables], concrete(device))
        return self

    def set_dtype(self, dtype: torch.dtype) -> Self:
        """Converts floating variables, with gradients, masks and the state that has their dtype; handles follow.

        It is also the dtype of variables that are declared from now on.
        """
        Path(self._declarations).set_dtype(dtype)
        self._declarations.dtype = dtype
        return self

    def half(self) -> Self:
        """Converts floating variables; new ones keep the store's `dtype`, as with `bfloat16`, `float` and `double`."""
        Path(self._declarations).half()
        return self

    def bfloat16(self) -> Self:
        Path(self._declarations).bfloat16()
        return self

    def float(self) -> Self:
        Path(self._declarations).float()
        return self

    def double(self) -> Self:
        Path(self._declarations).double()
        return self

    def share_memory_(self) -> Self:
        """Moves the values into shared memory, where processes that get a Parameter write into this store.

        A module's own share_memory() takes its Parameters out of the store one by one, which the next step notices.
        """
        self._registry.share_memory()
        return self

    # Values -----------------------------------------------------------------------------------------------------------

    def copy_(self, other: Core) -> Self:
        """Copies the values of another store by name, converted to this one's dtypes and device.

        Variables that only the other store has are ignored. One copy a region where both stores have one layout.

        Raises:
            UnknownNameError: this store has variables that the other has not.
            SpecError: shapes differ. Nothing has changed in either case.
        """
        transfer.copy_(self._registry, other._registry)
        return self

    def lerp_(self, other: Core, weight: Real) -> Self:
        """Moves every value towards another store's: v + weight * (v_other - v), the soft update of a target network.

        Integer variables are copied. Variables are matched by name as by `copy_`, and it raises the same. One launch a
        region where both stores have one layout.
        """
        transfer.lerp_(self._registry, other._registry, weight)
        return self

    def ravel(self) -> Tensor:
        """All values as one vector, [numel], a copy without padding: variables in creation order, row-major.

        Its dtype is the one all variables promote to.
        """
        return transfer.ravel(self._registry)

    def unravel(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector like `ravel()`'s, [numel], as tensors by name in the variables' shapes and dtypes; writes nothing.

        Raises:
            SpecError: a vector of another length.
        """
        return transfer.unravel(self._registry, vector)

    # Aliases ----------------------------------------------------------------------------------------------------------

    def rebind(self) -> list[str]:
        """Takes in what replaced the store's memory: `module.half()`, `.to()`, `.data =`, a new Parameter, ...

        The modules' values, dtypes and device win; gradients and optimizer state are kept (and follow the dtype where
        they had the region's). A Parameter that was assigned to a module takes the place of the old one, also in
        optimizers.

        Returns:
            Names of the variables whose values were taken in.

        Raises:
            AliasError: a shape changed, or variables lie on several devices.
        """
        return rebind(self._registry)

    def restore_aliases(self) -> None:
        """Binds every Parameter to the store's memory again; values written elsewhere meanwhile are dropped."""
        self._registry.settle()
        for variable in self._registry.variables:
            bind_param(variable, self._registry.piece(variable))
        self._registry.generation += 1

    def watch(self, module: nn.Module) -> list[str]:
        """Tells the store which module uses its variables, so that one that is replaced there is noticed.

        `from_module`, `add_module` and `capture` do it by themselves. Call it for a module that was built from the
        store's variables, and for one that was loaded together with the store from a pickle.

        Returns:
            Names of the variables that the module holds.
        """
        return watch(self._registry, module)
