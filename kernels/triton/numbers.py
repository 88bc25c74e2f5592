"""The numbers of a tile: what its rule gets as `hyper`, and what its variable keeps for the next step.

Numerics: a rule without stages reads its group's numbers in the precision of the arithmetic. With `SCALARS`, they are
float64, and so is all that is made of them, once a tile; what the elements see is rounded once.
"""

from __future__ import annotations

import functools
from typing import Any

import triton
import triton.language as tl

from ..rules import Rule
from .compile import twin


@functools.cache
def constants_of(rule: Rule) -> dict[str, Any]:
    """What the step kernel is compiled for, of a rule."""
    sums = rule.statistics
    after = None if sums is None else sums.scalars
    return {
        "RULE": twin(rule.function),
        "NUMBERS": rule.given.type,
        "PICKS": rule.given.picks if rule.wide else None,
        **_stages(rule),
        "SUMS": 0 if sums is None else len(sums.names),
        "AFTER": None if after is None else twin(after.function),
        "SUMMED": None if after is None else rule.summed.type,
        "SUMMED_PICKS": None if after is None else rule.summed.picks,
        "KEPT": rule.kept if rule.own else None,
        "STORED": rule.stored,
        "MOMENTUM": rule.momentum,
        "STARTS": _starts(rule.step_starts),
    }


@functools.cache
def statistics_constants_of(rule: Rule) -> dict[str, Any]:
    """The same for the statistics kernel."""
    sums = rule.statistics
    assert sums is not None
    return {
        "STATISTICS": twin(sums.function),
        "NUMBERS": rule.measured.type,
        "PICKS": rule.measured.picks,
        **_stages(rule),
        "SUMS": len(sums.names),
        "MOVES": sums.moves,
        "BESIDE": rule.beside,
    }


def _stages(rule: Rule) -> dict[str, Any]:
    return {
        "COLUMNS": 1 + rule.columns,
        "FIELDS": len(rule.numbers._fields),
        "STARTS": _starts(rule.starts),
        "SCALARS": None if rule.scalars is None else twin(rule.scalars.function),
        "KNOWN": None if rule.scalars is None else rule.known.type,
        "KNOWN_PICKS": None if rule.scalars is None else rule.known.picks,
        "OWN_STARTS": rule.own_starts if rule.own else None,
    }


def _starts(starts: tuple[int, ...]) -> tuple[int, ...] | None:
    return starts if any(start != -1 for start in starts) else None


@triton.jit
def load_row(hyper_ptr, group, COLUMNS: tl.constexpr):
    """A group's row without column 0, which is max_norm."""
    row = ()
    for column in tl.static_range(1, COLUMNS):
        row = row + (tl.load(hyper_ptr + group * COLUMNS + column),)
    return row


@triton.jit
def first_of(numbers, COUNT: tl.constexpr):
    found = ()
    for i in tl.static_range(COUNT):
        found = found + (numbers[i],)
    return found


@triton.jit
def picked(numbers, PICKS: tl.constexpr):
    chosen = ()
    for i in tl.static_range(len(PICKS)):
        chosen = chosen + (numbers[PICKS[i]],)
    return chosen


@triton.jit
def narrowed(numbers, COMPUTE: tl.constexpr):
    found = ()
    for i in tl.static_range(len(numbers)):
        found = found + (numbers[i].to(COMPUTE),)
    return found


@triton.jit
def is_fresh(count):
    """Whether a variable has taken no step, and nobody has set its state: its count is 0, and not -0.0."""
    return count.to(tl.int32, bitcast=True) == 0


@triton.jit
def started(states, p, fresh, row, STARTS: tl.constexpr):
    """States with their initial values where the variable has taken no step."""
    begun = ()
    for i in tl.static_range(len(STARTS)):
        state = states[i]
        if STARTS[i] == -2:
            state = tl.where(fresh, p, state)
        elif STARTS[i] >= 0:
            state = tl.where(fresh, row[STARTS[i]].to(state.dtype), state)
        begun = begun + (state,)
    return begun


@triton.jit
def load_own(own_ptr, slot, fresh, row, STARTS: tl.constexpr):
    """The scalars of a variable, float64."""
    found = ()
    for i in tl.static_range(len(STARTS)):
        x = tl.load(own_ptr[i] + slot).to(tl.float64)
        if STARTS[i] >= 0:
            x = tl.where(fresh, row[STARTS[i]], x)
        found = found + (x,)
    return found


@triton.jit
def store_own(own_ptr, slot, results, KEPT: tl.constexpr):
    for i in tl.static_range(len(KEPT)):
        tl.store(own_ptr[i] + slot, results[KEPT[i]].to(tl.float32))


@triton.jit
def load_sums(sums_ptr, variable, SUMS: tl.constexpr):
    """What the statistics kernel left of a variable, float64."""
    found = ()
    for i in tl.static_range(SUMS):
        found = found + (tl.load(sums_ptr + variable * SUMS + i),)
    return found
