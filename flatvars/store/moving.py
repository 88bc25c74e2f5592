"""What moves the memory of a store, and what is done about memory that modules have moved."""

from __future__ import annotations

import torch
from torch import nn
from typing_extensions import Self

from ..modules.adopt import watch
from ..modules.path import Path
from ..modules.rebind import rebind, restore_aliases
from .devices import concrete
from .looking import check_layout
from .named import ByName


class MovingStore(ByName):
    """A part of `VarStore`."""

    def check_aliases(self) -> None:
        """Takes back in what left the store, and buffers that their modules replaced.

        Raises:
            AliasError: a module holds another Parameter, something would be lost, or `on_moved="error"`.
        """
        self.registry.check_aliases()

    def check(self) -> None:
        """Raises if an invariant is broken: aliases, overlaps, padding that is not zero. Reads every byte."""
        self.check_aliases()
        check_layout(self.registry)
        self.registry.masks.check()

    def to(self, device: torch.device | str) -> Self:
        """Moves every stream to a device; Parameters, gradients and optimizer state follow."""
        self.check_aliases()
        self.registry.recarve(lambda v: v.spec, concrete(device))
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

        Call it before they start: a re-carve (more variables, another dtype) moves the values to other shared memory,
        which processes do not see that have the old. On a GPU, Parameters can be sent to another process from here on.
        A module's own share_memory() takes its Parameters out of the store one by one, which the next step notices.
        """
        self.registry.share_memory()
        return self

    def rebind(self) -> list[str]:
        """Takes in what replaced the store's memory: `module.half()`, `.to()`, `.data =`, a new Parameter, ...

        The modules' values, shapes, dtypes and device win; gradients and optimizer state are kept (and follow the dtype
        where they had the region's) but for variables of another shape now, which begin anew. A Parameter that was
        assigned to a module takes the place of the old one, also in optimizers.

        Returns:
            Names of the variables whose values were taken in.

        Raises:
            AliasError: tensors that no store can hold, or on several devices. Nothing has changed then.
        """
        return rebind(self.registry)

    def restore_aliases(self) -> None:
        """Binds every Parameter to the store's memory again; values written elsewhere meanwhile are dropped."""
        restore_aliases(self.registry)

    def watch(self, module: nn.Module, prefix: str = "") -> list[str]:
        """Tells the store which module uses its variables, so that one that is replaced there is noticed.

        `from_module`, `add_module` and `capture` do it by themselves. Call it for a module that was built from the
        store's variables, for one that was loaded together with the store from a pickle, and for that of a store which
        an optimizer made (`optimizer.store.watch(model)`): variables that had numbers then get the module's names, and
        its other parameters and its buffers are taken in, so that files and snapshots are whole.

        Args:
            module: The module, or a part of it.
            prefix: Of its names in this store.

        Returns:
            Names of the variables that the module holds.

        Raises:
            NameTakenError, SpecError: what would be taken in cannot be. Nothing has changed then.
        """
        return watch(self.registry, module, prefix)
