"""Checkpoints: files, snapshots, and torch's state dicts, there and back in the middle of a run."""

from __future__ import annotations

import copy
import io
from typing import Any

from hypothesis.stateful import precondition, rule

import flatvars as fv
from tests.machine.twins import PAIRS
from tests.machine.words.common import NUMBERS, Words


class FileWords(Words):
    def _spoil(self) -> None:
        """What a load must bring back."""
        for variable in self.twins.store.variables().values():
            variable.value.fill_(9.0)
        for lane in self.twins.lanes:
            for stream in lane.ours.capture().streams.values():
                stream.buffer.zero_()

    @rule()
    def save_and_load(self) -> None:
        """A file brings everything back but gradients that a step has used."""
        twins, file = self.twins, io.BytesIO()
        optimizers = [lane.ours for lane in twins.lanes]
        twins.store.save(file, optimizers)
        self._spoil()
        file.seek(0)
        twins.store.load(file, optimizers)
        twins.lose_used()

    @rule()
    def snapshot_and_restore(self) -> None:
        twins = self.twins
        snapshot = twins.store.snapshot([lane.ours for lane in twins.lanes])
        self._spoil()
        twins.store.restore(snapshot)
        twins.lose_used()

    @rule(number=NUMBERS)
    @precondition(lambda self: self.twins.has_all_state_in_groups())
    def over_and_back(self, number: int) -> None:
        """State dicts of the module and of the optimizer go over to ours and back."""
        twins, lane = self.twins, self.lane(number)
        twins.module.load_state_dict(twins.plain.state_dict())
        lane.ours.load_state_dict(lane.theirs.state_dict())
        saved: dict[str, Any] = lane.ours.state_dict()
        lane.theirs.load_state_dict(copy.deepcopy(saved))  # torch keeps what it is given, which are our streams
        twins.plain.load_state_dict(twins.module.state_dict())

    @rule(number=NUMBERS)
    @precondition(lambda self: self.twins.has_all_state_in_groups())
    def torch_goes_on(self, number: int) -> None:
        """A new optimizer of torch from our state dict."""
        lane = self.lane(number)
        groups = [{"params": group["params"]} for group in lane.theirs.param_groups]
        if not groups:
            return
        _, theirs, arguments = PAIRS[lane.kind]
        fresh = theirs(groups, **arguments)
        fresh.load_state_dict(copy.deepcopy(lane.ours.state_dict()))
        lane.theirs = fresh

    @rule()
    @precondition(lambda self: self.twins.has_all_state_in_groups() and not self.twins.cycle.frozen)
    def ours_goes_on(self) -> None:
        """A new module in a new store, and new optimizers, from torch's state dicts."""
        twins = self.twins
        twins.module = copy.deepcopy(twins.plain)
        twins.module.zero_grad()
        twins.store = fv.VarStore.from_module(twins.module, grads=twins.mode, buffers=twins.buffers)
        for lane in twins.lanes:
            lane.ours = self.like(lane)
            lane.ours.load_state_dict(lane.theirs.state_dict())
            lane.patterns = [None] * len(lane.patterns)
        self.mask_again()
        twins.drop_gradients()
