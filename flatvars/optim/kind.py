"""What a class of optimizers says of itself: its rules, its states, its numbers, and which of them may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..backend import Rule
from ..variables.variable import Variable
from .averaging import Averaging, check_average
from .checks import LENGTHS, check_kinds, holds_tensor
from .membership import Membership


class Kind(Averaging):
    """The part of an optimizer that its class says; overridden, and asked by all others."""

    defaults: dict[str, Any]
    param_groups: list[dict[str, Any]]
    membership: Membership
    _last_rules: dict[int, Rule]

    known_states: tuple[str, ...] = ()
    """Names of all states that optimizers of this class may have, whatever their numbers; a rule's own if empty."""

    several = False
    """Whether param groups may have a rule each."""

    lengths: Mapping[str, int] = LENGTHS
    """Entries of a param group that are several numbers, and how many."""

    optional: frozenset[str] = frozenset()
    """Entries of a param group that are numbers or None."""

    needs_step = False
    """Whether the mathematics read the step count, so that a state without one cannot be gone on from."""

    def rule(self) -> Rule:
        """The mathematics of the step, given the param groups as they are."""
        raise NotImplementedError

    def rule_of(self, group: Mapping[str, Any]) -> Rule:
        """That of a param group, where `several`; each rule is a launch of its own, over the tiles of its groups."""
        return self.rule()

    def kept_rule(self, group: Mapping[str, Any] | None = None) -> Rule:
        """The rule of a param group with all that is kept beside it: an average of the values, if one is asked for."""
        return self.with_average(self.rule() if group is None else self.rule_of(group))

    def rules(self) -> list[Rule]:
        """Those of all param groups."""
        return list(dict.fromkeys(map(self.kept_rule, self.param_groups))) if self.several else [self.kept_rule()]

    def rule_for(self, variable: Variable) -> Rule:
        """That of a variable: of its param group, or of the one it was in last."""
        if not self.several:
            return self.kept_rule()
        group = self.membership.group_of.get(variable.id)
        if group is not None:
            self._last_rules[variable.id] = self.rule_of(group)
        return self.with_average(self._last_rules.get(variable.id) or self.rule())

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The states that a param group has: torch keeps no momentum buffer for a group without momentum."""
        return self.rule_of(group).states

    def kept_states(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """These, and what is kept beside them."""
        beside = self.kept_rule(group).beside
        return (*self.kept_rule(group).states[:beside], *self.state_names(group))

    def loose_states(
        self, shape: tuple[int, ...], group: Mapping[str, Any], names: Iterable[str]
    ) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the states that lie in no stream, of a variable of a shape, in a group, with names."""
        return {}

    def counts_steps(self, group: Mapping[str, Any]) -> bool:
        """Whether steps of a group count as steps of its variables."""
        return True

    def check_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Raises ValueError, in torch's words, for a number out of range; of the defaults, or of a group."""

    def number_names(self, defaults: Mapping[str, Any]) -> Iterable[str]:
        """The entries of a param group that are numbers or flags, of an optimizer with these defaults."""
        return defaults

    def check_entries(self, numbers: Mapping[str, Any], names: Iterable[str]) -> None:
        """Raises for an entry of the defaults, or of a param group, that cannot be.

        Args:
            names: Those to look at, where they are given.

        Raises:
            TypeError: what is no number, no flag, or no tuple of numbers.
            ValueError: a number out of range, NaN, or too few or many numbers.
        """
        check_kinds(numbers, names, self.lengths, True, self.optional)
        self.check_numbers(numbers)

    def check_changed(self, group: Mapping[str, Any], waits: bool = False) -> None:
        """The same for a param group that was edited or loaded: its `lr` may have any sign, and no tensor is read.

        A schedule may carry a learning rate past zero, by rounding or on purpose; torch.optim steps with it.
        """
        defaults = self.defaults_of(group)
        if self.average is not None:
            check_average(self.average, group)
        names = [name for name in self.number_names(defaults) if name in group]
        check_kinds(group, names, self.lengths, waits, self.optional)
        if waits or not any(holds_tensor(group[name]) for name in names if name != "lr"):
            self.check_numbers({**defaults, **group, "lr": 0.0})

    def after_load(self) -> None:
        """Called when a state dict's groups are in place, before its states are."""

    def defaults_of(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What a param group must have, and its values where a new one does not say."""
        return self.defaults
