"""Which tensor of a file is which variable: names, shapes and dtypes compared, every difference reported at once.

Returns a report; reads and writes nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from ..errors import MismatchError
from ..variables.variable import Variable
from .header import TensorInfo, Unread

Rename = Mapping[str, str] | Callable[[str], str] | Sequence[tuple[str | re.Pattern[str], str]] | None

DtypePolicy = Literal["store", "file", "exact"]
"""What becomes of dtypes: the store's, the file's, or an error where they differ."""

DTYPE_POLICIES: tuple[DtypePolicy, ...] = get_args(DtypePolicy)
SHOWN = 20
"""Problems that an error lists; the rest is counted."""
COMPARED = 2_000
"""Names that are searched for one that is meant."""


@dataclass
class Match:
    """What fits what.

    Attributes:
        pairs: Index of the variable to name of the tensor.
        tied: Variables that the file holds under several names: index, names of the tensors.
        missing: First names of variables that the file lacks.
        problems: In words, for the error.
    """

    pairs: dict[int, str] = field(default_factory=dict)
    tied: list[tuple[int, list[str]]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def renamer(rename: Rename) -> Callable[[str], str]:
    """From what users pass to a function from names in a file to names in a store.

    A mapping replaces whole names, pairs of (regular expression, replacement) are applied one after another.
    """
    if rename is None:
        return lambda name: name
    if isinstance(rename, Mapping):
        names = dict(rename)
        return lambda name: names.get(name, name)
    if callable(rename):
        return rename
    rules = [(re.compile(pattern), replacement) for pattern, replacement in rename]

    def apply(name: str) -> str:
        for pattern, replacement in rules:
            name = pattern.sub(replacement, name)
        return name

    return apply


def match(
    wanted: Sequence[Variable],
    offered: Mapping[str, TensorInfo],
    *,
    unread: Mapping[str, Unread],
    rename: Callable[[str], str],
    unused: Callable[[str], bool] | None,
    partial: bool,
    dtype: str,
    dtype_of: Callable[[Variable], torch.dtype],
) -> Match:
    """Compares.

    Args:
        wanted: Variables to fill.
        offered: Values in the file, by name.
        unread: Those that are there, but of a dtype that is not read.
        rename: From a file's name to the store's.
        unused: For a name (after renaming) that no variable has: whether that is a problem. None: never.
        partial: Missing variables are no problem.
        dtype: "store" converts floating values to the variable's dtype, "file" takes the file's, "exact" refuses
            others.
        dtype_of: Of a variable's numbers.
    """
    result = Match()
    keys = _renamed((*offered, *unread), rename, result)
    for i, one in enumerate(wanted):
        found = [keys[name] for name in one.names if name in keys]
        if not found:
            result.missing.append(one.names[0])
            continue
        result.problems += [
            f"{key!r} is {unread[key].code} in the file, which is not read; select= leaves it out"
            for key in found
            if key in unread
        ]
        found = [key for key in found if key in offered]
        if found:
            result.pairs[i] = found[0]
        if len(found) > 1:
            result.tied.append((i, found))
        for key in found:
            result.problems += _differences(one, key, offered[key], dtype, dtype_of(one))
    known = {name for one in wanted for name in one.names}
    free = {name: key for name, key in keys.items() if name not in known}
    prefixed = [] if partial else _prefix_problem(result.missing, free)
    if prefixed:
        result.problems += prefixed
        return result
    if not partial:
        result.problems += _missing(result.missing, free)
    left = [key for name, key in free.items() if unused is not None and unused(name)]
    hint = "(strict=False, select= or rename= let it be)"
    result.problems += [f"{key!r} is in the file but not in the store {hint}" for key in left]
    return result


def _renamed(offered: Iterable[str], rename: Callable[[str], str], result: Match) -> dict[str, str]:
    """From names in the store to names in the file."""
    keys: dict[str, str] = {}
    for key in offered:
        name = rename(key)
        if name in keys:
            result.problems.append(f"{keys[name]!r} and {key!r} of the file are both renamed to {name!r}")
        keys[name] = key
    return keys


def _differences(one: Variable, key: str, entry: TensorInfo, dtype: str, mine: torch.dtype) -> list[str]:
    name = one.names[0] if key == one.names[0] else f"{one.names[0]} (from {key})"
    if entry.shape != one.whole_shape:
        return [f"{name!r} has shape {one.whole_shape} in the store and {entry.shape} in the file"]
    if dtype == "exact" and entry.dtype != mine:
        return [f"{name!r} is {mine} in the store and {entry.dtype} in the file; dtype='store' converts"]
    if dtype == "file":
        if one.requires_grad and not entry.dtype.is_floating_point:
            return [f"{name!r} is {entry.dtype} in the file and cannot be trained in that dtype; freeze it first"]
        return []
    both_float = entry.dtype.is_floating_point and one.dtype.is_floating_point
    if both_float or entry.dtype == one.dtype or _widens(entry.dtype, one.dtype):
        return []
    return [
        f"{name!r} is {one.dtype} in the store and {entry.dtype} in the file: that loses; dtype='file' keeps values"
    ]


def _widens(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether integers (or bools) fit another integer dtype."""
    if any(dtype.is_floating_point or dtype.is_complex for dtype in (source, target)) or target == torch.bool:
        return False
    least, most = (0, 1) if source == torch.bool else (torch.iinfo(source).min, torch.iinfo(source).max)
    return torch.iinfo(target).min <= least and most <= torch.iinfo(target).max


def _missing(missing: Sequence[str], free: Mapping[str, str]) -> list[str]:
    pool = list(free)[:COMPARED]
    problems: list[str] = []
    for name in missing:
        close = difflib.get_close_matches(name, pool, 2, 0.7) if len(problems) < SHOWN else []
        hint = f"; did you mean {' or '.join(repr(free[c]) for c in close)}?" if close else ""
        problems.append(f"{name!r} is not in the file{hint}")
    return problems


def _prefix_problem(missing: Sequence[str], free: Mapping[str, str]) -> list[str]:
    prefix = _common_prefix(missing, free)
    if prefix is None:
        return []
    sign, text = prefix[0], prefix[1:]
    rule = ("^" + re.escape(text), "") if sign == "+" else ("^", text)
    words = f"{'behind' if sign == '+' else 'without'} {text!r}: pass rename=[{rule!r}]"
    return [f"all {len(missing)} missing variables, such as {missing[0]!r}, are in the file {words}"]


def _common_prefix(missing: Sequence[str], free: Mapping[str, str]) -> str | None:
    """ "+x." if all missing names are there behind "x.", "-x." if they are there without it."""
    if len(missing) < 2:
        return None
    first = missing[0]
    for name in free:
        if name.endswith("." + first):
            prefix = name[: -len(first)]
            if all(prefix + other in free for other in missing):
                return "+" + prefix
        if first.endswith("." + name):
            prefix = first[: -len(name)]
            if all(other.startswith(prefix) and other[len(prefix) :] in free for other in missing):
                return "-" + prefix
    return None


def raise_problems(problems: Sequence[str], name: str) -> None:
    """Raises MismatchError with all problems, if there are any."""
    if problems:
        shown = "".join(f"\n  - {problem}" for problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise MismatchError(f"{name} does not fit this store; nothing was changed:{shown}{more}")
