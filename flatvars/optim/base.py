"""Optimizer: a real torch.optim.Optimizer whose step is at most two launches over a store.

`param_groups` is the single source of truth for who is stepped and with which numbers: schedulers and users write
there, and what changed is followed before the next launch (`membership.py`). State lives in the store's streams
(`states.py`); `state` and `state_dict` show it per parameter, in torch.optim's format (`entries.py`, `state_dict.py`),
and `capture` and `restore` hand it over as a whole (`record.py`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import compress
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..backend import AVERAGE, VALUE, Rule, Sources, Stage, Stored, is_rounded
from ..errors import FlatvarsError
from ..gradients.attached import gradients_of, make_registry
from ..gradients.cycle import Collected
from ..gradients.freezing import follow_flags
from ..gradients.plans import Part, PlanSet, checked
from ..memory.streams import FormOf, Stream
from ..variables.lazy import is_lazy
from ..variables.registry import HasRegistry, Registry, variable_of
from ..variables.selectors import is_selector
from ..variables.variable import Variable
from .averaging import Averaging, check_average
from .checks import LENGTHS, check_complete, check_kinds, check_options, holds_tensor
from .conveniences import Conveniences
from .copies import get_state, set_state
from .divided import DividedStep, add_up_observed, add_up_sums, check_divisible, step_divided
from .entries import Entries
from .formats import StateFormat, check_format, check_formats, form_of
from .groups import as_groups, check_group_keys, find_registry, kept, resolved
from .homes import GivenParam, admit, forget_leavers, given_in
from .hooks import hooked
from .membership import Membership, by_rows, explain_foreign, params_of
from .record import FetchState, OptimizerRecord
from .recording import capture_record, record_problems, restore_record
from .scaling import read_scaling
from .showing import show
from .state_dict import load_state_dict, state_dict
from .states import States, origin_of
from .stats import Observations, VariableStats


class Optimizer(Averaging, Conveniences):
    """Base of all optimizers of flatvars.

    Args:
        params: A VarStore, parameters, or param groups; `"params"` of a group may be a name pattern or a list of them,
            and a variable goes to the first group that matches it. For parameters that lie in no store one is made
            (`optimizer.store`), with the names of `named_parameters()` if those are given, else with numbers.
        defaults: Hyper-parameters of groups that do not set them.
        store: Needed only where `params` are patterns.
        max_norm: Clip the norm over all gradients of this optimizer to it, inside the step: gradients are not
            rewritten.
        skip_nonfinite: Change nothing, not even step counts, when that norm is NaN or infinite; `skipped` counts it.
        state_dtype: Of the state streams; the variables' own if not given, as in torch.optim. In bfloat16, averages of
            squares are rounded at random (`stochastic_rounding`).
        state_format: "root8" stores averages in 8 bits, with a float32 scale for each 128 elements: all that may be, or
            those of a mapping by name; "log4" stores averages of squares in 4 bits, rounded at random. Other states are
            as `state_dtype` says.
        stats: Every step tells norms and counts of its variables, which `stats()` gives; or every k-th, of a number k.

    Raises:
        ForeignParameterError: parameters of two stores, or of none beside those of a store that was adopted by hand.
        SpecError: a parameter that no store can hold: sparse, complex, on the meta device or on another than the rest.
        ValueError: a number out of range, or a key of a group that means nothing there.
    """

    # A GradScaler then leaves unscaling and skipping to the step; see `scaling.py`.
    _step_supports_amp_scaling = True

    known_states: tuple[str, ...] = ()
    """Names of all states that optimizers of this class may have, whatever their numbers; a rule's own if empty."""

    several = False
    """Whether param groups may have a rule each."""

    stochastic_rounding = True
    """Whether slow averages that are stored in bfloat16, such as those of squares, are rounded at random: to nearest,
    as torch.optim does it, they never decay. So are values of a store with `values="stochastic"`. The draws depend on
    the store's seed, the variable's name, its step and the position alone. Set it to False on an optimizer to compare
    with torch's."""

    divisible = True
    """Whether ranks may have parts of variables: a step of an element depends on others through the norm, through sums
    over its variable, or through matrices that are put together for it."""

    lengths: Mapping[str, int] = LENGTHS
    """Entries of a param group that are several numbers, and how many."""

    optional: frozenset[str] = frozenset()
    """Entries of a param group that are numbers or None."""

    needs_step = False
    """Whether the mathematics read the step count, so that a state without one cannot be gone on from."""

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
        state_format: StateFormat = None,
        stats: bool | int = False,
    ) -> None:
        check_options(max_norm, state_dtype, stats)
        check_format(state_format)
        self.check_entries(defaults, self.number_names(defaults))
        groups = as_groups(params)
        registry = find_registry(params, groups, store)
        self.max_norm = max_norm
        self.skip_nonfinite = skip_nonfinite
        self.state_dtype = state_dtype
        self.state_format = state_format
        self.stats_every = int(stats)
        # Without any parameter there is no store yet: the first one says which.
        self._attach(make_registry(torch.device("cpu"), "gather") if registry is None else registry)
        self._homeless = registry is None
        self._following = True
        super().__init__(groups, defaults)
        # Variables that are declared later join by themselves: by their group number, or by what selects a group.
        self.membership.by_number = isinstance(params, HasRegistry)
        self._following = False
        self._follow()
        if self.param_groups:
            check_formats(state_format, self.rules(), self.known_states, type(self).__name__)
        self.arrange()

    _following = False  # or being made: groups come one after the other, and are looked at when they are all there

    def _attach(self, registry: Registry) -> None:
        """All that belongs to this object and its store alone: a copy of the optimizer starts from here."""
        self._homeless = False
        self.registry = registry
        self.states = States(registry, _FormOf(weakref.ref(self)))
        if self.several:
            self.states.names_of = _NamesOf(weakref.ref(self))
            self.states.common = frozenset({AVERAGE})
        self.param_groups: list[dict[str, Any]] = []
        self.membership = Membership(registry)
        self.entries = Entries(self)
        self._enrolled = -1  # version of the membership whose variables have rows
        self._plans: PlanSet | None = None
        self._divided: DividedStep | None = None
        self._planned = -1  # version of the membership that the plans are for
        self._planned_for: Any = None  # what of the param groups they are for
        self._frozen: list[Tensor] = []
        self._last_rules: dict[int, Rule] = {}
        self._kinds: tuple[Rule, ...] = ()  # of the param groups, when plans were made
        self._counted: Any = None  # what `_count` has looked at
        self._counting: dict[int, bool] = {}  # whether steps of a variable counted, by id
        self._norm: Tensor | None = None
        self.observations = Observations()
        self._calls = 0  # steps that were asked for
        hook = _Hook(weakref.ref(self))
        registry.after_carve.append(hook)
        weakref.finalize(self, _unhook, weakref.ref(registry), hook)

    # What a class says of itself ------------------------------------------------------------------------------------

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

    # Groups -----------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim's; `"params"` may be name patterns of the store."""
        group = kept(param_group)
        if self._homeless:
            self._move_to(find_registry(None, [group], None))
        selector = group["params"] if is_selector(group["params"]) else None
        taken = {id(param) for other in self.param_groups for param in params_of(other)}
        group = resolved(group, self.registry, taken)
        group = {**self.average_numbers, **group}
        defaults = self.defaults_of(group)
        check_group_keys(group, {**defaults, **self.average_numbers}, type(self).__name__)
        self.check_entries({**defaults, **group}, self.number_names(defaults))
        if self.average is not None:
            check_average(self.average, group)
        self._take_in(given_in(group), "the group was not added")
        super().add_param_group(group)
        if selector is not None:
            self.membership.select(self.param_groups[-1], selector)
        self._follow()

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

    def _move_to(self, registry: Registry | None) -> None:
        """To the store of the first parameter."""
        if registry is not None:
            groups = self.param_groups
            self._attach(registry)
            self.param_groups = groups

    @property
    def store(self) -> Any:
        """The `VarStore` of the parameters, whoever made it.

        One that was made for this optimizer knows the parameters alone, and goes with the last optimizer over it.
        `optimizer.store.watch(module)` gives it what an adopted one has: the module's names, its other parameters and
        its buffers, so that files are whole, and an eye on what is replaced there.
        """
        return self.registry.handle()

    def members(self) -> list[Variable]:
        """The variables of all param groups, as followed last."""
        return self.membership.members()

    def names_of(self, variable: Variable) -> tuple[str, ...]:
        """The states that a variable has: none without room, and those of its param group."""
        if not variable.spec.has_room:
            return ()
        group = self.membership.group_of.get(variable.id)
        return self.rule_for(variable).states if group is None else self.kept_states(group)

    def first_value(self, variable: Variable, name: str) -> Any:
        """What a state or a scalar of a variable begins with: a tensor or a number."""
        group = self.membership.group_of.get(variable.id, self.defaults)
        first = self.rule_for(variable).first_value(name, group)
        return variable.param.detach() if first == VALUE else first

    def follow(self) -> None:
        """Takes up what was edited in `param_groups`, and the variables that were declared, since the last time."""
        self.registry.settle()
        self._follow()

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

    # Plans ------------------------------------------------------------------------------------------------------------

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
            if not any(param.requires_grad for param in self._frozen):
                known = self._planned == self.membership.version and self._planned_for == self._plans_depend_on()
                return plans if known else self._make_plans()
            follow_flags(self.registry)
        elif any(v.requires_grad and not v.trains for v in self.members()):
            follow_flags(self.registry)
        self.follow()
        return self._make_plans()

    def _take_in_foreign(self) -> None:
        """Takes in what users put into `param_groups`, and lets go of what they took out for it."""
        self._take_in([GivenParam(None, param) for param in self.membership.foreign], "nothing was stepped")
        self.membership.look_again()
        self.follow()
        hooks = [hook for hook in self.registry.after_carve if isinstance(hook, _Hook)]
        forget_leavers(self.registry, [optimizer for hook in hooks if (optimizer := hook.optimizer()) is not None])
        self.follow()

    def arrange(self) -> None:
        """Lays variables where the step wants them; called before plans are made, and when the optimizer is."""

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
        return PlanSet(self.registry, [v for v, _ in members], self.rows_of(members), slots, kinds)

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

    # Stepping -----------------------------------------------------------------------------------------------------

    @hooked
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, strict: bool = False) -> Any:
        """One step of every variable that has a gradient: a norm launch if clipping or skipping needs it, and a step.

        Args:
            closure: Computes the loss and its gradients; its value is returned.
            strict: Every trained variable must have a gradient.

        Raises:
            AliasError: a parameter no longer lies in the store, or its module holds another one.
            ForeignParameterError: a param group holds a Parameter that the store does not.
            GradientError: a gradient of a wrong shape or kind, or, if `strict`, none. Nothing is stepped then.
        """
        self.refuse_swapped("no step is taken from them")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plans = checked(self._current_plans, stepping=True)
        gradients = gradients_of(self.registry)
        collected = gradients.collect(plans)
        touched = collected.touched
        divided = self.states.is_divided
        if strict and not divided and not all(hits := gradients.hits(plans, collected)):
            names = [v.name for v, hit in zip(plans.variables, hits, strict=True) if not hit and v.requires_grad]
            check_complete(names)
        self.entries.settle(strict=True)
        self._count()
        self._calls += 1
        if divided:
            step_divided(self, plans, collected, strict)
            touched = [True] * len(plans.params)  # every rank has the values of all
        else:
            self._launch(plans, collected)
        self.entries.refresh()
        gradients.spend(plans, collected)
        # Kernels write behind autograd's back: without this, a backward pass through values that a forward pass saved
        # before this step would silently use the new ones.
        if all(touched):
            plans.counter.count()
        else:
            torch.autograd.graph.increment_version(list(compress(plans.params, touched)))
        return loss

    def _count(self) -> None:
        """Pauses and resumes the counts of groups whose numbers say so."""
        flags = self.membership.version, tuple(map(self.counts_steps, self.param_groups))
        if flags == self._counted:
            return
        self._counted = flags
        turned: dict[bool, list[Variable]] = {True: [], False: []}
        for variable, number in by_rows(self.membership.groups):
            counts = flags[1][number]
            if counts is not self._counting.get(variable.id, True):
                self._counting[variable.id] = counts
                turned[counts].append(variable)
        self.states.resume(turned[True])
        self.states.pause(turned[False])

    def _launch(self, plans: PlanSet, collected: Collected) -> None:
        gradients = gradients_of(self.registry)
        scaling = read_scaling(self, self.registry.device, collected.gathered)
        if self.registry.sharding is not None:
            check_divisible(self, "shards")
            scaling["found_inf"] = self.registry.sharding.found(scaling["found_inf"])
        norm = plans.norm
        if self.max_norm is not None or self.skip_nonfinite or collected.unseen:
            norm = gradients.norm_for(plans, collected, scaling["grad_scale"])
        if self.max_norm is not None or self.skip_nonfinite:
            self._norm = norm
        self.observe(plans)
        self.launch_parts(plans, collected, norm, scaling)

    def launch_parts(
        self, plans: PlanSet, collected: Collected, norm: Tensor, scaling: Mapping[str, Tensor | None]
    ) -> None:
        """The step of all variables."""
        for part, source in zip(plans.parts, collected.sources, strict=True):
            self.launch_part(plans, part, source, norm, scaling)

    def launch_part(
        self,
        plans: PlanSet,
        part: Part,
        source: Sources,
        norm: Tensor,
        scaling: Mapping[str, Tensor | None],
        stage: Stage = "both",
    ) -> None:
        """The step of the variables of one region, and where there are several rules, of one rule."""
        rule = self.applied_rule(part)
        values, states = plans.values(part), self.streams_of(part, rule)
        arguments = {
            "rule": rule,
            "values": values,
            "states": [held.stored for held in states],
            "groups": self.groups_of(part),
            "steps": self.states.steps,
            **origin_of(states),
            "norm": norm,
            "max_norm": self.max_norm,
            "skip": self.skip_nonfinite,
            "skipped": self.states.skipped,
            "own": self.states.scalars(rule.own),
            "keys": self._keys_for(rule, values, states),
            "observed": self.observed()[0],
            "check": self.check_changed,
            **scaling,
        }
        self.step_part(plans, part, source, arguments, stage)

    def step_part(
        self, plans: PlanSet, part: Part, source: Sources, arguments: dict[str, Any], stage: Stage = "both"
    ) -> None:
        """The launches of such a step; a class that needs more than a rule can say has others.

        Args:
            arguments: Of `Plan.step_`.
        """
        rule = arguments["rule"]
        if rule.statistics is None or stage == "move" or not self.states.is_partial:
            part.plan.step_(source, **arguments, stage=stage)
            return
        part.plan.step_(source, **arguments, stage="measure")
        add_up_sums(plans, part, rule)
        if stage == "both":
            part.plan.step_(source, **arguments, stage="move")

    def applied_rule(self, part: Part) -> Rule:
        """That of the launch which moves the values of a part."""
        return self.with_average(self.rule() if part.kind is None else part.kind)

    def streams_of(self, part: Part, rule: Rule) -> list[Stream]:
        """The streams of its states."""
        return self.states.streams(part.region, rule.states)

    def observe(self, plans: PlanSet) -> None:
        """Notes whose numbers the step that is under way tells, if it is looked at."""
        if self.observes():
            self.observations.note(plans.variables, self.states.slots, plans)

    def observes(self) -> bool:
        """Whether the step that is under way is looked at."""
        return self.stats_every > 0 and (self._calls - 1) % self.stats_every == 0

    def observed(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Where the step that is under way writes what it tells; None where it is not asked."""
        return self.observations.tables(self.states.steps) if self.observes() else (None, None)

    def stats(self) -> VariableStats:
        """Norms, ratios and counts of every variable, of the last step that told them: on the device, no sync.

        A step that is skipped tells nothing, and a variable without a gradient is as it was when it stepped last. Where
        ranks have parts of variables, all call it: numbers of the parts are added up then.

        Raises:
            FlatvarsError: the optimizer was made without `stats`.

        Example:
            >>> optimizer = AdamW(store, stats=10)  # every tenth step tells
            >>> optimizer.step()
            >>> largest = optimizer.stats().update_ratio.max()
            >>> print(store.summary(optimizer.stats()))
        """
        if not self.stats_every:
            raise FlatvarsError(
                f"this {type(self).__name__} gathers no numbers; make it with stats=True, or stats=k for those of "
                "every k-th step"
            )
        members = sorted(self.take_up(), key=lambda v: v.index)
        together = partial(add_up_observed, self.registry, members)
        return self.observations.read(members, self.states.slots, self.states.steps, together)

    def _keys_for(self, rule: Rule, values: Stored, states: Sequence[Stream]) -> Tensor | None:
        """What values and states are rounded at random by, where any is."""
        if not self.stochastic_rounding:
            return None
        few = [is_rounded(held.buffer.dtype, held.format) for held in states]
        halves = max(rule.draws(few), default=-1) >= 0
        return self.states.keys() if halves or values.at_random else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim's, and drops what `store.accumulate` gathered for the variables of this optimizer."""
        self.follow()
        for param in self.membership.foreign:
            zero_foreign(param, set_to_none)
        plans = self._plans if self._planned == self.membership.version else None
        gradients_of(self.registry).zero(set_to_none, self.members(), plans)

    @property
    def grad_norm(self) -> Tensor:
        """The gradient norm that the last step clipped or checked by, before clipping: a device scalar, no sync."""
        if self._norm is None:
            raise FlatvarsError(
                "no step of this optimizer has taken a norm; pass max_norm= or skip_nonfinite=True, or call "
                "store.grad_norm()"
            )
        return self._norm.clone()

    @property
    def skipped(self) -> Tensor:
        """How many steps `skip_nonfinite` or a GradScaler skipped up to now: a device scalar, no sync."""
        return self.states.skipped.clone()

    def upload_hyperparameters(self) -> None:
        """Copies changed `param_groups` to the device now. Call it before replaying a captured CUDA graph of `step`."""
        plans = self._current_plans()
        self.entries.settle(strict=True)
        self._count()
        for part in plans.parts:
            self.upload_part(part)

    def upload_part(self, part: Part) -> None:
        """The same for one launch."""
        part.plan.upload_hyper(self.applied_rule(part), self.groups_of(part), self.max_norm, self.check_changed)

    # State --------------------------------------------------------------------------------------------------------

    @property  # type: ignore[override]
    def state(self) -> Entries:
        """Parameter to a dict of its step count and states, as torch.optim's: what is written there is stepped on."""
        return self.entries

    @state.setter
    def state(self, content: Mapping[Any, Any]) -> None:
        self.entries.assign(content)

    def _carved(self) -> None:
        """The store carved anew."""
        self.entries.own_dropped()
        self.entries.forget(self.states.lost(), keep=True)
        self.states.follow_carve()
        self.membership.renew(self.param_groups)
        self.entries.refresh()

    def state_dict(self) -> dict[str, Any]:
        """torch.optim's format: it loads there, and theirs loads here. Synchronizes to read step counts."""
        self.refuse_swapped("a state dict would take them for each other")
        return state_dict(self)

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copies a state dict of this class or of torch.optim's namesake into the streams, in the streams' dtype.

        Raises:
            ValueError: other numbers of groups or parameters, or another class's; nothing has changed then.
        """
        self.refuse_swapped("loaded states would take their place")
        load_state_dict(self, state_dict)

    def capture(self) -> OptimizerRecord:
        """All that the optimizer holds, in place: nothing is copied, and nothing waits for the device."""
        self.refuse_swapped("what is saved or copied would take them for each other; store.save(path) saves them alone")
        return capture_record(self)

    @torch.no_grad()
    def restore(self, record: OptimizerRecord, fetch: FetchState | None = None) -> None:
        """Puts a record in the place of what the optimizer holds.

        Args:
            record: Of this optimizer at another time, or of one that was saved.
            fetch: Writes the states, one by one, where the record has no streams.

        Raises:
            MismatchError: the record is of another class or of other groups, or has numbers that are none; nothing has
                changed then.
        """
        self.refuse_swapped("restored states would take their place")
        restore_record(self, record, fetch)

    def problems(self, record: OptimizerRecord) -> list[str]:
        """What keeps `restore` from taking a record, in words; nothing changes."""
        self.follow()
        return record_problems(self, record)

    # deepcopy and pickle take the store along, as torch.optim's take their parameters: copy or save both in one call,
    # copy.deepcopy((model, store, optimizer)), and the copies belong together.

    def __getstate__(self) -> dict[str, Any]:
        return get_state(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_state(self, state)

    def __repr__(self) -> str:
        options = {name: getattr(self, name) for name in ("max_norm", "skip_nonfinite", "state_dtype", "state_format")}
        options["stats"] = self.stats_every or None
        return show(self, self.registry, options)

    def __copy__(self) -> NoReturn:
        raise TypeError(
            f"a shallow copy of {type(self).__name__} would share its state streams, and both would step them; use "
            "copy.deepcopy((model, store, optimizer)), or make a second optimizer and load state_dict() into it"
        )


class _NamesOf:
    """The states of a variable, as long as its optimizer is there; its states must not keep it."""

    def __init__(self, optimizer: weakref.ref[Optimizer]) -> None:
        self._optimizer = optimizer

    def __call__(self, variable: Variable) -> tuple[str, ...]:
        optimizer = self._optimizer()
        return () if optimizer is None else optimizer.rule_for(variable).states


class _FormOf:
    """How a state is stored, as long as its optimizer is there; its states must not keep it."""

    def __init__(self, optimizer: weakref.ref[Optimizer]) -> None:
        self._optimizer = optimizer

    def __call__(self, name: str) -> FormOf:
        optimizer = self._optimizer()
        assert optimizer is not None  # it asks for its streams itself
        values = optimizer.registry.value_format
        return form_of(optimizer.state_format, optimizer.state_dtype, optimizer.rules(), name, values)


class _Hook:
    """Tells an optimizer, as long as there is one, that its store carved."""

    def __init__(self, optimizer: weakref.ref[Optimizer]) -> None:
        self.optimizer = optimizer

    def __call__(self) -> None:
        optimizer = self.optimizer()
        if optimizer is not None:
            optimizer._carved()


def _unhook(reference: weakref.ref[Registry], hook: _Hook) -> None:
    registry = reference()
    if registry is not None:
        registry.after_carve.remove(hook)


def zero_foreign(param: Tensor, set_to_none: bool) -> None:
    """Of a parameter that the store does not hold yet."""
    if param.grad is not None:
        if set_to_none:
            param.grad = None
        else:
            param.grad.zero_()
