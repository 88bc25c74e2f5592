"""A store rolled back to a snapshot of it: whole streams where every variable lies where it lay, else one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import MismatchError
from ..gradients.attached import gradients_of
from ..gradients.cycle import GradientSnapshot
from ..gradients.freezing import follow_flags
from ..memory.spec import VarSpec
from ..memory.streams import FROZEN_ELEMENTS, GRADS, VALUES, Stream
from ..optim.record import OptimizerRecord
from ..variables.registry import Registry
from ..variables.variable import Variable
from .image import Image
from .match import raise_problems
from .plain import decode
from .random_state import apply_random
from .records import Record
from .rehearsal import scheduler_problems
from .training import Training


class Rollback:
    """One, from the checks to the last write.

    Args:
        rng: As it was given when the snapshot was taken.
    """

    def __init__(self, registry: Registry, image: Image, rng: bool | Mapping[str, torch.Generator]) -> None:
        registry.settle()
        registry.check_aliases()
        self.registry, self.image, self.rng = registry, image, rng
        self.records = image.catalog.records
        if [record.id for record in self.records] != [v.id for v in registry.variables]:
            raise MismatchError(
                f"the snapshot holds {len(self.records)} variables, the store now {len(registry.variables)}; save the "
                "snapshot and load it with load_partial"
            )
        self.optimizers = image.training.optimizers if image.training is not None else []
        self.states = [one.as_record() for one in self.optimizers]

    def check(self) -> None:
        """Raises MismatchError for optimizers and schedulers that are others by now; nothing has changed then."""
        pairs = zip(self.optimizers, self.states, strict=True)
        problems = [problem for one, record in pairs for problem in one.optimizer.problems(record)]
        training = self.image.training
        if training is not None:
            for saved, scheduler in zip(training.scheduled, training.schedulers, strict=True):
                problems += scheduler_problems(saved, scheduler)
        raise_problems(problems, "the snapshot")

    @torch.no_grad()
    def apply(self) -> None:
        """Writes everything. All was checked."""
        training = self.image.training
        if self.registry.layout is not self.image.layout:
            self._lay_out()
        if training is not None and (training.optimizers or training.schedulers):
            self._apply_flags()
        self.in_place = self.registry.layout == self.image.layout
        self.by_id = {record.id: record for record in self.records}
        self._apply_values()
        for one, record in zip(self.optimizers, self.states, strict=True):
            one.optimizer.restore(record, None if self.in_place else self._fetch_from(record))
        if training is None:
            return
        if self.optimizers:
            self.registry.seed = training.seed
            self._apply_masks()
            self._apply_gradients(training)
        for saved, scheduler in zip(training.scheduled, training.schedulers, strict=True):
            scheduler.load_state_dict(decode(saved["state"]))
        if training.random is not None:
            apply_random(training.random, self.registry.device, self.rng, self.image.loose.__getitem__)

    def _lay_out(self) -> None:
        """The dtypes of then, and room for what had it."""
        then = {record.id: record for record in self.records}
        trains = self.image.training is not None

        def change(variable: Variable) -> VarSpec:
            return _spec_then(then[variable.id], variable, trains)

        if any(change(variable) is not variable.spec for variable in self.registry.variables):
            self.registry.recarve(change)

    def _apply_flags(self) -> None:
        flipped = False
        for record, variable in zip(self.records, self.registry.variables, strict=True):
            if variable.requires_grad != record.trainable:
                variable.param.requires_grad_(record.trainable)
                flipped = True
            flipped = flipped or variable.frozen != record.frozen
            variable.frozen = record.frozen
        if flipped:
            follow_flags(self.registry)

    def _apply_values(self) -> None:
        for plane in self._planes(VALUES):
            target = self.registry.streams.get(VALUES, plane.region)
            if self.in_place:
                target.replace(plane.held)
                continue
            target.clear()  # what was written between variables is undone as well
            for record, variable in zip(self.records, self.registry.variables, strict=True):
                if variable.dtype == plane.region:
                    target.take(variable.span, plane.held, record.span)
        # Values were written behind autograd's back, as a step does.
        torch.autograd.graph.increment_version([variable.param for variable in self.registry.variables])

    def _planes(self, stream: str) -> list[Any]:
        return [plane for plane in self.image.planes if plane.stream == stream]

    def _fetch_from(self, saved: OptimizerRecord) -> Any:
        def fetch(state: str, variable: Variable, target: Tensor) -> bool:
            span = self.by_id[variable.id].span
            held = saved.streams.get((state, span.spec.dtype))
            if held is None or not span.spec.has_room or not held.covers(span):
                return False
            target.copy_(held.read(span))
            return True

        return fetch

    def _apply_masks(self) -> None:
        then = {plane.region: plane.held for plane in self._planes(FROZEN_ELEMENTS)}
        for region in self.registry.layout.regions:
            held, now = then.get(region.dtype), self.registry.streams.find(FROZEN_ELEMENTS, region.dtype)
            if (held is None and now is None) or self._same(held, now):
                continue
            for record, variable in zip(self.records, self.registry.variables, strict=True):
                if variable.dtype == region.dtype:
                    mask = held.read(record.span) == 0 if held is not None and record.span.spec.has_room else None
                    self.registry.masks.take(variable, mask)

    def _same(self, held: Stream | None, now: Stream | None) -> bool:
        if held is None or now is None or not self.in_place:
            return False
        return torch.equal(held.buffer, now.buffer.to(held.buffer.device))

    def _apply_gradients(self, training: Training) -> None:
        planes = {plane.region: plane.held for plane in self._planes(GRADS)}

        def fetch(kind: str, variable: Variable, target: Tensor) -> None:
            record = self.by_id[variable.id]
            held = (
                planes[variable.dtype].read(record.span) if kind == GRADS else self.image.loose[f"{kind}/{record.name}"]
            )
            target.copy_(held)

        assert training.gradients is not None
        now = {v.id: v for v in self.registry.variables}
        opened, pending = ([now[v.id] for v in each] for each in (training.gradients.open, training.gradients.pending))
        snapshot = GradientSnapshot(training.mode, opened, pending, training.gradients.norm)
        gradients_of(self.registry).restore(snapshot, fetch)


def _spec_then(record: Record, variable: Variable, trains: bool) -> VarSpec:
    spec, then = variable.spec, record.span.spec
    room = spec.has_room or (trains and then.has_room)
    if (spec.dtype, spec.has_room) == (then.dtype, room):
        return spec
    return dataclasses.replace(spec, dtype=then.dtype, has_room=room and then.dtype.is_floating_point)
