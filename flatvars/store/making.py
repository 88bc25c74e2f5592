"""Where variables come from: modules, names, other stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import init as init_module
from ..errors import FlatvarsError
from ..modules.adopt import adopt
from ..modules.capture import building
from ..modules.meta import Init
from ..modules.path import Path
from ..variables.selectors import Selector
from . import transfer
from .core import Core

if TYPE_CHECKING:
    from typing_extensions import Self


class Making(Core):
    """Adopting, capturing, declaring, merging, cloning; and first values."""

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        buffers: bool = False,
        grads: str = "gather",
        init: Init | None = None,
        seed: int = 0,
    ) -> Self:
        """Carves a module's parameters out of one buffer; the module works on, unmodified.

        Args:
            module: Any module. Its Parameter objects, hooks and names stay; their memory moves, one by one, so that the
                peak is the model twice, and once from the meta device.
            device: Of the buffers; the module's own if not given. Buffers the store does not take stay where they are.
            dtype: To convert floating parameters to; each keeps its own if not given.
            buffers: Take registered buffers in too, as variables that are not trainable.
            grads: As for `VarStore`.
            init: For modules on the meta device. Rules from name patterns to initializers, as for `fv.init.apply_`: one
                launch per dtype writes all parameters; buffers on meta take constants alone. Or a function, applied to
                every submodule to write values. If not given, each submodule's `reset_parameters()` is called. What it
                raises passes through; the module then lies in the store, with zeros where nothing was written yet.
            seed: Of initializers, as for `VarStore`.

        Raises:
            SpecError: a lazy, sparse, complex or subclassed parameter, one that another store holds, two that share
                memory, or meta modules without an initializer. The module is unchanged then.
            InitError: rules that do not match, or do not fit. The module is unchanged then.

        Example:
            >>> model = nn.Linear(4, 2)
            >>> store = VarStore.from_module(model)
            >>> store.values.data_ptr() == model.weight.data_ptr()
            True
        """
        store = cls(_device_of(module) if device is None else device, dtype or torch.float32, seed, grads=grads)
        store.add_module(module, dtype=dtype, buffers=buffers, init=init)
        return store

    def add_module(
        self,
        module: nn.Module,
        prefix: str = "",
        *,
        dtype: torch.dtype | None = None,
        buffers: bool = False,
        init: Init | None = None,
    ) -> None:
        """Adopts another module into this store, its names behind `prefix.`; arguments as for `from_module`."""
        adopt(self._registry, module, prefix=prefix, dtype=dtype, buffers=buffers, init=init)

    @contextmanager
    def capture(self, prefix: str = "", *, buffers: bool = False) -> Iterator[None]:
        """Adopts every module that is built inside the context; several side by side get the names 0, 1, ...

        Example:
            >>> store = VarStore()
            >>> with store.capture():
            ...     model = nn.Linear(4, 2)
            >>> len(store)
            2
        """
        with building() as roots:
            yield
        for i, module in enumerate(roots):
            path = prefix if len(roots) == 1 else ".".join(part for part in (prefix, str(i)) if part)
            self.add_module(module, path, buffers=buffers)

    def root(self) -> Path:
        """The root of the tree of names: `store.root() / "layer1" / 3` is where variables are declared."""
        return Path(self._declarations)

    @contextmanager
    def declaring(self) -> Iterator[None]:
        """Declarations of this thread inside the block get their values at its end: one carve, one launch per dtype.

        Until then their parameters hold whatever memory held.

        Example:
            >>> with store.declaring():
            ...     weights = [(store.root() / i).randn_standard("w", (16,)) for i in range(1000)]
        """
        with self._declarations.together():
            yield

    def reinit(self, seed: int | None = None, selector: Selector = None) -> None:
        """Writes first values again, one launch per dtype; gradients, masks and optimizer state stay as they are.

        Args:
            seed: In [0, 2^64); the store's if not given, which reproduces the values the variables began with.
            selector: Which variables; all that an initializer wrote if not given.

        Raises:
            InitError: a selected variable that no initializer wrote. Nothing has changed then.
        """
        chosen = self._registry.matching(selector)
        if selector is None:
            chosen = [variable for variable in chosen if variable.initializer is not None]
        init_module.refill_(self._registry, chosen, seed)

    def add(self, name: str, tensor: Tensor, trainable: bool = True) -> Tensor:
        """Adds a variable; the buffer grows, and all others keep their objects, values, gradients and state.

        Args:
            name: Dotted path, new to this store.
            tensor: Initial values, [shape]; its dtype chooses the region. An nn.Parameter is bound itself.
            trainable: Whether it gets gradients and optimizer state; else it is a buffer.

        Returns:
            The variable's Parameter; a plain tensor for a buffer.

        Raises:
            NameTakenError: the store has a variable of that name.
            SpecError: a name or tensor that no store can hold.
        """
        return self._declarations.take(name, tensor, trainable=trainable, exact=True).param

    @classmethod
    def merge(cls, stores: Sequence[Core | tuple[Core, str]]) -> Self:
        """Moves the variables of several stores into a new one; every handle follows.

        The given stores are empty shells afterwards, and so are their optimizers. Gradients come along as `.grad`.

        Args:
            stores: Each alone or with a prefix, which goes before the names as it is: give "encoder.", with the dot.

        Raises:
            FlatvarsError: stores on several devices, or one given twice.
            NameTakenError: two variables would have one name. Nothing has changed in either case.
        """
        pairs = [(store, "") if isinstance(store, Core) else store for store in stores]
        first = pairs[0][0] if pairs else cls()
        merged = cls(first.device, first.dtype, first.seed, grads=first._gradients.mode)
        transfer.merge_into(merged._registry, [(store._registry, prefix) for store, prefix in pairs])
        return merged

    def clone(self) -> Self:
        """A store of its own with copies of all variables: values, names, ids, masks, groups; no gradients."""
        declarations = self._declarations
        copy = type(self)(
            self.device, self.dtype, self.seed, grads=self._gradients.mode, on_duplicate=declarations.on_duplicate
        )
        transfer.clone_into(copy._registry, self._registry)
        return copy


def _device_of(module: nn.Module) -> torch.device:
    devices = {p.device for p in module.parameters() if not p.is_meta}
    if len(devices) > 1:
        raise FlatvarsError(
            f"the module lies on several devices ({sorted(map(str, devices))}); pass device=, or one store each"
        )
    return devices.pop() if devices else torch.device("cpu")
