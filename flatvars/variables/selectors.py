"""Selectors: which variables of a store are meant, said by names, patterns or a predicate."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..errors import UnknownNameError
from .variable import Variable

Pattern = str | re.Pattern[str] | Callable[[Variable], bool]


@dataclass(frozen=True)
class Select:
    """Variables that match one of some patterns and none of others.

    Attributes:
        include: Patterns, of which one must match; all variables if there are none.
        exclude: Patterns, of which none may match.
        missing_ok: Whether patterns may fit nothing.
    """

    include: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()
    missing_ok: bool = False

    def __or__(self, other: Select) -> Select:
        """Variables of either; only for selections without exclusions, which would not add up."""
        if self.exclude or other.exclude:
            raise ValueError("selections with exclude= cannot be joined; write one select(..., exclude=...)")
        return Select(self.include + other.include, missing_ok=self.missing_ok or other.missing_ok)


Selector = Pattern | Select | Sequence[Pattern] | None


def select(*patterns: Pattern, exclude: Pattern | Iterable[Pattern] = (), missing_ok: bool = False) -> Select:
    """Names, globs, regular expressions or predicates; a variable matches if any does, and none of `exclude`.

    Args:
        patterns: A string is an exact name or a glob over the whole name ("encoder.*"); a compiled regular expression
            is searched for in the name; a function gets the Variable.
        exclude: Patterns of variables to leave out.
        missing_ok: Patterns may fit nothing, as "*.bias" in a model without biases; else that is an UnknownNameError.

    Example:
        >>> weights = select(re.compile(r"weight$"), exclude=["head.*"])
        >>> matrices = select(lambda variable: len(variable.shape) > 1)
    """
    left_out = (exclude,) if is_pattern(exclude) else tuple(exclude)  # type: ignore[arg-type]
    return Select(patterns, left_out, missing_ok)  # type: ignore[arg-type]


def is_pattern(item: Any) -> bool:
    """Whether something is one pattern: a name or glob, a compiled regular expression, a predicate."""
    return isinstance(item, (str, re.Pattern)) or (callable(item) and not isinstance(item, Select))


def is_selector(item: Any) -> bool:
    """Whether something selects variables: a pattern, a `Select`, or a non-empty list of patterns."""
    if isinstance(item, Select) or is_pattern(item):
        return True
    return isinstance(item, (list, tuple)) and bool(item) and all(is_pattern(part) for part in item)


def matches(variable: Variable, pattern: Pattern) -> bool:
    """Whether one of the variable's names (or the variable itself, for a predicate) fits a pattern."""
    if isinstance(pattern, (str, re.Pattern)):
        return any(names(name, pattern) for name in variable.names)
    return bool(pattern(variable))


def names(name: str, pattern: str | re.Pattern[str]) -> bool:
    """Whether a pattern names this name: it is it, or a glob of all of it, or a regular expression found in it."""
    if isinstance(pattern, str):
        return name == pattern or fnmatchcase(name, pattern)
    return pattern.search(name) is not None


def selected(
    variables: Sequence[Variable], by_name: Mapping[str, Variable], selector: Selector, awaited: Collection[str] = ()
) -> list[Variable]:
    """The selected variables, in creation order.

    Args:
        awaited: Names of variables that will come: what fits one of these fits something.

    Raises:
        UnknownNameError: a name, glob or regular expression that fits nothing, in `include` or `exclude`.
    """
    selector = as_select(selector)
    for pattern in (*selector.include, *selector.exclude):
        if not isinstance(pattern, (str, re.Pattern)) or selector.missing_ok:
            continue
        if not any(names(name, pattern) for name in awaited):
            check_known(pattern, variables, by_name)
    # A string that is a name means that variable alone, though it may be a glob that fits others: "w[0]" fits "w0".
    exact = frozenset(p for p in (*selector.include, *selector.exclude) if isinstance(p, str) and p in by_name)
    return [v for v in variables if fits(v, selector, exact)]


def as_select(selector: Selector) -> Select:
    if isinstance(selector, Select):
        return selector
    if selector is None:
        return Select()
    return Select((selector,) if is_pattern(selector) else tuple(selector))  # type: ignore[arg-type]


def fits(variable: Variable, selector: Select, exact: frozenset[str] = frozenset()) -> bool:
    """Whether a variable is selected; strings of `exact` are names, and no globs."""

    def any_fits(patterns: Iterable[Pattern]) -> bool:
        return any(p in variable.names if p in exact else matches(variable, p) for p in patterns)

    return (not selector.include or any_fits(selector.include)) and not any_fits(selector.exclude)


def fits_name(name: str, selector: Select) -> bool:
    """Whether a name that no variable has would be selected; predicates cannot tell, and do not count."""

    def any_fits(patterns: Iterable[Pattern]) -> bool:
        return any(names(name, p) for p in patterns if isinstance(p, (str, re.Pattern)))

    return (not selector.include or any_fits(selector.include)) and not any_fits(selector.exclude)


def check_known(pattern: Pattern, variables: Sequence[Variable], by_name: Mapping[str, Variable]) -> None:
    if isinstance(pattern, str) and pattern in by_name:
        return
    if not any(matches(variable, pattern) for variable in variables):
        shown = repr(pattern) if isinstance(pattern, str) else repr(pattern.pattern)  # type: ignore[union-attr]
        text = pattern if isinstance(pattern, str) else pattern.pattern  # type: ignore[union-attr]
        raise UnknownNameError(
            f"pattern {shown} matches none of the {len(by_name)} names of the store; {meant(text, by_name)}. Where it "
            f"may match nothing, say fv.select({shown}, missing_ok=True)"
        )


def explain_unknown(name: object, known: Mapping[str, Variable]) -> str:
    """What to say of a name that no variable has."""
    if not isinstance(name, str):
        return f"variables are looked up by name, and a {type(name).__name__} was given; store.variables() lists them"
    return f"the store has no variable {name!r}; {meant(name, known)}. store.variables() lists all {len(known)}"


def meant(text: str, known: Mapping[str, Variable]) -> str:
    """What somebody may have meant by a name or pattern that fits nothing: all below it, or the nearest names."""
    prefix = text.rstrip(".*") + "."
    below = sum(name.startswith(prefix) for name in known)
    if below:
        return f"{prefix + '*'!r} is what selects the {below} below it"
    if not known:
        return "it has none yet"
    inside = [name for name in known if name.endswith(f".{text}") or name.startswith(text)]
    near = inside[:3] or difflib.get_close_matches(text, known, 3, 0.4) or list(known)[:3]
    return f"the nearest are {', '.join(map(repr, near))}"
