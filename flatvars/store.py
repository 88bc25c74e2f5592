"""VarStore: the object users hold. It delegates: carving to the registry, gradients to `grads`, modules to `bind`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from . import bind
from .checkpoint import SHARD_SIZE, Snapshot
from .checkpoint.load import Options, load
from .checkpoint.match import Rename, Select
from .checkpoint.save import capture, write
from .checkpoint.snapshot import restore, take
from .checkpoint.source import Target
from .errors import FlatvarsError, NameTakenError
from .grads import Gradients
from .layout import Region
from .owners import check_owners
from .registry import Registry
from .registry import bind as bind_param
from .streams import VALUES
from .variable import Variable

# Inside the class, `float` is the conversion method.
Real = float


class VarStore:
    """Named variables in one contiguous buffer per dtype, with a parallel stream of gradients.

    Args:
        device: Where the buffers lie. The CPU if not given.
        dtype: Of variables that are declared without one.
        seed: Of initializers that the store runs.
        grads: "gather" (gradients stay where autograd leaves them until a step or `accumulate` reads them) or "views"
            (every `.grad` is a view of the flat gradient stream and autograd adds into it in place).

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
        grads: str = "gather",
    ) -> None:
        self._registry = Registry(_concrete(device))
        self._gradients = Gradients(self._registry, grads)
        self._registry.gradients = self._gradients
        self.dtype = dtype
        self.seed = seed

    # Making ---------------------------------------------------------------------------------------------------------

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        buffers: bool = False,
        grads: str = "gather",
        init: Callable[[nn.Module], object] | None = None,
    ) -> VarStore:
        """Carves a module's parameters out of one buffer; the module works on, unmodified.

        Args:
            module: Any module. Its Parameter objects, hooks and names stay; their memory moves, one by one, so that the
                peak is the model twice, and once from the meta device.
            device: Of the buffers; the module's own if not given. Buffers the store does not take stay where they are.
            dtype: To convert floating parameters to; each keeps its own if not given.
            buffers: Take registered buffers in too, as variables that are not trainable.
            grads: As for `VarStore`.
            init: For modules on the meta device: applied to every submodule to write values. If not given, each
                submodule's `reset_parameters()` is called. What it raises passes through; the module then lies in the
                store, with zeros where nothing was written yet.

        Raises:
            SpecError: a lazy, sparse, complex or subclassed parameter, one that another store holds, two that share
                memory, or meta modules without an initializer. The module is unchanged then.

        Example:
            >>> model = nn.Linear(4, 2)
            >>> store = VarStore.from_module(model)
            >>> store.values.data_ptr() == model.weight.data_ptr()
            True
        """
        store = cls(_device_of(module) if device is None else device, dtype or torch.float32, grads=grads)
        store.add_module(module, dtype=dtype, buffers=buffers, init=init)
        return store

    def add_module(
        self,
        module: nn.Module,
        prefix: str = "",
        *,
        dtype: torch.dtype | None = None,
        buffers: bool = False,
        init: Callable[[nn.Module], object] | None = None,
    ) -> None:
        """Adopts another module into this store, its names behind `prefix.`; arguments as for `from_module`."""
        bind.adopt(self._registry, module, self._make(), prefix=prefix, dtype=dtype, buffers=buffers, init=init)

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
        with bind.building() as roots:
            yield
        for i, module in enumerate(roots):
            path = prefix if len(roots) == 1 else ".".join(part for part in (prefix, str(i)) if part)
            self.add_module(module, path, buffers=buffers)

    def add(self, name: str, tensor: Tensor, trainable: bool = True) -> nn.Parameter:
        """Adds a variable; the buffer grows, and all others keep their objects, values, gradients and state.

        Args:
            name: Dotted path, new to this store.
            tensor: Initial values, [shape]; its dtype chooses the region. An nn.Parameter is bound itself.
            trainable: Whether it gets gradients and optimizer state.

        Returns:
            The variable's Parameter.

        Raises:
            NameTakenError: the store has a variable of that name.
            SpecError: a name or tensor that no store can hold.
        """
        param = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), requires_grad=False)
        found = bind.Found(param, [name])
        spec = dataclasses.replace(bind.make_spec(found, None), trainable=trainable)
        bind.check_memory([found])
        self._registry.extend([spec], [param], [[name]], self._make())
        if param.requires_grad != trainable:
            param.requires_grad_(trainable)
        return param

    def _make(self) -> Callable[..., Variable]:
        return partial(Variable, gradients=self._gradients)

    # Looking ----------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self._registry.device

    @property
    def regions(self) -> tuple[Region, ...]:
        """One per dtype: which lengths the streams have."""
        return self._registry.layout.regions

    @property
    def values(self) -> Tensor:
        """The flat values of a uniform store, [numel with padding]; padding is zero."""
        return self._registry.streams.values(self._only_region())

    @property
    def grads(self) -> Tensor:
        """The flat gradients of a uniform store, [trainable numel with padding]; gathers what is pending.

        Float32 for bfloat16 and float16 variables in "gather" mode. Variables without a gradient hold zeros.
        """
        return self._gradients.read_stream(self._only_region())

    def values_of(self, dtype: torch.dtype) -> Tensor:
        """The flat values of the region of a dtype."""
        return self._registry.streams.values(dtype)

    def grads_of(self, dtype: torch.dtype) -> Tensor:
        """The flat gradients of the region of a dtype."""
        return self._gradients.read_stream(dtype)

    def _only_region(self) -> torch.dtype:
        if len(self.regions) != 1:
            raise FlatvarsError(
                f"this store has {len(self.regions)} regions ({', '.join(str(r.dtype) for r in self.regions)}), so it "
                "has no single buffer; use values_of(dtype) and grads_of(dtype)"
            )
        return self.regions[0].dtype

    def variables(self) -> dict[str, Variable]:
        """All variables by name, in creation order; tied ones once, under their first name."""
        return {v.name: v for v in self._registry.variables}

    def trainable_variables(self) -> list[Variable]:
        """The variables that require gradients, in creation order."""
        return [variable for variable in self._registry.variables if variable.requires_grad]

    def __getitem__(self, name: str) -> Variable:
        try:
            return self._registry.by_name[name]
        except KeyError:
            raise NameTakenError(f"the store has no variable {name!r}; store.variables() lists them") from None

    def __contains__(self, name: object) -> bool:
        return name in self._registry.by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables())

    def __len__(self) -> int:
        return len(self._registry.variables)

    def summary(self) -> str:
        """Variables with their shapes and state, and the bytes of every stream, as a table."""
        rows = [f"{v.name:<48} {tuple(v.shape)!s:<20} {v.dtype!s:<16} {_state(v)}" for v in self._registry.variables]
        streams = self._registry.streams
        return "\n".join([*rows, f"{len(rows)} variables, {streams.nbytes:,} bytes in {', '.join(streams.names())}"])

    def __repr__(self) -> str:
        dtypes = ", ".join(str(region.dtype) for region in self.regions) or "empty"
        return f"VarStore({len(self)} variables, {self.device}, {dtypes})"

    # Masks ------------------------------------------------------------------------------------------------------------

    def freeze(self, patterns: str | Iterable[str] | None = None) -> None:
        """Stops training the variables whose names match (all if not given); drops their gradients, keeps their state.

        Costs nothing from then on: frozen variables have no tiles. `compact()` gives their memory back.
        """
        for variable in self._registry.matching(patterns):
            if variable.requires_grad:
                variable.param.requires_grad_(False)
                variable.frozen = True
            variable.param.grad = None
            self._gradients.touched.discard(variable.id)
        self._registry.sync_masks()

    def unfreeze(self, patterns: str | Iterable[str] | None = None) -> None:
        """Trains the matching variables again; without patterns, those that `freeze` froze. Buffers stay as they are.

        A variable that was frozen when the store was carved gets room for gradients and state: the buffers are
        re-carved, and everything is kept.
        """
        for variable in self._registry.matching(patterns):
            can = isinstance(variable.param, nn.Parameter) and variable.dtype.is_floating_point
            if variable.frozen or (patterns is not None and can):
                variable.param.requires_grad_(True)
        self._registry.sync_masks()

    def compact(self) -> None:
        """Gives back the gradient and state bytes of frozen variables; their optimizer state is forgotten."""
        self._registry.compact()

    # Moving -----------------------------------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> VarStore:
        """Moves every stream to a device; Parameters, gradients and optimizer state follow."""
        self.check_aliases()
        self._registry.recarve([v.span.spec for v in self._registry.variables], _concrete(device))
        return self

    def set_dtype(self, dtype: torch.dtype) -> VarStore:
        """Converts floating variables, with their gradients and the state that has their dtype; handles follow."""
        if not dtype.is_floating_point:
            raise FlatvarsError(
                f"{dtype} is not a floating dtype; variables are converted to float, half, bfloat16, double"
            )
        self.check_aliases()
        specs = [v.span.spec for v in self._registry.variables]
        self._registry.recarve([dataclasses.replace(s, dtype=dtype) if s.dtype.is_floating_point else s for s in specs])
        self.dtype = dtype
        return self

    def half(self) -> VarStore:
        return self.set_dtype(torch.float16)

    def bfloat16(self) -> VarStore:
        return self.set_dtype(torch.bfloat16)

    def float(self) -> VarStore:
        return self.set_dtype(torch.float32)

    def double(self) -> VarStore:
        return self.set_dtype(torch.float64)

    # Aliases ----------------------------------------------------------------------------------------------------------

    def check_aliases(self) -> None:
        """Raises AliasError when a Parameter no longer lies in the store, or its module holds another one."""
        self._registry.check_aliases()
        check_owners(self._registry.variables)

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
        return bind.rebind(self._registry)

    def restore_aliases(self) -> None:
        """Binds every Parameter to the store's memory again; values written elsewhere meanwhile are dropped."""
        for variable in self._registry.variables:
            bind_param(variable, self._registry.view(VALUES, variable))
        self._registry.generation += 1

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

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients; no byte of the stream is written, the next `accumulate` overwrites.

        With `set_to_none=False` the gradients that exist become zeros, which is not the same: zeros still decay
        weights and move momentum. Use this, or the optimizer's, to drop what `accumulate` gathered: a module's own
        `zero_grad()` sees only `.grad`.
        """
        self._gradients.zero(set_to_none)

    def grad_norm(self, norm_type: Real = 2.0) -> Tensor:
        """Norm of all gradients as one vector, a device scalar; 0 if there are none. No synchronization."""
        return self._gradients.norm(Real(norm_type))

    def norms(self, norm_type: Real = 2.0) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Norms of every trainable variable: (of its value, of its gradient or None), device scalars, in one launch."""
        return self._gradients.norms(Real(norm_type))

    def clip_grad_norm_(self, max_norm: Real, norm_type: Real = 2.0, error_if_nonfinite: bool = False) -> Tensor:
        """torch.nn.utils.clip_grad_norm_ over the flat stream: gathers, scales in place, returns the norm before.

        Raises:
            GradientError: `error_if_nonfinite` and the norm is NaN or infinite (this synchronizes).
        """
        return self._gradients.clip_norm_(max_norm, Real(norm_type), error_if_nonfinite)

    def clip_grad_value_(self, clip_value: Real) -> None:
        """torch.nn.utils.clip_grad_value_ over the flat stream: gathers and clamps to [-clip_value, clip_value]."""
        self._gradients.clip_value_(clip_value)

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "a VarStore is bound to its modules' memory and is neither copied nor pickled; deepcopy the module (its "
            "copy is free of the store) and adopt that, or save module.state_dict() and optimizer.state_dict()"
        )

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def save(
        self,
        path: Target,
        optimizer: Any = None,
        schedulers: Any = None,
        rng: bool | Mapping[str, torch.Generator] = False,
        *,
        select: Select = None,
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
            select: Globs, regular expressions or a function of the name: which variables; all if not given.
            shard_size: Bytes ("5GB") above which there are several files and an index; None for one file.
            progress: Show a bar when it takes long.

        Raises:
            CheckpointError: no room on the disk, or something that no file can hold. What was there before, is there.
            AliasError: a Parameter no longer lies in the store, which would save stale values.

        Example:
            >>> store.save("step_1000.safetensors", optimizer, scheduler, rng=True)
        """
        write(capture(self._registry, optimizer, schedulers, rng, select), path, shard_size, progress)

    def load(
        self,
        path: Target,
        optimizer: Any = None,
        schedulers: Any = None,
        rng: bool | Mapping[str, torch.Generator] = False,
        *,
        strict: bool = True,
        dtype: str = "store",
        rename: Rename = None,
        select: Select = None,
        verify: bool = True,
        progress: bool = False,
    ) -> None:
        """Loads a checkpoint of this library, or a safetensors or torch file of any other.

        Everything is checked, all names and shapes at once, before the first byte is written. Nothing is initialized.

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

        Raises:
            MismatchError: the file does not fit; every problem is named. Nothing has changed.
            DamagedFileError: the file is damaged; where, is said. Nothing has changed.
            CheckpointError: no such file, or one that wants to run code.

        Example:
            >>> store.load("model.safetensors", rename=[(r"^module\\.", "")])
        """
        options = Options(optimizer, schedulers, rng, strict, False, dtype, rename, select, verify, progress)
        load(self._registry, path, options, getattr(self, "set_trainable_mask", None))

    def load_partial(
        self,
        path: Target,
        *,
        dtype: str = "store",
        rename: Rename = None,
        select: Select = None,
        verify: bool = True,
        progress: bool = False,
    ) -> list[str]:
        """Loads what a file holds of this store; arguments and errors as for `load`, shapes must fit.

        Returns:
            Names of the variables that the file does not hold, in creation order; they keep their values.
        """
        options = Options(None, None, False, False, True, dtype, rename, select, verify, progress)
        return load(self._registry, path, options)

    def read(self, path: Target, *, rename: Rename = None) -> None:
        """Loads every variable and keeps every dtype; what else is in the file is ignored."""
        load(self._registry, path, Options(strict=False, rename=rename))

    def fill(self, path: Target, *, rename: Rename = None) -> None:
        """Loads the variables that a file happens to hold and keeps every dtype; all else is left alone."""
        load(self._registry, path, Options(partial=True, rename=rename))

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
        return take(self._registry, optimizer, schedulers, rng, reuse)

    def restore(self, snapshot: Snapshot) -> None:
        """Rolls values, optimizers, schedulers and generators back to a snapshot of this store, bit for bit.

        Raises:
            MismatchError: variables were added since, or it is another store's.
        """
        restore(self._registry, snapshot, getattr(self, "set_trainable_mask", None))

    # Invariants -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises if an invariant is broken: aliases, overlaps, padding that is not zero. Reads every byte."""
        self.check_aliases()
        for region in self.regions:
            end = 0
            values = self.values_of(region.dtype)
            spans = [v.span for v in self._registry.variables if v.dtype == region.dtype]
            for span in sorted(spans, key=lambda span: (span.offset, span.stop)):
                if span.offset < end or bool(torch.any(values[end : span.offset] != 0)):
                    raise FlatvarsError(
                        f"variable {span.spec.name!r} overlaps another, or the padding before it is not 0"
                    )
                end = span.offset + span.numel
            if bool(torch.any(values[end:] != 0)):
                raise FlatvarsError(f"the padding at the end of the {region.dtype} region is not 0")


def _state(variable: Variable) -> str:
    if not isinstance(variable.param, nn.Parameter):
        return "buffer"
    return "trainable" if variable.requires_grad else "frozen"


def _concrete(device: torch.device | str | None) -> torch.device:
    """A device with its index: tensors report "cuda:0", never "cuda"."""
    device = torch.device("cpu" if device is None else device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _device_of(module: nn.Module) -> torch.device:
    devices = {p.device for p in module.parameters() if not p.is_meta}
    if len(devices) > 1:
        raise FlatvarsError(
            f"the module lies on several devices ({sorted(map(str, devices))}); pass device=, or one store each"
        )
    return devices.pop() if devices else torch.device("cpu")
