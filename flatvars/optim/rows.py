"""Rows: how many steps each variable of an optimizer took, and what else is one number of each.

They live on the device and stay when launches are planned anew: a variable keeps its row for as long as the optimizer
lives, whichever param group it is in, or none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..init.fills import name_key
from ..memory.streams import normal_tensors, own_storage
from ..variables.registry import Registry
from ..variables.variable import Variable

# Rows of counts that are made at a time: a captured graph knows where the counts lie, so that they move seldom.
ROWS = 256


class Rows:
    """Step counts and scalars of one optimizer.

    Args:
        registry: Of the variables.

    Attributes:
        steps: float32 [rows] on the device: steps taken by each variable; the kernels count them up. -0.0 of one whose
            state was set before its first step: where it is 0, kernels take the initial values of the rule.
        slots: Row of each variable, by id.
        skipped: int32 [] on the device: steps that `skip_nonfinite` or a GradScaler skipped.
        version: Grows when `steps` or a stream moved, so that views of them must be made anew.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        with normal_tensors():
            self.steps = torch.zeros(0, dtype=torch.float32, device=registry.device)
            self.skipped = torch.zeros((), dtype=torch.int32, device=registry.device)
        self.slots: dict[int, int] = {}
        self._free: list[int] = []  # rows of variables that were removed
        self.version = 0
        self._variables: dict[int, Variable] = {}
        self._epochs: dict[int, int] = {}
        self._paused: Tensor | None = None
        self._scalars: dict[str, Tensor] = {}
        self._keys: Tensor | None = None
        self._keyed = 0, 0  # generation, since a variable may be renamed, and seed that the keys were made of

    def enroll(self, variables: Iterable[Variable]) -> None:
        """Gives a row to every variable that has none, and room in the streams when they are asked for next."""
        new = [v for v in variables if v.id not in self.slots]
        if not new:
            return
        for variable in new:
            self.slots[variable.id] = self._free.pop() if self._free else len(self.slots)
            self._variables[variable.id] = variable
            self._epochs[variable.id] = variable.state_epoch
        self._keys = None
        if len(self.slots) > len(self.steps):
            rows = max(-(-len(self.slots) // ROWS) * ROWS, 2 * len(self.steps))
            self.steps = _longer(self.steps, rows)
            if self._paused is not None:
                self._paused = _longer(self._paused, rows)
            self._scalars = {name: _longer(scalar, rows) for name, scalar in self._scalars.items()}
            self.version += 1

    @property
    def taken(self) -> int:
        """Rows up to the last that a variable has or had."""
        return len(self.slots) + len(self._free)

    @property
    def variables(self) -> list[Variable]:
        """All that have a row, in the order they got it."""
        return list(self._variables.values())

    def lost(self) -> list[Variable]:
        """Variables whose room was given up since the last `follow_carve`, and with it what was known of them."""
        return [v for v in self._variables.values() if self._epochs[v.id] != v.state_epoch]

    def follow_carve(self) -> None:
        """Spans moved, maybe to another device."""
        device = self.registry.device
        if self.steps.device != device:
            self.steps, self.skipped = self.steps.to(device), self.skipped.to(device)
            self._paused = None if self._paused is None else self._paused.to(device)
            self._scalars = {name: scalar.to(device) for name, scalar in self._scalars.items()}
            self._keys = None
        self.version += 1
        lost = self.lost()
        self.set_steps(lost, [0.0] * len(lost))
        self._epochs.update((v.id, v.state_epoch) for v in lost)
        for variable in [v for v in lost if v.index < 0]:
            self._free.append(self.slots.pop(variable.id))
            del self._variables[variable.id], self._epochs[variable.id]

    def rows(self, variables: Iterable[Variable]) -> Tensor:
        """int64 [variables] on the device."""
        rows = [self.slots[v.id] for v in variables]
        return torch.tensor(rows, dtype=torch.int64).to(self.steps.device, non_blocking=True)

    def step_of(self, variable: Variable) -> Tensor:
        """The count of one variable, float32 []: in place, with a storage of its own."""
        row = self.slots[variable.id]
        with normal_tensors():
            return own_storage(self.steps[row : row + 1]).view(())

    @torch.no_grad()
    def set_steps(self, variables: Sequence[Variable], counts: Sequence[float | Tensor] | Tensor) -> None:
        """Sets counts in place, so that captured graphs go on from them."""
        if not variables:
            return
        if not isinstance(counts, Tensor):
            numbers = [float(count) for count in counts]
            counts = torch.tensor(numbers, dtype=torch.float32)
        rows, counts = self.rows(variables), counts.to(self.steps.device, torch.float32)
        self.steps[rows] = counts
        if self._paused is not None:
            self._paused[rows] = counts

    @torch.no_grad()
    def note_set(self, variables: Sequence[Variable]) -> None:
        """Variables that took no step go on from the state they have, not from the initial values of the rule."""
        rows = self.rows(variables)
        counts = self.steps[rows]
        self.steps[rows] = torch.where(counts == 0.0, -0.0, counts)

    def keys(self) -> Tensor:
        """int64 [1 + rows] on the device: seed of the store, then the key of each variable's name, at its row."""
        if self._keys is None:
            with normal_tensors():
                self._keys = self._make_keys().to(self.steps.device)
        elif self._keyed != (self.registry.generation, self.registry.seed):
            self._keys.copy_(self._make_keys())  # in place: a captured graph reads it there
        self._keyed = self.registry.generation, self.registry.seed
        return self._keys

    def _make_keys(self) -> Tensor:
        words = np.zeros(1 + len(self.steps), dtype=np.uint64)
        words[0] = self.registry.seed
        for variable in self._variables.values():
            words[1 + self.slots[variable.id]] = name_key(variable.name)
        return torch.from_numpy(words.view(np.int64))

    def scalars(self, names: Sequence[str]) -> list[Tensor]:
        """float32 [rows] each: scalars that every variable keeps, at its row; anything before its first step."""
        for name in names:
            if name not in self._scalars:
                self._scalars[name] = torch.zeros_like(self.steps)
        return [self._scalars[name] for name in names]

    def scalar_of(self, variable: Variable, name: str) -> Tensor:
        """A scalar of one variable, float32 []: in place, with a storage of its own."""
        row = self.slots[variable.id]
        return own_storage(self.scalars([name])[0][row : row + 1]).view(())

    @torch.no_grad()
    def pause(self, variables: Sequence[Variable], at_zero: bool = False) -> None:
        """Steps from now on do not count, though the kernels count them: what they count to is dropped by `resume`.

        Args:
            at_zero: Those up to now do not count either.
        """
        if not variables:
            return
        if self._paused is None:
            with normal_tensors():
                self._paused = torch.zeros_like(self.steps)
        rows = self.rows(variables)
        self._paused[rows] = torch.zeros_like(self.steps[rows]) if at_zero else self.steps[rows]

    @torch.no_grad()
    def resume(self, variables: Sequence[Variable]) -> None:
        """Counts go on from where they were when they paused."""
        if self._paused is not None and variables:
            rows = self.rows(variables)
            self.steps[rows] = self._paused[rows]


def _longer(counts: Tensor, rows: int) -> Tensor:
    with normal_tensors():
        longer = torch.zeros(rows, dtype=counts.dtype, device=counts.device)
    longer[: len(counts)] = counts
    return longer


def is_set(count: float) -> bool:
    """Whether a variable has a state: from its first step on, or from when somebody set one, which counts as -0.0."""
    return count > 0.0 or math.copysign(1.0, count) < 0.0
