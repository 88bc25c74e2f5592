"""Loading: everything is checked, and verified, before the first byte is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, DamagedFileError
from ..memory.streams import FROZEN_ELEMENTS, VALUES
from ..variables.registry import Registry
from ..variables.selectors import Selector, as_select, fits_name
from ..variables.variable import Variable
from .description import check_names
from .match import DTYPE_POLICIES, Match, Rename, match, raise_problems, renamer
from .opening import PathOrStream, opened
from .progress import Progress
from .random_state import PREFIX, apply_random, random_problems
from .resuming import apply_flags, apply_gradients, apply_optimizer, apply_schedulers, training_problems
from .source import Source
from .training import as_list, check_optimizer


@dataclass(frozen=True)
class Options:
    """How to load; `VarStore.load` documents each."""

    optimizer: Any = None
    schedulers: Any = None
    rng: bool | Mapping[str, torch.Generator] = False
    strict: bool = True
    partial: bool = False
    dtype: str = "store"
    rename: Rename = None
    select: Selector = None
    verify: bool = True
    progress: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_POLICIES:
            raise ValueError(f"dtype={self.dtype!r} is no policy; use one of {', '.join(map(repr, DTYPE_POLICIES))}")
        if self.resumes and self.select is not None:
            raise CheckpointError("select= loads some variables, training resumes with all; leave one of them out")

    @property
    def resumes(self) -> bool:
        return bool(as_list(self.optimizer) or as_list(self.schedulers))


class Loading:
    """One load into one registry, from the checks to the last write."""

    def __init__(self, registry: Registry, source: Source, options: Options) -> None:
        self.registry = registry
        self.source = source
        self.options = options
        self.description = source.description
        self.rename = renamer(options.rename)
        self.variables = registry.matching(options.select)
        self.match = self._match()
        if self.description is not None:
            check_names(self.description, source.entries, source.name)
        self.by_name = {name: self._store_variable(name) for name in self._saved_names()}
        self.keys: list[str] = []

    # Checks -------------------------------------------------------------------------------------------------------

    def _match(self) -> Match:
        strict = self.options.strict and not self.options.partial
        return match(
            self.variables,
            self.source.values(),
            rename=self.rename,
            unused=partial(fits_name, selector=as_select(self.options.select)) if strict else None,
            partial=self.options.partial,
            dtype=self.options.dtype,
        )

    def _saved_names(self) -> list[str]:
        return list(self.description.variables) if self.description is not None else []

    def _store_variable(self, name: str) -> Variable | None:
        content = self.description.variables[name] if self.description is not None else {}
        names = [name, *content.get("names", ())]
        return next((v for n in names if (v := self.registry.by_name.get(self.rename(n))) is not None), None)

    def check(self, progress: Progress) -> None:
        """Raises before anything was changed, or not at all.

        Raises:
            MismatchError: the file is another model's, or another training run's.
            DamagedFileError: a checksum is wrong.
        """
        options, content = self.options, self.description.training if self.description is not None else None
        problems = [] if self.variables or options.select is None else ["select= chooses none of the store's variables"]
        problems += self.match.problems
        if options.resumes:
            for optimizer in as_list(options.optimizer):
                check_optimizer(self.registry, optimizer)
            found = {name: v for name, v in self.by_name.items() if v is not None}
            given = (as_list(options.optimizer), as_list(options.schedulers))
            problems += training_problems(content, *given, found) + self._tensor_problems(content, found)
        if options.rng:
            random = content.get("random") if content is not None else None
            problems += random_problems(random, self.registry.device, options.rng)
        raise_problems(problems, self.source.name)
        self.keys = [*self.match.pairs.values(), *self._training_keys()]
        progress.start(sum(self.source.entries[key].nbytes for key in self.keys) * (2 if options.verify else 1))
        problems = [text for tied in self.match.tied for text in self._tied_problems(*tied)]
        raise_problems(problems, self.source.name)
        damaged = self.source.damaged(self.keys, progress.advance) if options.verify else []
        if damaged:
            raise DamagedFileError("; ".join(damaged[:20]) + ". Nothing was loaded; use an older checkpoint")

    def _tied_problems(self, index: int, keys: list[str]) -> list[str]:
        """A tied variable has one value: a file that holds two would lose one of them silently."""
        first = keys[0]
        for other in keys[1:]:
            same = all(
                torch.equal(a.view(torch.uint8), b.view(torch.uint8))
                for a, b in zip(self.source.pieces(first), self.source.pieces(other), strict=True)
            )
            if not same:
                name = self.variables[index].name
                return [f"{name!r} is tied in the store, but {first!r} and {other!r} of the file differ"]
        return []

    def _training_keys(self) -> list[str]:
        if self.description is None:
            return []
        wanted = set()
        if self.options.resumes:
            wanted |= {stream for stream in self.description.streams if stream != PREFIX}
        if self.options.rng:
            wanted.add(PREFIX)
        return [key for key in self.source.entries if self.description.name_of(key)[0] in wanted]

    def _tensor_problems(self, content: Mapping[str, Any] | None, found: Mapping[str, Variable]) -> list[str]:
        """Of tensors beside the values: states, gradients, masks."""
        problems = []
        absent = [name for name, variable in self.by_name.items() if variable is None]
        if absent:
            problems.append(f"the file trains {absent[0]!r} and {len(absent) - 1} more that the store does not hold")
        gradients = (content or {}).get("gradients", {})
        here = self.registry.gradients.mode
        if (gradients.get("touched") or gradients.get("pending")) and gradients["mode"] != here:
            problems.append(
                f"the file was saved within a cycle with grads={gradients['mode']!r}, and the store has {here!r}"
            )
        for key in self._training_keys():
            assert self.description is not None
            stream, name = self.description.name_of(key)
            variable = found.get(name)
            if stream == PREFIX or variable is None:
                continue
            if self.source.entries[key].shape != tuple(variable.shape):
                shape = self.source.entries[key].shape
                problems.append(f"{key!r} has shape {shape}, the variable {tuple(variable.shape)}")
        return problems

    # Writes -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def apply(self, progress: Progress) -> None:
        """Writes everything. All was checked."""
        self._adopt_dtypes()
        if self.options.resumes and self.description is not None:
            found = {name: v for name, v in self.by_name.items() if v is not None}
            apply_flags(self.registry, self.description.variables, found)
        chosen = [(self.variables[i], key) for i, key in self.match.pairs.items()]
        for variable, key in sorted(chosen, key=lambda pair: (self.source.entries[pair[1]].start, pair[1])):
            self._fetch(progress, key, self.registry.view(VALUES, variable))
        # Values were written behind autograd's back, as a step does.
        torch.autograd.graph.increment_version([variable.param for variable, _ in chosen])
        if self.options.resumes:
            self._apply_training(progress)
        if self.options.rng and self.description is not None and self.description.training is not None:
            random = self.description.training["random"]
            apply_random(random, self.registry.device, self.options.rng, self.source.whole)

    def _adopt_dtypes(self) -> None:
        if self.options.dtype != "file":
            return
        dtypes = {self.variables[i].id: self.source.entries[key].dtype for i, key in self.match.pairs.items()}
        specs = [v.spec for v in self.registry.variables]
        new = [
            dataclasses.replace(spec, dtype=dtypes.get(v.id, spec.dtype), trainable=spec.trainable and _can(dtypes, v))
            for spec, v in zip(specs, self.registry.variables, strict=True)
        ]
        if new != specs:
            self.registry.recarve(new)

    def _fetch(self, progress: Progress, key: str, target: Tensor) -> None:
        self.source.copy_to(target, key)
        progress.advance(self.source.entries[key].nbytes)

    def _apply_training(self, progress: Progress) -> None:
        assert self.description is not None
        assert self.description.training is not None
        content = self.description.training
        found = {name: v for name, v in self.by_name.items() if v is not None}
        fetch = partial(self._fetch, progress)
        for optimizer, saved in zip(as_list(self.options.optimizer), content["optimizers"], strict=False):
            apply_optimizer(optimizer, saved, found)  # first: groups say which rule, and so which states there are
            self._fill_states(optimizer, found, fetch)
        if as_list(self.options.optimizer):
            self._apply_masks(found)
            apply_gradients(self.registry, content["gradients"], found, fetch)
        if as_list(self.options.schedulers):
            apply_schedulers(as_list(self.options.schedulers), content["schedulers"])

    def _fill_states(self, optimizer: Any, found: Mapping[str, Variable], fetch: Callable[[str, Tensor], None]) -> None:
        names = {variable.id: name for name, variable in found.items()}
        members = [v for group in optimizer._variables for v in group if v.spec.trainable]
        states = optimizer.rule().states
        for dtype in dict.fromkeys(v.dtype for v in members):
            streams = optimizer.state_streams(dtype)
            for state, stream in zip(states, streams, strict=True):
                for variable in (v for v in members if v.dtype == dtype):
                    key = f"{state}/{names[variable.id]}"
                    target = stream.view(variable.span)
                    if key in self.source.entries:
                        fetch(key, target)
                    else:
                        target.zero_()

    def _apply_masks(self, found: Mapping[str, Variable]) -> None:
        for name, variable in found.items():
            key = f"{FROZEN_ELEMENTS}/{name}"
            self.registry.masks.take(variable, self.source.whole(key) == 0 if key in self.source.entries else None)


def _can(dtypes: Mapping[int, torch.dtype], variable: Variable) -> bool:
    return dtypes.get(variable.id, variable.dtype).is_floating_point


def load(registry: Registry, target: PathOrStream, options: Options) -> list[str]:
    """Loads a checkpoint into a registry; see `VarStore.load`.

    Args:

    Returns:
        Names of the variables that the file does not hold; empty unless `partial`.
    """
    registry.check_aliases()
    with opened(target) as source, Progress("loading", options.progress) as progress:
        loading = Loading(registry, source, options)
        loading.check(progress)
        loading.apply(progress)
        return loading.match.missing
