"""VarStore: the object users hold. It is thin: what it is asked, the functions below it do.

Carving is the registry's, modules are those of `modules/`, gradients those of `gradients/`, files those of
`checkpoint/`; `making`, `looking`, `transfer` and `copies` beside this file are about whole stores.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .. import init as fv_init
from ..checkpoint import SHARD_SIZE, Snapshot
from ..checkpoint.capture import capture
from ..checkpoint.load import Options, load
from ..checkpoint.match import DtypePolicy, Rename
from ..checkpoint.opening import PathOrStream, TorchKey
from ..checkpoint.save import write
from ..checkpoint.snapshot import restore, take
from ..distributed.group import Group
from ..errors import FlatvarsError, UnknownNameError
from ..gradients import freezing, norms
from ..gradients.attached import ValueFormat, gradients_of, make_registry, masks_of
from ..gradients.cycle import Gradients, Mode
from ..gradients.norms import VariableNorms
from ..memory.layout import Region
from ..modules.adopt import adopt, adopt_buffers, registry_of, release_all, watch
from ..modules.buffers import left_out
from ..modules.capture import building
from ..modules.declare import Declarations, OnDuplicate
from ..modules.meta import Init
from ..modules.path import Path, Real
from ..modules.rebind import rebind, restore_aliases
from ..modules.shards import adopt_shards, fill_shards, has_shards, parameters_of, sharding_of
from ..optim.scaling import scale_of
from ..optim.stats import VariableStats
from ..variables.carving import OnMoved
from ..variables.registry import Registry
from ..variables.selectors import Selector, explain_unknown
from ..variables.variable import Variable
from . import transfer
from .devices import check_arguments, concrete, device_of
from .given import bytes_of_buckets, check_module, registry_in
from .looking import check_layout, looked_at, only_region, region_of, summary, summary_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh  # which not every torch was built with

_stores: weakref.WeakKeyDictionary[Registry, weakref.ref[VarStore]] = weakref.WeakKeyDictionary()


class VarStore:
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
    def registry(self) -> Registry:
        """The variables and all that was made for them: what optimizers, initializers and layers work with."""
        if self._registry.late:
            self._registry.take_late()
        return self._registry

    @property
    def device(self) -> torch.device:
        return self.registry.device

    @property
    def _gradients(self) -> Gradients:
        return gradients_of(self.registry)

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

    # Buffers ----------------------------------------------------------------------------------------------------------

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

    # Variables --------------------------------------------------------------------------------------------------------

    def variables(self) -> dict[str, Variable]:
        """All variables by name, in creation order; tied ones once, under their first name."""
        return {v.name: v for v in self.registry.variables}

    def trainable_variables(self) -> list[Variable]:
        """The variables that are trained, and those that `freeze` keeps from it, in creation order."""
        return self.registry.declared_trainable()

    def select(self, selector: Selector) -> list[Variable]:
        """The selected variables in creation order; see `flatvars.select`.

        Raises:
            UnknownNameError: a name or pattern that fits nothing.
        """
        return self.registry.matching(selector)

    def get(self, name: str, shape: Sequence[int] | None = None) -> Variable | None:
        """A variable by name, or None; None as well if it has another shape than asked for."""
        variable = self.registry.by_name.get(name)
        return variable if variable is not None and (shape is None or variable.has_shape(shape)) else None

    def __getitem__(self, name: str) -> Variable:
        try:
            return self.registry.by_name[name]
        except KeyError:
            raise UnknownNameError(explain_unknown(name, self.registry.by_name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self.registry.by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables())

    def __len__(self) -> int:
        return len(self.registry.variables)

    @property
    def is_empty(self) -> bool:
        return not self.registry.variables

    @property
    def numel(self) -> int:
        """Elements of all variables, without padding."""
        return sum(v.spec.numel for v in self.registry.variables)

    def gradient_names(self) -> list[str]:
        """Names of the variables that have a gradient now, in creation order."""
        return [v.name for v in self.registry.variables if v.grad is not None]

    def rename(self, name: str, new_name: str) -> None:
        """Gives a variable another name; id, values, gradient, optimizer state and module attribute stay.

        Raises:
            UnknownNameError, NameTakenError, SpecError: nothing has changed then.
        """
        self.registry.rename(self[name], new_name)

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

    # Invariants -------------------------------------------------------------------------------------------------------

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

    # Values -----------------------------------------------------------------------------------------------------------

    def copy_(self, other: VarStore) -> Self:
        """Copies the values of another store by name, converted to this one's dtypes and device.

        Variables that only the other store has are ignored. One copy a region where both stores have one layout.

        Raises:
            UnknownNameError: this store has variables that the other has not.
            SpecError: shapes differ. Nothing has changed in either case.
        """
        transfer.copy_(self.registry, registry_in(other, "copy_"))
        return self

    def lerp_(self, other: VarStore, weight: Real) -> Self:
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

    # Aliases ----------------------------------------------------------------------------------------------------------

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

    # Masks ------------------------------------------------------------------------------------------------------------

    def freeze(self, selector: Selector = None, *, clear_grad: bool = True) -> None:
        """Stops training the selected variables (all if not given); their optimizer state is kept.

        Costs nothing from then on: frozen variables have no tiles. `compact()` gives their memory back.

        Args:
            selector: Names, globs, regular expressions, predicates: see `flatvars.select`.
            clear_grad: Drop their gradients; else they are kept, and stay unused until the variables are trained again.
        """
        freezing.freeze(self.registry, self.registry.matching(selector), clear_grad)

    def unfreeze(self, selector: Selector = None) -> None:
        """Trains the selected variables again; without a selector, those that `freeze` froze. Buffers stay as they are.

        A variable that was frozen when the store was carved gets room for gradients and state: the buffers are
        re-carved, and everything is kept.
        """
        freezing.unfreeze(self.registry, self.registry.matching(selector), selected=selector is not None)

    def compact(self) -> None:
        """Gives back the gradient and state bytes of frozen variables; their state and element masks are forgotten.

        No gradient is lost: what `freeze(clear_grad=False)` kept waits in `.grad`, and a variable that plain
        `requires_grad_(False)` left with a gradient, which the next step uses as torch's does, keeps its room until a
        `compact()` that finds it without.
        """
        freezing.compact(self.registry)

    def set_trainable_mask(self, selector: Selector, mask: Tensor | None) -> None:
        """Trains only some elements of the selected variables: rows of an embedding, what pruning left.

        Masked elements keep their value and optimizer state, bit for bit, under every optimizer, weight decay included.
        Their gradient counts as 0 in every norm and in clipping, whatever it holds, NaN too. Step counts go on. A mask
        follows its variable through growth, freezing, `to()` and changes of dtype; `compact()` on a frozen variable
        forgets it. It costs a byte for each trainable element of its dtype, and nothing once no element is masked.

        Args:
            selector: Names, globs, regular expressions, predicates: see `flatvars.select`.
            mask: bool [shape], or what broadcasts to it, such as [rows, 1]: True trains. None, or all True: no mask.

        Raises:
            UnknownNameError: a pattern matches nothing.
            MaskError: a mask of another dtype or shape, or a variable without room for gradients, as a buffer. Nothing
                has changed then.

        Example:
            >>> store = VarStore.from_module(nn.Embedding(4, 2))
            >>> store.set_trainable_mask("weight", torch.tensor([[True], [False], [True], [True]]))
            >>> store.trainable_mask("weight")[:, 0].tolist()
            [True, False, True, True]
        """
        masks_of(self.registry).set(selector, mask)

    def trainable_mask(self, name: str) -> Tensor | None:
        """Which elements of a variable train, bool [shape], or None where all do. A copy; synchronizes.

        Raises:
            UnknownNameError: the store has no variable of that name.
        """
        return self.registry.masks.of(self[name])

    # Gradients --------------------------------------------------------------------------------------------------------

    def accumulate(
        self, grads: Mapping[str, Tensor] | Sequence[Tensor | None] | None = None, scale: Real = 1.0
    ) -> None:
        """Moves gradients into the flat stream, `scale` times: one launch, which takes the norm on the way.

        The first call after a step or a `zero_grad()` overwrites, later ones add. In "gather" mode `.grad` is None
        afterwards, and the sum is in `store.grads` and `Variable.grad`.

        Args:
            grads: Gradients by name, or one per trainable variable in creation order (None: none); the parameters'
                `.grad` if not given.
            scale: Factor, for example 1/k for the mean of k micro-batches.

        Raises:
            GradientError: a gradient of another shape or dtype class; which, is said.
        """
        self._gradients.accumulate(grads, scale)

    @contextmanager
    def last_backward(self, scaler: Any = None) -> Iterator[None]:
        """Averages gradients over ranks while the backward pass inside of it runs, the last one of a step.

        Of a store with `mesh=` and `bucket_cap_mb=`. Every rank has averages of its range when the block ends, and
        gradients of no use elsewhere: in `.grad` with grads="views", in the flat buffer else. A step or a `zero_grad()`
        comes next. Whatever else is done about gradients in between, such as a second backward pass, `accumulate`,
        clipping (use `max_norm=`), `scaler.unscale_` or a change in place, raises there or, on every rank, in the step,
        which then steps nothing. Backward passes of micro-batches come before, without a block.

        What raises inside is raised; the step of every rank says so, and all go on after `zero_grad()`.

        Args:
            scaler: The GradScaler that scales the loss and then steps, if there is one: gradients are divided by its
                scale before they are averaged.

        Raises:
            FlatvarsError: the store was made without `bucket_cap_mb`.
            GradientError: what the last block exchanged was not used, or a block is open; inside, a backward pass that
                reaches a variable twice, or a gradient that cannot be used.

        Example:
            >>> store = VarStore.from_module(model, mesh=mesh, bucket_cap_mb=25)  # doctest: +SKIP
            >>> with store.last_backward():  # doctest: +SKIP
            ...     model(batch).mean().backward()
            >>> optimizer.step()  # doctest: +SKIP
        """
        overlap = self._gradients.overlap
        if overlap is None:
            raise FlatvarsError(
                "last_backward() is of a store that averages gradients over ranks in buckets: make it with mesh= and "
                "bucket_cap_mb=25; without, leave the block out, and step() averages"
            )
        with overlap.block(scale_of(scaler, self.device)):
            yield

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients; no byte of the stream is written, the next `accumulate` overwrites.

        With `set_to_none=False` the gradients that exist become zeros, which is not the same: zeros still decay
        weights and move momentum. Use this, or the optimizer's, to drop what `accumulate` gathered: a module's own
        `zero_grad()` sees only `.grad`.
        """
        self._gradients.zero(set_to_none)

    def grad_norm(self, norm_type: Real = 2.0) -> Tensor:
        """Norm of all gradients as one vector, a device scalar; 0 if there are none. No synchronization."""
        return norms.norm(self._gradients, float(norm_type))

    def norms(self, norm_type: Real = 2.0) -> VariableNorms:
        """Norms of every trainable variable in one launch; nothing waits for the device.

        Returns:
            A mapping from names to (norm of the value, norm of the gradient or None), device scalars, which are made
            when they are read. `value_norm` and `grad_norm` are all of them, a tensor each: `norms.grad_norm.tolist()`
            waits once for what a loop of `.item()` waits for at every variable.
        """
        return norms.norms(self._gradients, float(norm_type))

    def clip_grad_norm_(
        self,
        max_norm: Real,
        norm_type: Real = 2.0,
        error_if_nonfinite: bool = False,
        *,
        per_tensor: bool = False,
    ) -> Tensor:
        """torch.nn.utils.clip_grad_norm_ over the flat stream: gathers, scales in place, returns the norm before.

        Args:
            per_tensor: Clip the norm of every variable's gradient by itself instead of that of all together, which is
                returned all the same.

        Raises:
            GradientError: `error_if_nonfinite` and the norm is NaN or infinite (this synchronizes).
            ValueError: `per_tensor` with an order that is not positive.
        """
        return norms.clip_norm_(self._gradients, max_norm, float(norm_type), error_if_nonfinite, per_tensor)

    def clip_grad_value_(self, clip_value: Real) -> None:
        """torch.nn.utils.clip_grad_value_ over the flat stream: gathers and clamps to [-clip_value, clip_value]."""
        norms.clip_value_(self._gradients, clip_value)

    def save(
        self,
        path: PathOrStream,
        optimizer: Any = None,
        schedulers: Any = None,
        rng: bool | Mapping[str, torch.Generator] = False,
        *,
        select: Selector = None,
        shard_size: int | str | None = SHARD_SIZE,
        progress: bool = False,
    ) -> None:
        """Writes a checkpoint: whole or not at all, whatever happens on the way.

        Args:
            path: Ends in .safetensors; or .pt, .pth or .bin for values that `torch.load` reads; or a folder that exists
                (its file is model.safetensors); or a binary stream.
            optimizer: One or several over this store: training state is saved, too (state, hyper-parameters, step
                counts, masks, gradients of an unfinished cycle), under the variables' names.
            schedulers: One or several; anything with a `state_dict()` of plain data.
            rng: True for the global random number generators (torch, CUDA, NumPy, Python), or generators by name, whose
                states are saved beside the global ones.
            select: Which variables, as for `flatvars.select`; all if not given.
            shard_size: Bytes ("5GB") above which there are several files and an index; None for one file.
            progress: Show a bar when it takes long.

        Raises:
            CheckpointError: no room on the disk, or something that no file can hold. What was there before, is there.
            AliasError: a Parameter no longer lies in the store, which would save stale values.

        Example:
            >>> store.save("step_1000.safetensors", optimizer, scheduler, rng=True)
        """
        write(capture(self.registry, optimizer, schedulers, rng, select), path, shard_size, progress)

    def load(
        self,
        path: PathOrStream,
        optimizer: Any = None,
        schedulers: Any = None,
        rng: bool | Mapping[str, torch.Generator] = False,
        *,
        strict: bool = True,
        dtype: DtypePolicy = "store",
        rename: Rename = None,
        select: Selector = None,
        verify: bool = True,
        progress: bool = False,
        key: TorchKey = None,
    ) -> None:
        """Loads a checkpoint of this library, or a safetensors or torch file of any other.

        Everything is checked, all names and shapes at once, before the first byte is written. Nothing is initialized.
        Where ranks have ranges or shards, all load the same file, and each takes its part.

        Args:
            path: A file, an index, a folder with one of Hugging Face's file names, or a binary stream.
            optimizer: Resume training: state, counts, hyper-parameters, masks, gradients. One or several, as saved.
            schedulers, rng: As saved; see `save`.
            strict: Names in the file that the store does not have are an error, too.
            dtype: "store" converts floating values to the variables' dtypes, "file" re-carves the store in the file's,
                "exact" refuses others.
            rename: From names in the file to names in the store: a mapping, a function, or pairs of (regular
                expression, replacement) applied one after another.
            select: As for `save`: which variables to load.
            verify: Compare checksums first, which reads the file twice.
            progress: Show a bar when it takes long.
            key: Under which key of a torch file the state dict lies, or keys, one within the other; if not given,
                it is the whole, or looked for under "state_dict", "model_state_dict" and "model".

        Raises:
            MismatchError: the file does not fit; every problem is named. Nothing has changed.
            DamagedFileError: the file is damaged; where, is said. Nothing has changed.
            CheckpointError: no such file, or one that wants to run code.

        Example:
            >>> store.load("model.safetensors", rename=[(r"^module\\.", "")])
        """
        options = Options(optimizer, schedulers, rng, strict, False, dtype, rename, select, verify, progress, key)
        load(self.registry, path, options)

    def load_partial(
        self,
        path: PathOrStream,
        *,
        dtype: DtypePolicy = "store",
        rename: Rename = None,
        select: Selector = None,
        verify: bool = True,
        progress: bool = False,
        key: TorchKey = None,
    ) -> list[str]:
        """Loads what a file holds of this store; arguments and errors as for `load`, shapes must fit.

        Returns:
            Names of the variables that the file does not hold, in creation order; they keep their values.
        """
        options = Options(None, None, False, False, True, dtype, rename, select, verify, progress, key)
        return load(self.registry, path, options)

    def read(self, path: PathOrStream, *, rename: Rename = None, key: TorchKey = None) -> None:
        """Loads every variable and keeps every dtype; what else is in the file is ignored."""
        load(self.registry, path, Options(strict=False, rename=rename, key=key))

    def fill(self, path: PathOrStream, *, rename: Rename = None, key: TorchKey = None) -> None:
        """Loads the variables that a file happens to hold and keeps every dtype; all else is left alone."""
        load(self.registry, path, Options(partial=True, rename=rename, key=key))

    def snapshot(
        self,
        optimizer: Any = None,
        schedulers: Any = None,
        rng: bool | Mapping[str, torch.Generator] = False,
        *,
        reuse: Snapshot | None = None,
    ) -> Snapshot:
        """Copies the whole training state into host memory, one copy per stream; arguments as for `save`.

        Args:
            reuse: A snapshot whose memory is taken over, which saves allocating it; it is empty afterwards.

        Raises:
            CheckpointError: an earlier snapshot's save in the background failed.

        Example:
            >>> snapshot = store.snapshot(optimizer)
            >>> snapshot.save("step_1000.safetensors")  # in the background
        """
        return take(self.registry, optimizer, schedulers, rng, reuse)

    def restore(self, snapshot: Snapshot) -> None:
        """Rolls values, optimizers, schedulers and generators back to a snapshot of this store, bit for bit.

        Raises:
            MismatchError: variables were added since, or it is another store's.
        """
        restore(self.registry, snapshot)


def store_of(registry: Registry) -> VarStore:
    """The store of a registry; a new handle where nobody kept one."""
    held = _stores.get(registry)
    store = None if held is None else held()
    if store is None:
        store = VarStore.__new__(VarStore)
        store._hold(registry, torch.float32, "suffix")
    return store


Registry.store_of = store_of
