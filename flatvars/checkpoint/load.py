"""Loading: everything is checked, and verified, before the first byte is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..distributed.shards import stretches_of
from ..errors import CheckpointError, DamagedFileError
from ..memory.spec import VarSpec
from ..memory.streams import VALUES
from ..modules.buffers import buffers_beside
from ..variables.registry import Registry
from ..variables.selectors import Selector, as_select, fits_name
from ..variables.variable import Variable
from .description import check_names
from .match import DTYPE_POLICIES, DtypePolicy, Rename, match, raise_problems, renamer
from .opening import PathOrStream, TorchKey, opened
from .progress import Progress
from .resuming import Resuming
from .source import Source
from .training import as_list


@dataclass(frozen=True)
class Options:
    """How to load; `VarStore.load` documents each."""

    optimizer: Any = None
    schedulers: Any = None
    rng: bool | Mapping[str, torch.Generator] = False
    strict: bool = True
    partial: bool = False
    dtype: DtypePolicy = "store"
    rename: Rename = None
    select: Selector = None
    verify: bool = True
    progress: bool = False
    key: TorchKey = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_POLICIES:
            raise ValueError(f"dtype={self.dtype!r} is no policy; use one of {', '.join(map(repr, DTYPE_POLICIES))}")
        if self.select is not None and (as_list(self.optimizer) or as_list(self.schedulers)):
            raise CheckpointError("select= loads some variables, training resumes with all; leave one of them out")


class Loading:
    """One load into one registry, from the checks to the last write."""

    def __init__(self, registry: Registry, source: Source, options: Options, progress: Progress | None = None) -> None:
        registry.settle()
        registry.check_aliases()
        self.registry, self.source, self.options = registry, source, options
        self.progress = Progress("loading", False) if progress is None else progress
        self.variables = registry.matching(options.select)
        rename = renamer(options.rename)
        strict = options.strict and not options.partial
        chosen, beside = partial(fits_name, selector=as_select(options.select)), buffers_beside(registry)
        self.buffers = {  # of a divided module, which are no variables
            key: beside[name] for key in source.values() if (name := rename(key)) in beside and chosen(name)
        }
        self.match = match(
            self.variables,
            source.values(),
            unread=source.unread,
            rename=rename,
            unused=(lambda name: chosen(name) and name not in beside) if strict else None,
            partial=options.partial,
            dtype=options.dtype,
            dtype_of=registry.number_dtype,
        )
        if source.description is not None:
            check_names(source.description, source.entries, source.name)
        owners = as_list(options.optimizer), as_list(options.schedulers)
        self.resuming = Resuming(registry, source, rename, *owners, options.rng)
        self.missing = [] if options.partial else [name for name in beside if chosen(name)]
        self.missing = [name for name in self.missing if name not in map(rename, self.buffers)]

    def check(self) -> None:
        """Raises before anything was changed, or not at all.

        Raises:
            MismatchError: the file is another model's, or another training run's.
            DamagedFileError: a checksum is wrong.
        """
        options, source = self.options, self.source
        nothing = not self.variables and options.select is not None
        problems = ["select= chooses none of the store's variables"] if nothing else []
        problems += [*self.match.problems, *self._buffer_problems(), *self.resuming.problems()]
        raise_problems(problems, source.name)
        keys = [*self.match.pairs.values(), *self.buffers, *self.resuming.keys()]
        self.progress.start(sum(source.entries[key].nbytes for key in keys) * (2 if options.verify else 1))
        raise_problems([text for tied in self.match.tied for text in self._tied_problems(*tied)], source.name)
        damaged = source.damaged(keys, self.progress.advance) if options.verify else []
        if damaged:
            raise DamagedFileError("; ".join(damaged[:20]) + ". Nothing was loaded; use an older checkpoint")
        raise_problems(list(self.resuming.tried()), source.name)

    def _buffer_problems(self) -> list[str]:
        found = [f"buffer {name!r} of the module is not in the file" for name in self.missing]
        for key, tensor in self.buffers.items():
            entry = self.source.entries[key]
            if entry.shape != tuple(tensor.shape) or entry.dtype != tensor.dtype:
                found.append(
                    f"buffer {key!r} is {tensor.dtype} of shape {tuple(tensor.shape)} in the module, and {entry.dtype} "
                    f"of shape {entry.shape} in the file"
                )
        return found

    def _tied_problems(self, index: int, keys: list[str]) -> list[str]:
        """A tied variable has one value: a file that holds two would lose one of them silently."""
        first = keys[0]
        for other in keys[1:]:
            pairs = zip(self.source.pieces(first), self.source.pieces(other), strict=True)
            if not all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs):
                name = self.variables[index].name
                return [f"{name!r} is tied in the store, but {first!r} and {other!r} of the file differ"]
        return []

    @torch.no_grad()
    def apply(self) -> None:
        """Writes everything. All was checked."""

        def fetch(key: str, target: Tensor, variable: Variable) -> None:
            copy_part(self.source, key, target, variable)
            self.progress.advance(self.source.entries[key].nbytes)

        self._lay_out()
        self.resuming.apply_flags()
        chosen = [(self.variables[i], key) for i, key in self.match.pairs.items()]
        for variable, key in sorted(chosen, key=lambda pair: (self.source.entries[pair[1]].start, pair[1])):
            held = self.registry.streams.get(VALUES, variable.dtype)
            room = held.room(variable.span)
            fetch(key, room, variable)
            if held.is_encoded(variable.span):
                held.write(variable.span, room)
        # Values were written behind autograd's back, as a step does.
        torch.autograd.graph.increment_version([variable.param for variable, _ in chosen])
        for key, tensor in self.buffers.items():
            self.source.copy_to(tensor, key)
        self.resuming.apply(fetch)

    def _lay_out(self) -> None:
        """Takes the file's dtypes over, if that was asked for; and makes room for the state it holds."""
        pairs = self.match.pairs.items() if self.options.dtype == "file" else ()
        found = [(self.variables[i], self.source.entries[key].dtype) for i, key in pairs]
        dtypes = {v.id: dtype for v, dtype in found if dtype != self.registry.number_dtype(v)}
        rooms = self.resuming.rooms()

        def change(variable: Variable) -> VarSpec:
            spec = variable.spec
            dtype = dtypes.get(variable.id, spec.dtype)
            room = (spec.has_room or variable.id in rooms) and (dtype == spec.dtype or dtype.is_floating_point)
            same = (dtype, room) == (spec.dtype, spec.has_room)
            return spec if same else dataclasses.replace(spec, dtype=dtype, has_room=room)

        if any(change(variable) is not variable.spec for variable in self.registry.variables):
            self.registry.recarve(change)


def copy_part(source: Source, key: str, target: Tensor, variable: Variable) -> None:
    """Copies what this rank has of a variable's tensor into one of its shape: all, or the elements of a shard."""
    if variable.whole is variable.param:
        source.copy_to(target, key)
        return
    flat = torch.empty(variable.numel, dtype=target.dtype, device=target.device)
    begin = 0
    for first, count in stretches_of(variable.whole):
        source.copy_to(flat[begin : begin + count], key, first)
        begin += count
    target.copy_(flat.view(target.shape))


def load(registry: Registry, target: PathOrStream, options: Options) -> list[str]:
    """Loads a checkpoint into a registry; see `VarStore.load`.

    Returns:
        Names of the variables that the file does not hold; empty unless `partial`.
    """
    with opened(target, options.key) as source, Progress("loading", options.progress) as progress:
        loading = Loading(registry, source, options, progress)
        loading.check()
        loading.apply()
        return loading.match.missing
