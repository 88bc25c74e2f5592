"""What the words have in common: the twins they are about, and what they draw."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis.stateful import RuleBasedStateMachine
from torch import Tensor

from tests.machine.agreement import assert_agree
from tests.machine.twins import PAIRS, SHAPES, Lane, Twins

NAMES = st.sampled_from(list(SHAPES))
SEEDS = st.integers(0, 2**16)
LOOKS = st.sampled_from(["", "accumulate", "norm", "step"])
"""What comes first after something that is noticed later: a file is written after every word."""
NUMBERS = st.integers(0, 3)
"""Of an optimizer, or of a param group: modulo how many there are."""


def random(shape: Any, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(dtype)


class Words(RuleBasedStateMachine):
    """Base of all groups of words.

    Attributes:
        added: How many variables were declared later.
    """

    twins: Twins
    added = 0

    def lane(self, number: int) -> Lane:
        return self.twins.lanes[number % len(self.twins.lanes)]

    def like(self, lane: Lane) -> Any:
        """An optimizer of ours over the twins of torch's parameters."""
        ours, _, arguments = PAIRS[lane.kind]
        twin_of = {id(theirs): mine for _, mine, theirs in self.twins.pairs()}
        groups = [{"params": [twin_of[id(param)] for param in group["params"]]} for group in lane.theirs.param_groups]
        return ours(groups, store=self.twins.store, **arguments)

    def mask_again(self) -> None:
        """The masks in a new store, which has no room, and so no mask, for what nobody trains when it is made."""
        store, masks = self.twins.store, self.twins.cycle.masks
        for name in list(masks):
            if store[name].spec.has_room:
                store.set_trainable_mask(name, masks[name])
            else:
                del masks[name]

    def after_step(self) -> None:
        """Compares, and then takes our rounding over to the plain twin."""
        assert_agree(self.twins)
        self.twins.copy_to_plain()

    def look(self, how: str) -> None:
        """One of the calls that follow what happened to a module."""
        if how == "accumulate":
            self.twins.store.accumulate()
            self.twins.cycle.accumulate()
        elif how == "norm":
            self.twins.store.grad_norm()
            self.twins.cycle.collect()
        elif how == "step":
            self.twins.step(self.twins.lanes[0], None, False)
            self.after_step()
