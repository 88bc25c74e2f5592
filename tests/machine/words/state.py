"""Edits and resets of `optimizer.state`."""

from __future__ import annotations

import collections

import hypothesis.strategies as st
import torch
from hypothesis.stateful import rule
from torch import Tensor

from tests.machine.words.common import NAMES, NUMBERS, SEEDS, Words, random


class StateWords(Words):
    def entries(self, number: int, name: str) -> list[dict[str, object]]:
        """Ours and theirs; none where there is no state."""
        lane = self.lane(number)
        ours, theirs = self.twins.pair(name)
        if not lane.theirs.state.get(theirs):
            return []
        return [lane.ours.state[ours], lane.theirs.state[theirs]]

    @rule(number=NUMBERS, name=NAMES, how=st.sampled_from(["in place", "tensor", "number"]))
    def set_step(self, number: int, name: str, how: str) -> None:
        entries = self.entries(number, name)
        if not entries or "step" not in entries[1]:
            return
        for entry in entries:
            step = entry["step"]
            assert isinstance(step, Tensor)
            if how == "in place":
                step.zero_()
            elif how == "number":
                step.fill_(7)
            else:
                entry["step"] = torch.tensor(3.0, dtype=torch.float32)

    @rule(number=NUMBERS, name=NAMES, seed=SEEDS, how=st.sampled_from(["assign", "in place", "scale"]))
    def write_state(self, number: int, name: str, seed: int, how: str) -> None:
        """Other moments; none of them negative, as squares cannot be."""
        entries = self.entries(number, name)
        for key in sorted(entries[1]) if entries else ():
            for entry in entries:
                value = entry[key]
                if not isinstance(value, Tensor) or key == "step":
                    continue
                other = random(value.shape, seed, value.dtype).abs()
                if how == "assign":
                    entry[key] = other
                elif how == "in place":
                    value.copy_(other)
                else:
                    value.mul_(0.5)

    @rule(number=NUMBERS, name=NAMES)
    def keep_a_note(self, number: int, name: str) -> None:
        for entry in self.entries(number, name):
            entry["note"] = 5

    @rule(number=NUMBERS, name=NAMES, how=st.sampled_from(["del", "pop", "empty", "clear"]))
    def drop_state(self, number: int, name: str, how: str) -> None:
        """The next step begins anew."""
        if not self.entries(number, name):
            return
        for optimizer, param in zip(self.lane(number).both, self.twins.pair(name), strict=True):
            if how == "del":
                del optimizer.state[param]
            elif how == "pop":
                optimizer.state.pop(param)
            elif how == "empty":
                optimizer.state[param] = {}
            else:
                optimizer.state[param].clear()

    @rule(number=NUMBERS, name=NAMES)
    def drop_momentum(self, number: int, name: str) -> None:
        entries = self.entries(number, name)
        if self.lane(number).kind == "momentum" and entries and "momentum_buffer" in entries[1]:
            for entry in entries:
                del entry["momentum_buffer"]

    @rule(number=NUMBERS, how=st.sampled_from(["clear", "assign"]))
    def reset(self, number: int, how: str) -> None:
        for optimizer in self.lane(number).both:
            if how == "clear":
                optimizer.state.clear()
            else:
                optimizer.state = collections.defaultdict(dict)

    @rule(number=NUMBERS, one=NAMES, other=NAMES)
    def move_state(self, number: int, one: str, other: str) -> None:
        """From one parameter to another of its shape, as densification does."""
        entries = self.entries(number, one)
        if not entries or one == other or self.twins.pair(one)[0].shape != self.twins.pair(other)[0].shape:
            return
        for optimizer, params in zip(
            self.lane(number).both, zip(self.twins.pair(one), self.twins.pair(other), strict=True), strict=True
        ):
            optimizer.state[params[1]] = optimizer.state.pop(params[0])
