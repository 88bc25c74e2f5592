"""VarStore: the object users hold. It is thin: what it is asked, the functions below it do.

Here are how a store is made and where its variables come from; the files beside are its other parts (`named`: variables
by name, `flat`: buffers and vectors, `moving`: devices, dtypes and memory that left, `training`: masks and gradients,
`files`), and `looking`, `transfer` and `copies` what these do with whole stores. Carving is the registry's, modules are
those of `modules/`, gradients those of `gradients/`, files those of `checkpoint/`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .. import init as fv_init
from ..distributed.group import Group
from ..gradients.attached import ValueFormat, make_registry
from ..gradients.cycle import Mode
from ..modules.adopt import adopt, adopt_buffers, registry_of, release_all
from ..modules.buffers import left_out
from ..modules.capture import building
from ..modules.declare import Declarations, OnDuplicate
from ..modules.meta import Init
from ..modules.path import Path
from ..modules.shards import adopt_shards, fill_shards, has_shards, parameters_of, sharding_of
from ..optim.stats import VariableStats
from ..variables.carving import OnMoved
from ..variables.registry import Registry
from ..variables.selectors import Selector
from . import transfer
from .devices import check_arguments, concrete, device_of
from .files import FilingStore
from .flat import FlatStore
from .given import bytes_of_buckets, check_module, registry_in
from .looking import summary, summary_of
from .moving import MovingStore
from .training import TrainingStore

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh  # which not every torch was built with

_stores: weakref.WeakKeyDictionary[Registry, weakref.ref[VarStore]] = weakref.WeakKeyDictionary()


class VarStore(FlatStore, MovingStore, TrainingStore, FilingStore):
    """Named variables in one contiguous buffer per dtype, with a parallel stream of gradients.

    Args:
        device: Where the buffers lie. The CPU if not given.
        dtype: Of variables that are declared without one.
        seed: Of initializers that the store runs.
        on_duplicate: What `Path` does with a name in use: "suffix" (declares `name__N`, as tch does) or "error".
        grads: "gather" (gradients stay where autograd leaves them until a step or `accumulate` reads them) or "views"
            (every `.grad` is a view of the flat gradient stream and autograd adds into it in place).
        on_moved: What a step, save or look does about a Parameter whose memory left the store (`module.to()`,
            `.data =`, a conversion inside a forward pass): "follow" copies the values back in, with one re-carve if
            dtypes or devices changed, and warns once (`flatvars.MovedWarning`); "error" raises AliasError. What would
            lose something raises in both.
        values: "split" keeps 16 more bits of every bfloat16 variable that trains, beside what torch sees: exactly a
            float32, in 4 bytes. Steps read and write all of it; `float32` and `write` do, files and copies too. Who
            writes to a Parameter has written the value. "corrected" is the same with 8 bits, in 3 bytes, and an error
            of 1.541e-5 of a number at most. "stochastic" keeps nothing beside, and steps round values at
            random, by draws of `seed`, name, step and position alone, so that small steps add up. None: the dtype says
            it all, and steps round to nearest.
        mesh: A one-dimensional mesh of data parallel ranks that share optimizer state, each a range: see
            `flatvars/distributed/README.md`. Every rank has all values.
        bucket_cap_mb: With mesh=: gradients are averaged in buckets of so many MiB at most (DDP's are of 25), of
            variables that lie side by side; one of a larger variable holds that alone. `last_backward()` then averages
            while the backward pass runs. It takes one optimizer, of all variables that train, and what lies in the flat
            gradients is used up by a step. None: all are averaged at once, in the step.

    Example:
        >>> store = VarStore.from_module(nn.Linear(4, 2))
        >>> store["weight"].shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        *,
        grads: Mode = "gather",
        on_duplicate: OnDuplicate = "suffix",
        on_moved: OnMoved = "follow",
        mesh: DeviceMesh | None = None,
        values: ValueFormat | None = None,
        bucket_cap_mb: float | None = None,
    ) -> None:
        check_arguments(device, dtype)
        if values is not None and dtype != torch.bfloat16:
            raise ValueError(
                f"values={values!r} is of bfloat16 variables, and dtype={dtype}: pass dtype=torch.bfloat16"
            )
        bucket_bytes = bytes_of_buckets(bucket_cap_mb, mesh)
        group = None if mesh is None else Group(mesh, bucket_bytes)
        self._hold(make_registry(concrete(device), grads, seed, on_moved, group, values), dtype, on_duplicate)

    def _hold(self, registry: Registry, dtype: torch.dtype, on_duplicate: OnDuplicate) -> None:
        self._registry = registry
        self._declarations = Declarations(registry, dtype, on_duplicate)
        _stores[registry] = weakref.ref(self)

    @property
    def dtype(self) -> torch.dtype:
        """Of variables that are declared without one."""
        return self._declarations.dtype

    @property
    def seed(self) -> int:
        """Of initializers that the store runs."""
        return self.registry.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.registry.seed = seed

    # Copies -----------------------------------------------------------------------------------------------------------
    # `copies.py` says how: copy.deepcopy((module, store, optimizer)) and pickle.dumps(...) keep all three together.

    # Where variables come from: modules, names, other stores ----------------------------------------------------------

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        buffers: bool = True,
        grads: Mode = "gather",
        init: Init | None = None,
        seed: int = 0,
        on_moved: OnMoved = "follow",
        values: ValueFormat | None = None,
        mesh: DeviceMesh | None = None,
        bucket_cap_mb: float | None = None,
    ) -> Self:
        """Carves a module's parameters out of one buffer; the module works on, unmodified.

        A store that held the module before, and nothing else, gives it up: it and its optimizers say so when they are
        used. So a cell of a notebook may be run again.

        Args:
            module: Any module. Its Parameter objects, hooks and names stay; their memory moves, one by one, so that the
                peak is the model twice, and once from the meta device. What `fully_shard` or `parallelize_module` has
                divided stays where it is: variables are this rank's shards, and of the arguments below it takes rules
                of `init`, `seed` and `on_moved` (see `flatvars/distributed/README.md`).
            device: Of the store; the module's own if not given. Buffers the store does not take stay where they are.
            dtype: To convert floating parameters and buffers to, as `module.to(dtype)` does; each keeps its own if not
                given.
            buffers: Take in the buffers that the module's state dict holds, too, as variables that never train: files,
                snapshots and copies are then whole. Not those that are registered with `persistent=False`, and none
                that the store cannot hold: sparse, complex, of a subclass, on another device than the parameters, or
                two that share memory. False: none. `summary()` names what is left out; a save or snapshot warns of
                what was left out without having been asked to.
            grads: As for `VarStore`.
            init: For modules on the meta device. Rules from name patterns to initializers, as for `fv.init.apply_`: one
                launch per dtype writes all parameters; buffers on meta take constants alone. Or a function, applied to
                every submodule to write values. If not given, each submodule's `reset_parameters()` is called. What it
                raises passes through; the module then lies in the store, with zeros where nothing was written yet.
            seed: Of initializers, as for `VarStore`.
            on_moved: As for `VarStore`.
            values: As for `VarStore`: with dtype=torch.bfloat16, a float32 model is taken in without losing a bit.
            mesh: A one-dimensional mesh of data parallel ranks: steps average gradients over them, each rank keeps the
                optimizer state of its range alone, and the first rank's values are sent to all here. DDP is not needed.
            bucket_cap_mb: As for `VarStore`: so that `last_backward()` averages gradients during a backward pass.

        Raises:
            SpecError: a sparse, complex or subclassed parameter, one that a store of more than this module holds, or
                whose memory other processes share,
                two that share memory, or meta modules without an initializer. The module is unchanged then.
            InitError: rules that do not match, or do not fit. The module is unchanged then.
            DisagreementError: modules of other names, shapes or dtypes on some rank. No module is changed then.

        Example:
            >>> model = nn.Linear(4, 2)
            >>> store = VarStore.from_module(model)
            >>> store.values.data_ptr() == model.weight.data_ptr()
            True
        """
        check_module(module)
        parameters = parameters_of(module)
        if has_shards(parameters):
            given = {"mesh": mesh, "device": device, "dtype": dtype, "values": values, "bucket_cap_mb": bucket_cap_mb}
            sharding = sharding_of(module, {**given, "grads": None if grads == "gather" else grads})
            store = cls.__new__(cls)
            registry = make_registry(device_of(parameters), "gather", seed, on_moved, sharding=sharding)
            store._hold(registry, torch.float32, "suffix")
            adopt_shards(registry, module)
            if init is not None:
                fill_shards(store, init)
            return store
        device = device_of(parameters) if device is None else device
        options: dict[str, Any] = {"grads": grads, "on_moved": on_moved, "mesh": mesh, "values": values}
        store = cls(device, dtype or torch.float32, seed, bucket_cap_mb=bucket_cap_mb, **options)
        store.add_module(module, dtype=dtype, buffers=buffers, init=init)
        return store

    @classmethod
    def of(cls, module: nn.Module) -> VarStore:
        """The store that holds a module's parameters, however it was made and whoever kept it.

        Raises:
            FlatvarsError: no store holds any of them, or several do.

        Example:
            >>> model = nn.Linear(4, 2)
            >>> VarStore.from_module(model) is VarStore.of(model)
            True
        """
        return store_of(registry_of(module))

    def release(self) -> None:
        """Gives all variables away: modules work on with the same Parameters, each in memory of its own.

        They may be adopted anew. This store and its optimizers are of no use any more, and say so. Gradients are left
        in `.grad`; optimizer state is gone (take `optimizer.state_dict()` before).
        """
        release_all(self.registry, "this store has released its variables; adopt the module into a new one")

    def remove(self, selector: Selector) -> list[str]:
        """Takes variables out: their names are free, and their memory, gradients and state are given back.

        Their Parameters are the same objects, with values in memory of their own, and leave all optimizers of the
        store. One re-carve.

        Args:
            selector: Names, globs, regular expressions, predicates: see `flatvars.select`.

        Returns:
            Names of the variables that were removed.

        Raises:
            UnknownNameError: a pattern matches nothing. Nothing has changed then.
        """
        chosen = self.registry.matching(selector)
        names = [variable.name for variable in chosen]
        self.registry.remove(chosen)
        return names

    def add_module(
        self,
        module: nn.Module,
        prefix: str = "",
        *,
        dtype: torch.dtype | None = None,
        buffers: bool = True,
        init: Init | None = None,
    ) -> None:
        """Adopts another module into this store, its names behind `prefix.`; arguments as for `from_module`."""
        check_module(module)
        adopt(self.registry, module, prefix=prefix, dtype=dtype, buffers=buffers, init=init)

    def add_buffers(self, module: nn.Module, prefix: str = "") -> list[str]:
        """Takes in the persistent buffers of an adopted module that the store does not hold.

        Those that were registered after the module was adopted, or all after `buffers=False`.

        Args:
            module: The module, or a part of it.
            prefix: Of its names in this store.

        Returns:
            Names of the new variables.

        Raises:
            NameTakenError: the store has a variable of such a name. Nothing has changed then.

        Example:
            >>> model = nn.BatchNorm1d(4)
            >>> store = VarStore.from_module(model, buffers=False)
            >>> store.add_buffers(model)
            ['running_mean', 'running_var', 'num_batches_tracked']
        """
        return adopt_buffers(self.registry, module, prefix)

    @contextmanager
    def capture(self, prefix: str = "", *, buffers: bool = True) -> Iterator[None]:
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
        chosen = self.registry.matching(selector)
        if selector is None:
            chosen = [variable for variable in chosen if variable.initializer is not None]
        fv_init.refill_(self.registry, chosen, seed)

    def add(self, name: str, tensor: Tensor, trainable: bool | None = None) -> Tensor:
        """Adds a variable; the buffer grows, and all others keep their objects, values, gradients and state.

        Args:
            name: Dotted path, new to this store.
            tensor: Initial values, [shape]; its dtype chooses the region. An nn.Parameter, and a leaf that requires a
                gradient, becomes the variable itself and stays the same object; of any other tensor a copy is taken.
            trainable: Whether it gets gradients and optimizer state; else it is a buffer. If not given, a Parameter
                keeps its `requires_grad`, and any other tensor is trained.

        Returns:
            The variable's tensor: the one that was given, a new Parameter, or a plain tensor for a buffer.

        Raises:
            NameTakenError: the store has a variable of that name.
            SpecError: a name or tensor that no store can hold.
        """
        return self._declarations.take(name, tensor, trainable=trainable, exact=True).param

    @classmethod
    def merge(cls, stores: Sequence[VarStore | tuple[VarStore, str]]) -> Self:
        """Moves the variables of several stores into a new one; every handle follows.

        The given stores are empty shells afterwards, and so are their optimizers. Gradients come along as `.grad`.

        Args:
            stores: Each alone or with a prefix, which goes before the names as it is: give "encoder.", with the dot.

        Raises:
            FlatvarsError: stores on several devices, or one given twice.
            NameTakenError: two variables would have one name. Nothing has changed in either case.
        """
        pairs = [store if isinstance(store, tuple) else (store, "") for store in stores]
        for given, _ in pairs:
            registry_in(given, "merge")
        first = pairs[0][0] if pairs else cls()
        mode, on_moved = first._gradients.mode, first.registry.on_moved
        merged = cls(first.device, first.dtype, first.seed, grads=mode, on_moved=on_moved)
        merged.registry.store_values_as(first.registry.value_format)
        transfer.merge_into(merged.registry, [(store.registry, prefix) for store, prefix in pairs])
        return merged

    def clone(self) -> Self:
        """A store of its own with copies of all variables: values, names, ids, masks, groups; no gradients."""
        copy = type(self)(
            self.device,
            self.dtype,
            self.seed,
            grads=self._gradients.mode,
            on_duplicate=self._declarations.on_duplicate,
            on_moved=self.registry.on_moved,
        )
        copy.registry.store_values_as(self.registry.value_format)
        transfer.clone_into(copy.registry, self.registry)
        return copy

    def summary(self, stats: VariableStats | None = None) -> str:
        """Tables of variables and of streams, with totals, and what is left out.

        Bytes are of whole streams, padding included; those of an optimizer are there from its first step on.

        Args:
            stats: Of an optimizer over this store, `optimizer.stats()`: its numbers of each variable are told instead,
                for which the device is waited for.

        Example:
            >>> print(VarStore.from_module(nn.Linear(4, 2)).summary())
            variable  shape   dtype    elements  state
            weight    (2, 4)  float32         8  trainable
            bias      (2,)    float32         2  trainable
            2 variables, 10 elements: 10 trainable, 0 frozen, 0 in buffers
            <BLANKLINE>
            stream  dtype    bytes
            values  float32    256
            256 bytes on cpu
        """
        return summary(self.registry) if stats is None else summary_of(stats)

    def __repr__(self) -> str:
        dtypes = ", ".join(str(region.dtype) for region in self.registry.layout.regions) or "empty"
        left = len(left_out(self.registry))
        return f"VarStore({len(self)} variables, {self.device}, {dtypes}{f'; {left} buffers left out' * bool(left)})"


def store_of(registry: Registry) -> VarStore:
    """The store of a registry; a new handle where nobody kept one."""
    held = _stores.get(registry)
    store = None if held is None else held()
    if store is None:
        store = VarStore.__new__(VarStore)
        store._hold(registry, torch.float32, "suffix")
    return store


Registry.store_of = store_of
