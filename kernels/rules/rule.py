"""What a rule is: the mathematics of one optimizer on one tile, and the names of what it reads."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..lang import device_function
from .check import check_compiled, check_function, check_init, check_names
from .observe import MOMENTA, NO_MOMENTUM, OWN_MOMENTUM
from .stages import Fields, Scalars, Statistics, gathered

VALUE = "the variable's value"
"""What a state may begin with, beside a number and the name of one."""

Group = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Rule:
    """One optimizer's update.

    Attributes:
        name: What error messages and state dicts call it.
        function: Device function `(p, g, state, hyper, step) -> (p, state)` on float32 tiles (float64 for a float64
            region); `state` is a tuple, `step` the number of this update, counted from 1.
        states: Names of the state streams, in the order of the `state` tuple; they are the keys of `state_dict`.
        numbers: NamedTuple of the numbers of a param group; `function` gets them as `hyper`, with those of `scalars`.
        hyper: Maps a param group to such a tuple. Computed on the host in double precision and rounded once. A number
            may be a one-element tensor: it is copied without a synchronization.
        keeps_step: Whether the step count is part of the saved state, as torch's Adam does and its SGD does not.
        names: Of the entries of a param group that a user's rule reads; None for rules that say so themselves.
        init: What a state or a scalar is before the first step of its variable, by name: a number, the name of one of
            `numbers`, or `VALUE`; 0 if not said.
        own: Names of scalars that every variable keeps from step to step, float32; `scalars` returns them anew.
        scalars: Numbers that are the same for all elements of a variable, computed once a tile in float64.
        statistics: Sums over the variable, taken before the step in a launch of their own.
        early: Whether a variable has state before its first step, as torch's Adagrad makes it.
        stochastic: Names of states that are rounded at random where they are stored in bfloat16: those that change by
            less than half its last bit, as averages of squares do, and would stay where they are if rounded to nearest.
        nonnegative: Names of states that are never negative; formats of states know others for them.
        exact: Names of states that no format of states may hold: values, sums that grow, step sizes.
        idle: Steps at the beginning in which the rule gathers alone: no decoupled decay acts in them.
        decaying: The same function with decoupled decay in it, of the same bits: where a value decays only when it is
            moved, fewer registers of a GPU are taken. Without one, decoupled decay comes before `function`.
        beside: How many of the first states statistics that move leave alone: the step stores those.
        is_momentum: Whether its value is the momentum of another one's.
        made: The option that made it of another rule, and what of.
    """

    name: str
    function: Any
    states: tuple[str, ...]
    numbers: Any
    hyper: Callable[[Group], tuple[Any, ...]]
    keeps_step: bool = True
    names: tuple[str, ...] | None = None
    init: Mapping[str, float | str] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    scalars: Scalars | None = None
    statistics: Statistics | None = None
    early: bool = False
    stochastic: tuple[str, ...] = ()
    nonnegative: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    idle: int = 0
    decaying: Any = None
    beside: int = 0
    is_momentum: bool = False
    made: tuple[Callable[..., Rule], tuple[Any, ...]] | None = None

    # What compilers read: positions instead of names ------------------------------------------------------------------

    @cached_property
    def wide(self) -> bool:
        """Whether the numbers of a group go to the device in float64, for `scalars` to compute with."""
        return self.scalars is not None or self.statistics is not None

    @cached_property
    def _constants(self) -> tuple[float, ...]:
        begins = [*self.init.values(), *(0.0 for name in self.own if name not in self.init)]
        return tuple(dict.fromkeys(float(x) for x in begins if not isinstance(x, str)))

    @cached_property
    def columns(self) -> int:
        """Numbers in a row of the table of groups: of the group, then those that states begin with."""
        return len(self.numbers._fields) + len(self._constants)

    def row(self, group: Group) -> tuple[Any, ...]:
        """The row of a param group."""
        return (*self.hyper(group), *self._constants)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where in a row the initial value of each state stands; -1 where it is 0, -2 where it is the variable's."""
        return tuple(self._start(name) for name in self.states)

    @cached_property
    def stored(self) -> int:
        """How many of the first states the step stores: all, where statistics do not move them."""
        moves = self.statistics is not None and self.statistics.moves
        return self.beside if moves else len(self.states)

    @cached_property
    def step_starts(self) -> tuple[int, ...]:
        """The same for the step, which reads what statistics have moved as it is stored."""
        return tuple(start if i < self.stored else -1 for i, start in enumerate(self.starts))

    @cached_property
    def own_starts(self) -> tuple[int, ...]:
        """The same of the scalars of a variable, 0 too: nothing clears them when a variable begins anew."""
        return tuple(self._start(name) for name in self.own)

    def _start(self, name: str) -> int:
        first = self.init.get(name, 0.0)
        if isinstance(first, str):
            return -2 if first == VALUE else self.numbers._fields.index(first)
        if not first and name in self.states:
            return -1
        return len(self.numbers._fields) + self._constants.index(float(first))

    @cached_property
    def _parts(self) -> tuple[tuple[str, ...], ...]:
        """Names in the order in which numbers are gathered: of the group, the variable's own, of each stage."""
        sums = self.statistics
        after = () if sums is None or sums.scalars is None else sums.scalars.names
        of_scalars = () if self.scalars is None else self.scalars.names
        return self.numbers._fields, self.own, of_scalars, () if sums is None else sums.names, after

    @cached_property
    def known(self) -> Fields:
        """What `scalars` gets; of a name that comes twice, the last one counts, here and below."""
        return gathered(*self._parts[:2])

    @cached_property
    def measured(self) -> Fields:
        """What the function of `statistics` gets as `hyper`."""
        return gathered(*self._parts[:3])

    @cached_property
    def summed(self) -> Fields:
        """What the scalars of `statistics` get."""
        return gathered(*self._parts[:4])

    @cached_property
    def given(self) -> Fields:
        """What `function` gets as `hyper`."""
        return gathered(*self._parts)

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """Which results of `scalars` the variable keeps, in the order of `own`."""
        return () if self.scalars is None else tuple(self.scalars.names.index(name) for name in self.own)

    @cached_property
    def momentum(self) -> int:
        """Which of the states is a momentum, if one is; see `observe.py`."""
        if self.is_momentum:
            return OWN_MOMENTUM
        return next((i for i, name in enumerate(self.states) if name in MOMENTA), NO_MOMENTUM)

    @property
    def squares(self) -> tuple[str, ...]:
        """States that `log4` may hold: averages that are never negative and may be rounded at random.

        A running maximum may not: it would keep the largest error that a draw ever made.
        """
        return tuple(name for name in self.nonnegative if name in self.stochastic and name not in self.exact)

    def draws(self, rounded: Sequence[bool]) -> tuple[int, ...]:
        """For each state, which of the rule's draws rounds it at random; -1 where it is rounded to nearest.

        Args:
            rounded: Which of the states are stored in few enough bits.
        """
        places = [self.stochastic.index(name) if name in self.stochastic else -1 for name in self.states]
        return tuple(place if few else -1 for place, few in zip(places, rounded, strict=True))

    def first_value(self, name: str, group: Group) -> Any:
        """What a state or a scalar begins with: a number, a tensor [], or `VALUE`."""
        first = self.init.get(name, 0.0)
        if isinstance(first, str) and first != VALUE:
            return self.hyper(group)[self.numbers._fields.index(first)]
        return first

    def check(self) -> None:
        """Compiles the rule for CPUs and for GPUs, without a GPU, so that no step has to find out.

        Raises:
            RuleError: names the line that a compiler does not take, and what to write instead.
        """
        check_compiled(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rule:
        return self  # code: a copy would be compiled again

    def __reduce__(self) -> tuple[Any, ...]:
        if self.made is not None:
            return self.made
        module, name = self.function.__module__, self.function.__name__
        if getattr(sys.modules.get(module), name, None) is not self:
            raise pickle.PicklingError(
                f"rule {name!r} is code and is pickled by name, but {module}.{name} is not it; define the rule at the "
                "top of a module that can be imported"
            )
        return find_rule, (module, name)


def find_rule(module: str, name: str) -> Rule:
    """The rule that a module defines under a name: how a pickled one comes back."""
    found: Rule = getattr(importlib.import_module(module), name)
    return found


def rule(
    *,
    states: Sequence[str] = (),
    hyper: Sequence[str] = ("lr",),
    init: Mapping[str, float | str] | None = None,
    own: Sequence[str] = (),
    scalars: Scalars | None = None,
    stochastic: Sequence[str] = (),
    nonnegative: Sequence[str] = (),
    statistics: Statistics | None = None,
) -> Callable[[Callable[..., Any]], Rule]:
    """Turns a function into a `Rule` that the fused, masked, multi-tensor step runs.

    Args:
        states: Names of the state streams the function reads and returns.
        hyper: Names of the param-group entries it reads as `hyper.name` or unpacks, all of them numbers.
        init: What states and scalars begin with, by name: a number, a name of `hyper`, or `VALUE`; else 0.
        own: Names of scalars that every variable keeps from step to step; `scalars` must return them.
        scalars: Made by the decorator of that name: numbers that `hyper` holds as well.
        stochastic: States that are rounded at random where they are stored in bfloat16, and not to nearest: slow
            averages, which would not move there.
        nonnegative: States that are never negative, such as averages of squares: `state_format=` then stores one that
            is not 0 as not 0.
        statistics: Made by the decorator of that name: sums over the variable that `hyper` holds as well.

    Returns:
        A decorator. The function is `(p, g, state, hyper, step) -> (p, state)`; see `device_function` for what its
        body may use.

    Raises:
        RuleError: a name or a construct that a rule may not use, with its line.
        ValueError: names that do not fit together.

    Example:
        >>> @rule(states=("momentum",), hyper=("lr", "beta"))
        ... def signum(p, g, state, hyper, step):
        ...     m = hyper.beta * state[0] + (1.0 - hyper.beta) * g
        ...     return p - hyper.lr * tl.where(m > 0.0, 1.0, -1.0), (m,)
    """
    names, begins = tuple(hyper), dict(init or {})
    check_names(names, tuple(states))
    returned = () if scalars is None else scalars.names
    for word, chosen in (("stochastic", stochastic), ("nonnegative", nonnegative)):
        strange = [name for name in chosen if name not in states]
        if strange:
            raise ValueError(f"{word}={tuple(chosen)!r}: {strange[0]!r} is none of the states {tuple(states)!r}")
    check_init(begins, names, tuple(states), tuple(own), returned, VALUE)

    def decorate(function: Callable[..., Any]) -> Rule:
        numbers: Any = namedtuple(f"{function.__name__}_numbers", names)  # type: ignore[misc]

        def row(group: Group) -> tuple[Any, ...]:
            made: tuple[Any, ...] = numbers(*[group[name] for name in names])
            return made

        made = Rule(
            function.__name__,
            device_function(function),
            tuple(states),
            numbers,
            row,
            names=names,
            init=begins,
            own=tuple(own),
            scalars=scalars,
            stochastic=tuple(stochastic),
            nonnegative=tuple(nonnegative),
            statistics=statistics,
        )
        check_function(function, made.given.names, tuple(states), check_unused=not made.wide)
        return made

    return decorate
