"""Training state put back: flags, optimizers, masks, gradients of an unfinished cycle, schedulers; checked first."""

from __future__ import annotations

import math
from collections.abc import Callable, ItemsView, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import UNIT, state_format_of
from ..errors import DamagedFileError
from ..gradients.attached import gradients_of
from ..gradients.cycle import GradientSnapshot
from ..gradients.freezing import follow_flags
from ..memory.spec import is_dense
from ..memory.streams import FROZEN_ELEMENTS
from ..modules.buffers import buffers_beside
from ..optim.record import GroupRecord, OptimizerRecord
from ..variables.registry import Registry
from ..variables.variable import Variable
from .header import listing
from .plain import decode, decode_map, decode_number
from .random_state import PREFIX, apply_random, random_problems, try_random
from .rehearsal import scheduler_problems
from .source import Source
from .training import FILE, LOOSE, SCALE, check_optimizer, is_in_file, label_of

FetchTensor = Callable[[str, Tensor, Variable], None]
"""Copies the tensor of a name into one of the shape of a variable: what this rank has of it."""


class Resuming:
    """What a source says beside its values, for optimizers and schedulers that are given; nothing if none are.

    Args:
        rename: From names in the source to the store's.
        rng: As for `VarStore.load`.
    """

    def __init__(
        self,
        registry: Registry,
        source: Source,
        rename: Callable[[str], str],
        optimizers: list[Any],
        schedulers: list[Any],
        rng: bool | Mapping[str, torch.Generator],
    ) -> None:
        self.registry, self.source = registry, source
        self.optimizers, self.schedulers, self.rng = optimizers, schedulers, rng
        self.asked = bool(optimizers or schedulers)
        self.content: Mapping[str, Any] | None = None
        self.saved: Mapping[str, Mapping[str, Any]] = {}
        if source.description is not None:
            self.content = source.description.training
            self.saved = source.description.variables if self.asked else {}
        self.found: dict[str, Variable] = {}  # the store's variables by their names in the source
        for name, about in self.saved.items():
            for each in (name, *about.get("names", ())):
                variable = registry.by_name.get(rename(each))
                if variable is not None:
                    self.found.setdefault(name, variable)

        beside = buffers_beside(registry)
        self.beside = {name for name in self.saved if rename(name) in beside}  # which are no variables here
        self.name_of = {variable.id: name for name, variable in self.found.items()}

    def keys(self) -> list[str]:
        """The tensors that are read."""
        streams = self.source.by_stream.items()
        wanted = [keys for stream, keys in streams if stream and (self.rng if stream == PREFIX else self.asked)]
        return [key for keys in wanted for key in keys.values()]

    def rooms(self) -> set[int]:
        """Ids of the variables that had room for gradients and state."""
        return {variable.id for name, variable in self.found.items() if self.saved[name]["room"]}

    # Checks -----------------------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What keeps the state from being applied here, all of it.

        Raises:
            CheckpointError: what was given is no optimizer over this store.
            DamagedFileError: values that nobody wrote.
        """
        content, problems = self.content, []
        for optimizer in self.optimizers:
            check_optimizer(self.registry, optimizer)
        if self.asked and content is None:
            problems = ["the file holds values alone: it was saved without optimizer=; leave it and schedulers out"]
        elif content is not None and self.asked:
            problems = [*self._owner_problems(content), *self._tensor_problems(content)]
        if self.rng:
            random = content["random"] if content is not None else None
            problems += random_problems(random, self.registry.device, self.rng)
        return problems

    def _owner_problems(self, content: Mapping[str, Any]) -> Iterator[str]:
        for kind, given in (("optimizer", self.optimizers), ("scheduler", self.schedulers)):
            saved = content[f"{kind}s"]
            if given and len(saved) != len(given):
                yield f"the file holds {len(saved)} {kind}s, and {len(given)} were given; give as many"
        for i, (saved, optimizer) in enumerate(zip(content["optimizers"], self.optimizers, strict=False)):
            for problem in optimizer.problems(self._record(saved)):
                yield f"optimizer {i} of the file does not fit: {problem}"
        for saved, scheduler in zip(content["schedulers"], self.schedulers, strict=False):
            yield from scheduler_problems(saved, scheduler)

    def tried(self) -> Iterator[str]:
        """What keeps tensors that are no variable's from being applied here, once they are known to be sound."""
        random = None if self.content is None else self.content["random"]
        if self.rng and random is not None:
            yield from try_random(random, self.registry.device, self.rng, self.source.whole)

    def _record(self, saved: Mapping[str, Any]) -> OptimizerRecord:
        """An optimizer as the source describes it, without its streams."""
        groups = [
            GroupRecord(_hyper(group["hyper"]), [self.found[name] for name in group["variables"] if name in self.found])
            for group in saved["groups"]
        ]
        steps = {self.found[name].id: count for name, count in saved["steps"].items() if name in self.found}
        of = {self.found[name].id: name for name in saved["steps"] if name in self.found}
        return OptimizerRecord(
            saved["class"],
            tuple(saved["states"]),
            groups,
            torch.tensor(list(steps.values()), dtype=torch.float32),
            {key: row for row, key in enumerate(steps)},
            torch.tensor(saved["skipped"], dtype=torch.int32),
            loose={self.found[name].id: self._loose(each) for name, each in _loose_of(saved) if name in self.found},
            scalars={
                name: torch.tensor([decode_number(kept.get(of[key], 0.0), name) for key in steps], dtype=torch.float32)
                for name, kept in saved.get("scalars", {}).items()
            },
        )

    def _loose(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """What lay in no stream of a variable."""
        return {
            state: self.source.whole(value[FILE]) if is_in_file(value) else decode(value)
            for state, value in content.items()
        }

    def _tensor_problems(self, content: Mapping[str, Any]) -> Iterator[str]:
        """Of tensors beside the values: states, gradients, masks."""
        absent = [name for name in self.saved if name not in self.found and name not in self.beside]
        if absent:
            yield f"the file trains {absent[0]!r} and {len(absent) - 1} more that the store does not hold"
        yield from self._flag_problems()
        gradients, here = content["gradients"], self.registry.gradients.mode
        if (gradients["touched"] or gradients["pending"]) and gradients["mode"] != here:
            yield f"the file was saved within a cycle with grads={gradients['mode']!r}, and the store has {here!r}"
        lying = [name for name in gradients["touched"] if name in self.found]
        if self.registry.sharding is not None and (gradients["touched"] or gradients["pending"]):
            yield "the file was saved within a cycle of gradients, and shards take none from files: save behind a step"
        for name in (name for name in lying if not (self.saved[name]["room"] or self.found[name].spec.has_room)):
            yield f"{name!r} has a gradient in the file, and no room for one, there or here"
        states = [keys for stream, keys in self.source.by_stream.items() if stream not in ("", PREFIX, LOOSE)]
        for name, key in (pair for keys in states for pair in keys.items()):
            variable, shape = self.found.get(name), self.source.entries[key].shape
            wanted = None if variable is None else variable.whole_shape
            if variable is not None and key.partition("/")[0].endswith(SCALE):
                wanted = (-(-math.prod(variable.whole_shape) // UNIT),)
                yield from self._code_problems(name, key)
            elif variable is not None and self._is_packed(key):
                wanted = ((math.prod(variable.whole_shape) + 1) // 2,)
            if wanted is not None and shape != wanted:
                yield f"{key!r} has shape {shape}, the variable {wanted}"

    def _is_packed(self, key: str) -> bool:
        """Whether a state is stored as codes of which several are in a byte; these lie in memory order."""
        label, _, name = key.partition("/")
        scale = self.source.entries.get(f"{label}{SCALE}/{name}")
        format_ = None if scale is None else state_format_of([self.source.entries[key].dtype, scale.dtype])
        return format_ is not None and format_.parts[0].each > 1

    def _code_problems(self, name: str, scale: str) -> Iterator[str]:
        """Of a state that is stored as codes, by the key of its scales."""
        entries, key = self.source.entries, scale.replace(f"{SCALE}/", "/", 1)
        shape, stride = self.found[name].whole_shape, tuple(self.saved[name]["stride"])
        dtypes = [entries[each].dtype for each in (key, scale) if each in entries]
        if state_format_of(dtypes) is None or len(stride) != len(shape) or not is_dense(shape, stride):
            yield f"{scale!r} and {key!r} are {dtypes} of strides {stride}, which no format of states has"

    def _flag_problems(self) -> Iterator[str]:
        for name, variable in self.found.items():
            if self.registry.sharding is not None and self.saved[name]["trainable"] != variable.requires_grad:
                yield f"{name!r} trains in the file or in the store, not in both: set requires_grad before fully_shard"
            if not self.saved[name]["trainable"] or variable.requires_grad:
                continue
            if not variable.is_parameter:
                yield f"{name!r} is trained in the file, and a buffer in the store"
            elif not variable.dtype.is_floating_point:
                yield f"{name!r} is trained in the file, and {variable.dtype} in the store, which has no gradients"

    # Writes -----------------------------------------------------------------------------------------------------------

    def apply_flags(self) -> None:
        """Trains and freezes as the source says; re-carves where a variable lacks room."""
        for name, variable in self.found.items():
            trains = self.saved[name]["trainable"]
            if variable.requires_grad != trains:
                variable.param.requires_grad_(trains)
            variable.frozen = self.saved[name]["frozen"]
        if self.found:
            follow_flags(self.registry)

    def apply(self, fetch: FetchTensor) -> None:
        """All but the flags and what lies in the values."""
        content = self.content
        if content is None:
            return
        for number, (optimizer, saved) in enumerate(zip(self.optimizers, content["optimizers"], strict=False)):
            self._apply_optimizer(number, optimizer, saved, fetch)
        if self.optimizers:
            self.registry.seed = content.get("seed", self.registry.seed)
            self._apply_masks()
            self._apply_gradients(content["gradients"], fetch)
        for scheduler, saved in zip(self.schedulers, content["schedulers"], strict=False):
            scheduler.load_state_dict(decode(saved["state"]))
        if self.rng:
            apply_random(content["random"], self.registry.device, self.rng, self.source.whole)

    def _apply_optimizer(self, number: int, optimizer: Any, saved: Mapping[str, Any], fetch: FetchTensor) -> None:
        def fetch_state(state: str, variable: Variable, target: Tensor) -> bool:
            label, name = label_of(state, number), self.name_of[variable.id]
            key = self.source.by_stream.get(label, {}).get(name)
            scale = self.source.by_stream.get(f"{label}{SCALE}", {}).get(name)
            if key is not None and scale is not None:
                target.copy_(variable.shard_of(self._decoded(name, key, scale)))
            elif key is not None:
                fetch(key, target, variable)
            return key is not None

        optimizer.restore(self._record(saved), fetch_state)

    def _decoded(self, name: str, key: str, scale: str) -> Tensor:
        """A state that the source holds as codes, which are in units of the memory order that its variable had."""
        codes, stride, shape = self.source.whole(key), self.saved[name]["stride"], self.found[name].whole_shape
        numel = math.prod(shape)
        if not self._is_packed(key):
            ordered = torch.empty_strided(shape, stride, dtype=codes.dtype).copy_(codes)
            codes = ordered.as_strided((numel,), (1,))
        parts = [codes, self.source.whole(scale)]
        format_ = state_format_of([part.dtype for part in parts])
        assert format_ is not None  # it was checked
        return format_.numbers(parts, numel).as_strided(shape, stride)

    def _apply_masks(self) -> None:
        for name, variable in self.found.items():
            key = f"{FROZEN_ELEMENTS}/{name}"
            if key in self.source.entries:
                self.registry.masks.take(variable, variable.shard_of(self.source.whole(key) == 0))
            elif self.registry.streams.find(FROZEN_ELEMENTS, variable.dtype) is not None:
                self.registry.masks.take(variable, None)

    def _apply_gradients(self, content: Mapping[str, Any], fetch: FetchTensor) -> None:
        # Files of before there were cycles hold gradients of the stream that a step had used as well.
        opened, pending = [] if content["spent"] else content["touched"], content["pending"]
        lying, left = ([self.found[name] for name in each] for each in (opened, pending))
        gradients_of(self.registry).restore(
            GradientSnapshot(content["mode"], lying, left, content["fresh"]),
            lambda kind, variable, target: fetch(f"{kind}/{self.name_of[variable.id]}", target, variable),
        )


def _hyper(saved: Any) -> dict[str, Any]:
    hyper = decode_map(saved, "what the file says of a param group")
    if not all(isinstance(key, str) for key in hyper) or "params" in hyper:
        raise DamagedFileError(f"the file says of a param group {listing(hyper)}, which nobody saved")
    return hyper


def _loose_of(saved: Mapping[str, Any]) -> ItemsView[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = saved.get("loose", {})
    return found.items()
