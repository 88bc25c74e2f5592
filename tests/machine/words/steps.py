"""Steps: of any of the optimizers, at its own pace."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis.stateful import rule

from tests.machine.words.common import NUMBERS, Words


class StepWords(Words):
    @rule(number=NUMBERS, max_norm=st.sampled_from([None, None, 0.5, 1e3]), skip=st.booleans())
    def step(self, number: int, max_norm: float | None, skip: bool) -> None:
        self.twins.step(self.lane(number), max_norm, skip)
        self.after_step()

    @rule(number=NUMBERS, at_once=st.booleans(), skip=st.booleans())
    def step_and_zero(self, number: int, at_once: bool, skip: bool) -> None:
        lane = self.lane(number)
        self.twins.step(lane, None, skip, zero_grad=at_once)
        if not at_once:
            self.after_step()
            lane.ours.zero_grad()
        self.twins.cycle.zero(self.twins.members(lane))
        if at_once:
            self.after_step()

    @rule(number=NUMBERS, gamma=st.sampled_from([0.5, 1.5]))
    def step_with_a_scheduler(self, number: int, gamma: float) -> None:
        lane = self.lane(number)
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma) for optimizer in lane.both]
        self.twins.step(lane, None, True)
        lane.theirs._opt_called = True  # it is not called where a step is skipped
        for scheduler in schedulers:
            scheduler.step()
        self.after_step()
