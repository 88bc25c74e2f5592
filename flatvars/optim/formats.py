"""How the states of an optimizer are stored, as its caller says it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch

from ..backend import STATE_FORMATS, Format, Rule
from ..errors import FlatvarsError
from ..memory.streams import Form, FormOf

FormatName = Literal["root8", "log4"]
StateFormat = FormatName | Mapping[str, FormatName] | None
"""A format for all states that may have one, or of each by name; None: their dtype says it."""


def check_format(given: StateFormat) -> None:
    """Raises ValueError for what is no format, and no mapping from names of states to one."""
    names = given.values() if isinstance(given, Mapping) else () if given is None else (given,)
    for name in names:
        if name not in get_args(FormatName):
            raise ValueError(
                f"state_format={given!r}: {name!r} is no format of states; give one of "
                f"{', '.join(map(repr, get_args(FormatName)))}, or a mapping from names of states to one of them"
            )


def check_formats(given: StateFormat, rules: Sequence[Rule], known: Collection[str], kind: str) -> None:
    """Raises ValueError for states that a class does not have, or that no format may hold.

    Args:
        known: Names of states that other numbers of the class would bring.
    """
    if given is None:
        return
    exact = {name for rule in rules for name in rule.exact}
    squares = {name for rule in rules for name in rule.squares}
    mine = {name for rule in rules for name in rule.states}
    if not isinstance(given, Mapping):
        if mine and mine <= exact:
            raise ValueError(
                f"state_format={given!r}: {kind} keeps {', '.join(sorted(mine))}, which are no averages and would not "
                "survive few bits; leave it out"
            )
        if given == "log4" and not mine - exact <= squares:
            other = sorted(mine - exact - squares)
            raise ValueError(
                f"state_format='log4' is for averages of squares, and {kind} has {', '.join(other)}; give a mapping, "
                f"such as {dict.fromkeys(other, 'root8') | dict.fromkeys(sorted(squares), 'log4')}"
            )
        return
    for name, form in given.items():
        if form == "log4" and name in mine and name not in squares:
            raise ValueError(
                f"state_format={given!r}: 'log4' is for averages of squares, which {name!r} of {kind} is not; "
                f"{'of its states, ' + ', '.join(sorted(squares)) + ' may have it' if squares else 'it has none'}"
            )
        if name in exact:
            raise ValueError(
                f"state_format={given!r}: {name!r} of {kind} is a value, a sum or a step size, which few bits would "
                "not hold; leave it out"
            )
        if name not in mine and name not in known:
            raise ValueError(
                f"state_format={given!r}: {kind} has no state {name!r}; it has {', '.join(sorted(mine)) or 'none'}"
            )


def form_of(
    given: StateFormat, dtype: torch.dtype | None, rules: Sequence[Rule], name: str, values: Format | None
) -> FormOf:
    """How the stream of a state is stored, by the dtype of its region.

    Args:
        dtype: Of states without a format; that of the variables' numbers if None.
        values: The format of those.
    """
    format_ = given.get(name) if isinstance(given, Mapping) else given
    if format_ is not None and not any(name in rule.exact for rule in rules):
        named = [rule for rule in rules if name in rule.states]
        nonnegative = any(name in rule.nonnegative for rule in named)
        return partial(_in_format, format_, nonnegative, any(name in rule.squares for rule in named))
    return partial(number_dtype, values) if dtype is None else partial(_always, dtype)


def number_dtype(values: Format | None, region: torch.dtype) -> torch.dtype:
    """Of the numbers of variables with room in a region, whose values are of a format, or of none."""
    wide = values is not None and not values.is_plain and values.parts[0].dtype == region
    return torch.float32 if wide else region


def hold_all(values: Format | None, region: torch.dtype) -> bool:
    """Whether values of a region hold every number of their `number_dtype`."""
    return values is None or number_dtype(values, region) == region or values.is_exact


def _always(dtype: torch.dtype, region: torch.dtype) -> torch.dtype:
    """For streams that do not follow the dtype of their region."""
    return dtype


def _in_format(name: str, nonnegative: bool, square: bool, region: torch.dtype) -> Form:
    if region == torch.float64:
        raise FlatvarsError(
            f"state_format={name!r} holds numbers of float32, and variables are float64; convert the store, or make "
            "the optimizer without state_format="
        )
    signed, unsigned = STATE_FORMATS[name]
    if signed is None and not square:
        raise FlatvarsError(f"state_format={name!r} is for averages of squares, and this state is none; leave it out")
    return unsigned if nonnegative or signed is None else signed
