"""What the words have in common: the twins they are about, and what they draw."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis.stateful import RuleBasedStateMachine
from torch import Tensor

from tests.machine.agreement import assert_agree
from tests.machine.twins import SHAPES, Lane, Twins

NAMES = st.sampled_from(list(SHAPES))
SEEDS = st.integers(0, 2**16)
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

    def after_step(self) -> None:
        """Compares, and then takes our rounding over to the plain twin."""
        assert_agree(self.twins)
        self.twins.copy_to_plain()
