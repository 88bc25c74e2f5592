"""What trains: freezing, room, element masks."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis.stateful import rule

from tests.machine.words.common import NAMES, SEEDS, Words


class MaskWords(Words):
    @rule(name=NAMES)
    def freeze(self, name: str) -> None:
        self.twins.store.freeze(name)
        theirs = self.twins.theirs()[name]
        if theirs.requires_grad:
            self.twins.cycle.frozen.add(name)
        theirs.requires_grad_(False)
        self.twins.cycle.zero([name])

    @rule()
    def unfreeze(self) -> None:
        self.twins.store.unfreeze()
        for name in self.twins.cycle.frozen:
            self.twins.theirs()[name].requires_grad_(True)
        self.twins.cycle.frozen.clear()

    @rule()
    def compact(self) -> None:
        """Without room for state, what optimizers knew of a frozen variable is gone, and its mask with it.

        One that has a gradient to be stepped, which plain `requires_grad_(False)` leaves, keeps its room; one that had
        none keeps what state torch made for it.
        """
        twins = self.twins
        roomy = [name for name in twins.theirs() if twins.store[name].spec.has_room]
        waiting = {name for name in roomy if name not in twins.cycle.frozen and twins.cycle.seen(name) is not None}
        twins.store.compact()
        for name in roomy:
            theirs = twins.theirs()[name]
            if not theirs.requires_grad and name not in waiting:
                twins.cycle.masks.pop(name, None)
                for lane in twins.lanes:
                    lane.theirs.state.pop(theirs, None)

    @rule(name=NAMES, seed=SEEDS, remove=st.booleans())
    def mask(self, name: str, seed: int, remove: bool) -> None:
        variable, cycle = self.twins.store[name], self.twins.cycle
        if not variable.spec.has_room:
            return
        chances = torch.rand(variable.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        self.twins.store.set_trainable_mask(name, None if remove else chances < 0.7)
        cycle.masks.pop(name, None)
        if not remove and not bool((chances < 0.7).all()):
            cycle.masks[name] = chances < 0.7
        if name in cycle.sums:
            cycle.sums[name] = cycle.masked(name, cycle.sums[name])
        if self.twins.mode == "views":  # gradients lie in the stream, which is 0 wherever an element is masked
            for masked, theirs in self.twins.theirs().items():
                theirs.grad = None if theirs.grad is None else cycle.masked(masked, theirs.grad)
