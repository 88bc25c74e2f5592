"""Edits of `param_groups`: lists edited and replaced, groups added and removed, numbers."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import rule

from tests.machine.twins import Lane
from tests.machine.words.common import NAMES, NUMBERS, Words


class GroupWords(Words):
    @rule(number=NUMBERS, group=NUMBERS, lr=st.sampled_from([0.5, 2.0]), decay=st.sampled_from([0.0, 0.1]))
    def set_numbers(self, number: int, group: int, lr: float, decay: float) -> None:
        for optimizer in self.lane(number).both:
            if optimizer.param_groups:
                chosen = optimizer.param_groups[group % len(optimizer.param_groups)]
                chosen["lr"], chosen["weight_decay"] = chosen["lr"] * lr, decay

    @rule(number=NUMBERS, name=NAMES)
    def take_out(self, number: int, name: str) -> None:
        self._take_out(self.lane(number), name)

    def _take_out(self, lane: Lane, name: str) -> None:
        for optimizer, param in zip(lane.both, self.twins.pair(name), strict=True):
            for group in optimizer.param_groups:
                group["params"] = [other for other in group["params"] if other is not param]

    @rule(number=NUMBERS, name=NAMES, group=NUMBERS)
    def put_in(self, number: int, name: str, group: int) -> None:
        """One that is in no group of the optimizer; another optimizer may step it as well."""
        lane = self.lane(number)
        if name in self.twins.members(lane):
            return
        for optimizer, param in zip(lane.both, self.twins.pair(name), strict=True):
            optimizer.param_groups[group % len(optimizer.param_groups)]["params"].append(param)

    @rule(number=NUMBERS, group=NUMBERS, how=st.sampled_from(["in place", "another list"]))
    def reverse(self, number: int, group: int, how: str) -> None:
        for optimizer in self.lane(number).both:
            chosen = optimizer.param_groups[group % len(optimizer.param_groups)]
            if how == "in place":
                chosen["params"].reverse()
            else:
                chosen["params"] = chosen["params"][::-1]

    @rule(number=NUMBERS, name=NAMES, how=st.sampled_from(["call", "append"]))
    def split(self, number: int, name: str, how: str) -> None:
        """A group of its own for one parameter."""
        lane = self.lane(number)
        if len(lane.patterns) > 3:
            return
        self._take_out(lane, name)
        for optimizer, param in zip(lane.both, self.twins.pair(name), strict=True):
            group = {**optimizer.param_groups[0], "params": [param]}
            if how == "call":
                optimizer.add_param_group({"params": [param], "lr": group["lr"]})
            else:
                optimizer.param_groups.append(group)
        lane.patterns.append(None)

    @rule(number=NUMBERS, group=NUMBERS)
    def remove_a_group(self, number: int, group: int) -> None:
        lane = self.lane(number)
        if len(lane.patterns) < 2:
            return
        for optimizer in lane.both:
            del optimizer.param_groups[group % len(lane.patterns)]
        del lane.patterns[group % len(lane.patterns)]

    @rule(number=NUMBERS)
    def assign_all(self, number: int) -> None:
        """New dicts in another order: what is declared later joins none of them."""
        lane = self.lane(number)
        for optimizer in lane.both:
            groups = reversed(optimizer.param_groups)
            optimizer.param_groups = [{**group, "params": list(group["params"])} for group in groups]
        lane.patterns = [None] * len(lane.patterns)
