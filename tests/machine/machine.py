"""The machine: all words, and what must hold after each."""

from __future__ import annotations

import warnings

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import initialize, invariant, run_state_machine_as_test

import flatvars as fv
from tests.machine.agreement import assert_agree
from tests.machine.twins import PAIRS, Twins
from tests.machine.words.groups import GroupWords
from tests.machine.words.lazy import LazyWords
from tests.machine.words.leaving import LeavingWords
from tests.machine.words.modules import ModuleWords
from tests.machine.words.state import StateWords
from tests.machine.words.steps import StepWords

ACTIONS = 25
KINDS = st.sampled_from(list(PAIRS))


class Machine(LazyWords, GroupWords, LeavingWords, ModuleWords, StateWords, StepWords):
    """One or two optimizers, gradients kept in either way, buffers taken or not."""

    @initialize(
        kinds=st.lists(KINDS, min_size=1, max_size=2), mode=st.sampled_from(["gather", "views"]), buffers=st.booleans()
    )
    def begin(self, kinds: list[str], mode: str, buffers: bool) -> None:
        self.twins = Twins(kinds, mode, buffers)

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "twins"):
            assert_agree(self.twins)


def run_sequences(number: int, sequences: int, shrink: bool = False) -> int:
    """Runs sequences of a seed, the same in every run; hypothesis raises what failed, with the words before it.

    Args:
        number: The seed.
        sequences: How many.
        shrink: Look for a shorter one that fails as well, which takes minutes.

    Returns:
        How many were begun.
    """
    begun = 0

    class Seeded(Machine):
        def __init__(self) -> None:
            nonlocal begun
            begun += 1
            super().__init__()

    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    options = settings(
        max_examples=sequences,
        stateful_step_count=ACTIONS,
        suppress_health_check=list(HealthCheck),
        deadline=None,
        database=None,
        phases=phases,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fv.MovedWarning)  # which words are about
        run_state_machine_as_test(seed(number)(Seeded), settings=options)
    return begun
