"""Which variables an optimizer steps, as its param groups say it now, and the plans of their launches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor

from ..backend import VALUE, Rule
from ..gradients.freezing import follow_flags
from ..gradients.plans import Part, PlanSet
from ..variables.lazy import is_lazy
from ..variables.registry import variable_of
from ..variables.variable import Variable
from .conveniences import Conveniences
from .entries import Entries
from .homes import GivenParam, admit, forget_leavers
from .kind import Kind
from .membership import by_rows, explain_foreign
from .states import States
from .weak import CarveHook

_requires_grad = attrgetter("requires_grad")


class Planning(Kind, Conveniences):
    """The part of an optimizer that follows param groups and the store.

    Attributes:
        states: Its streams and counts.
        entries: `optimizer.state`.
    """

    states: States
    entries: Entries
    _enrolled: int
    _homeless: bool
    _plans: PlanSet | None
    _planned: int
    _planned_for: Any
    _frozen: list[Tensor]
    _kinds: tuple[Rule, ...]

    _following = False  # or being made: groups come one after the other, and are looked at when they are all there

    def members(self) -> list[Variable]:
        """The variables of all param groups, as followed last."""
        return self.membership.members()

    def names_of(self, variable: Variable) -> tuple[str, ...]:
        """The states that a variable has: none without room, and those of its param group."""
        if not variable.spec.has_room:
            return ()
        group = self.membership.group_of.get(variable.id)
        return self.rule_for(variable).states if group is None else self.kept_states(group)

    def loose_of(self, variable: Variable) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the states of a variable that lie in no stream: of the whole, on every rank."""
        group = self.membership.group_of.get(variable.id)
        if group is None or not variable.spec.has_room:
            return {}
        return self.loose_states(tuple(variable.whole.shape), group, variable.names)

    def first_value(self, variable: Variable, name: str) -> Any:
        """What a state or a scalar of a variable begins with: a tensor or a number."""
        group = self.membership.group_of.get(variable.id, self.defaults)
        first = self.rule_for(variable).first_value(name, group)
        return variable.param.detach() if first == VALUE else first

    def follow(self) -> None:
        """Takes up what was edited in `param_groups`, and the variables that were declared, since the last time."""
        self.registry.settle()
        if self._enrolled != self.membership.version or not self.membership.is_followed(self.param_groups):
            self._follow()
        elif self.entries.waits:
            self.entries.adopt()

    def _follow(self) -> None:
        """The same without a carve."""
        if self._following:
            return
        self._following = True
        try:
            exchanged = self.membership.follow(self.param_groups, self.add_param_group)
        finally:
            self._following = False
        if self._enrolled != self.membership.version:
            self.states.enroll(self.members())
            self._enrolled = self.membership.version
        if exchanged:
            self.entries.own_dropped()
            self.entries.forget(exchanged, keep=True)
            self.states.erase(exchanged)
        if self.entries.waits:
            self.entries.adopt()

    def take_up(self) -> list[Variable]:
        self.follow()
        return self.members()

    def arrange(self) -> None:
        """Lays variables where the step wants them; called before plans are made, and when the optimizer is."""

    def _current_plans(self) -> PlanSet:
        """The plans of this optimizer's trainable variables; made anew when spans moved, masks flipped, groups changed.

        Raises:
            ForeignParameterError: a param group holds a Parameter that the store does not.
        """
        self.follow()
        if self.membership.foreign:
            self._take_in_foreign()
        plans = self._plans
        if plans is not None and plans.generation == self.registry.generation:
            if not any(map(_requires_grad, self._frozen)):
                known = self._planned == self.membership.version and self._planned_for == self._plans_depend_on()
                return plans if known else self._make_plans()
            follow_flags(self.registry)
        elif any(v.requires_grad and not v.trains for v in self.members()):
            follow_flags(self.registry)
        self.follow()
        return self._make_plans()

    def _take_in(self, given: Sequence[GivenParam], consequence: str) -> None:
        """Takes parameters into a store that was made for optimizers.

        Raises:
            ForeignParameterError: another store holds one, or none does and this one was adopted by hand.
        """
        given = [one for one in given if not is_lazy(one.tensor)]
        owners = [variable_of(one.tensor) for one in given]
        for one, found in zip(given, owners, strict=True):
            if found is not None and found[0] is self.registry:
                continue
            if found is not None or not self.registry.made_for_optimizer:
                explain_foreign(one.tensor, self.registry, consequence)
        admit(self.registry, [one for one, found in zip(given, owners, strict=True) if found is None])

    def _take_in_foreign(self) -> None:
        """Takes in what users put into `param_groups`, and lets go of what they took out for it."""
        self._take_in([GivenParam(None, param) for param in self.membership.foreign], "nothing was stepped")
        self.membership.look_again()
        self.follow()
        hooks = [hook for hook in self.registry.after_carve if isinstance(hook, CarveHook)]
        forget_leavers(self.registry, [optimizer for hook in hooks if (optimizer := hook.optimizer()) is not None])
        self.follow()

    def _make_plans(self) -> PlanSet:
        self.arrange()
        members = by_rows(self.membership.groups)
        self._kinds = self._kinds_now()
        self._planned_for = self._plans_depend_on()
        self._plans = self._plans_over([member for member in members if member[0].trains])
        self._planned = self.membership.version
        self._frozen = [v.whole for v, _ in members if not v.trains]
        return self._plans

    def _plans_over(self, members: list[tuple[Variable, int]]) -> PlanSet:
        """Plans of some variables with the numbers of their groups."""
        members = sorted(members, key=lambda m: m[0].index)
        slots = [self.states.slots[v.id] for v, _ in members]
        kinds = [self._kinds[g] for _, g in members] if self.several else None
        variables = [v for v, _ in members]
        apart = None
        if any(v.spec.cuts_units for v in variables):
            apart = [self.states.is_apart(v, self.rule_for(v).states) for v in variables]
        return PlanSet(self.registry, variables, self.rows_of(members), slots, kinds, apart)

    def _kinds_now(self) -> tuple[Rule, ...]:
        return tuple(map(self.rule_of, self.param_groups)) if self.several else ()

    def _plans_depend_on(self) -> Any:
        """What in the param groups plans are made for."""
        return self._kinds_now()

    def rows_of(self, members: Sequence[tuple[Variable, int]]) -> list[int]:
        """Row of each variable, given with the number of its group, in its launch's table of numbers."""
        rows = [self._kinds[:number].count(kind) for number, kind in enumerate(self._kinds)]
        return [rows[number] if self.several else number for _, number in members]

    def groups_of(self, part: Part) -> list[dict[str, Any]]:
        """Param groups whose numbers a launch reads, in the order of its rows."""
        return [group for group in self.param_groups if part.kind is None or self.rule_of(group) is part.kind]

    def room_plans(self, groups: Collection[int] | None) -> PlanSet:
        """Plans over all variables with room, frozen or not, of some param groups; in one row of numbers if None."""
        self._current_plans()  # what moved or flipped is followed
        members = [m for m in by_rows(self.membership.groups) if m[0].spec.has_room]
        if groups is not None:
            return self._plans_over([m for m in members if m[1] in groups])
        variables = sorted((v for v, _ in members), key=lambda v: v.index)
        return PlanSet(self.registry, variables, None, [self.states.slots[v.id] for v in variables])
