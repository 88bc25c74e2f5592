"""A step: at most two launches for each dtype and rule, and what can be asked of the last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from ..backend import Again, Rule, Sources, Stage
from ..errors import FlatvarsError
from ..gradients.attached import gradients_of
from ..gradients.cycle import Collected, Gradients
from ..gradients.plans import Part, PlanSet, checked
from ..memory.grad_mode import unwatched
from ..memory.streams import Stream
from ..variables.variable import Variable
from .changes import Change, GroupChanges
from .checks import check_complete
from .divided import add_up_observed, add_up_sums, divided_of, step_divided, tell_all
from .formats import StateFormat
from .hooks import hooked
from .lasting import Lasting
from .membership import by_rows
from .planning import Planning
from .scaling import read_scaling
from .shares import DividedStep
from .stats import Observations, VariableStats


class Stepping(Planning):
    """The part of an optimizer that launches."""

    skip_nonfinite: bool
    state_dtype: torch.dtype | None
    state_format: StateFormat
    stats_every: int
    observations: Observations
    _norm: Tensor | None
    _calls: int
    _counted: Any
    _counting: dict[int, bool]
    _divided: DividedStep | None
    _changes: GroupChanges
    _change: Change  # of the param groups, since the step before the one that is under way

    _clears = False  # whether the launches of the step that is under way clear gradients

    _step_supports_amp_scaling = True

    stochastic_rounding = True
    """Whether slow averages that are stored in bfloat16, such as those of squares, are rounded at random: to nearest,
    as torch.optim does it, they never decay. So are values of a store with `values="stochastic"`. The draws depend on
    the store's seed, the variable's name, its step and the position alone. Set it to False on an optimizer to compare
    with torch's."""

    @hooked
    @unwatched
    def step(self, closure: Callable[[], Any] | None = None, *, strict: bool = False, zero_grad: bool = False) -> Any:
        """One step of every variable that has a gradient: a norm launch if clipping or skipping needs it, and a step.

        `step(zero_grad=True)` leaves all as `step()` and `zero_grad()` do. In a store with `grads="views"` that is
        faster: what a pass over all gradients would clear, the step clears while it has them in a cache.

        Args:
            closure: Computes the loss and its gradients; its value is returned.
            strict: Every trained variable must have a gradient.
            zero_grad: Drop the gradients behind the step, those of a step that is skipped, too. Where it raises, they
                stay.

        Raises:
            AliasError: a parameter no longer lies in the store, or its module holds another one.
            ForeignParameterError: a param group holds a Parameter that the store does not.
            GradientError: a gradient of a wrong shape or kind, or, if `strict`, none. Nothing is stepped then.
        """
        if self.swapped:
            try:
                self.refuse_swapped("no step is taken from them")
            except Exception as error:
                tell_all(self, error)
                raise
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        try:
            plans = checked(self._current_plans, stepping=True)
            gradients = gradients_of(self.registry)
            collected = gradients.to_step(plans)
            touched = collected.touched
            divided = self.states.is_divided
            if strict and not divided and not all(hits := gradients.hits(plans, collected)):
                names = [v.name for v, hit in zip(plans.variables, hits, strict=True) if not hit and v.requires_grad]
                check_complete(names)
            self.entries.settle(strict=True)
            self._change = self._changes.look(self.param_groups)
            if self._change is Change.ANY or self._counted[0] != self.membership.version:
                self._count()
        except Exception as error:
            tell_all(self, error)
            raise
        self._calls += 1
        self._clears = zero_grad and not self.membership.foreign and gradients.clears(plans, self.members())
        if divided:
            step_divided(self, plans, collected, strict)
            touched = [True] * len(plans.params)  # every rank has the values of all
        else:
            self._launch(plans, collected, gradients)
        if self._change is not Change.NONE:
            self._changes.note(self.param_groups)
        self.entries.refresh()
        gradients.spend(plans, collected)
        # Kernels write behind autograd's back: without this, a backward pass through values that a forward pass saved
        # before this step would silently use the new ones.
        if all(touched):
            plans.counter.count()
        else:
            torch.autograd.graph.increment_version(list(compress(plans.params, touched)))
        if self._clears:
            gradients.cleared(plans)
        elif zero_grad:
            self.zero_grad()
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

    def _launch(self, plans: PlanSet, collected: Collected, gradients: Gradients) -> None:
        scaling = read_scaling(self, self.registry.device, collected.gathered)
        if self.registry.sharding is not None:
            scaling["found_inf"] = self.registry.sharding.found(scaling["found_inf"])
        norm = plans.norm
        if self.max_norm is not None or self.skip_nonfinite or collected.unseen:
            norm = gradients.norm_for(plans, collected, scaling["grad_scale"])
        if self.max_norm is not None or self.skip_nonfinite:
            self._norm = norm
        if self.stats_every:
            self.observe(plans)
        self.launch_parts(plans, list(zip(plans.parts, collected.sources, strict=True)), norm, scaling)

    def launch_parts(
        self,
        plans: PlanSet,
        pairs: Sequence[tuple[Part, Sources]],
        norm: Tensor,
        scaling: Mapping[str, Tensor | None],
    ) -> None:
        """The step of all variables.

        Args:
            pairs: The parts of the plans, or this rank's shares of them, each with its gradients.
        """
        if self.several and len(pairs) > 1:  # a number that cannot be is refused before the launch of another rule
            for part, _ in pairs:
                self.upload_part(part)
        for part, source in pairs:
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
        known: Lasting | None = plans.lasting.get(part.plan)
        if stage == "both" and known is not None and self._launch_again(known, part, source, norm, scaling):
            return
        rule = self.applied_rule(part)
        lasting = self._lasting(plans, part, rule)
        arguments = {
            **lasting.arguments,
            "groups": self.groups_of(part),
            "norm": norm,
            "max_norm": self.max_norm,
            "skip": self.skip_nonfinite,
            "keys": self._keys_of(lasting),
            "observed": self.observed()[0],
            "clear": self._clears,
            "check": self.check_changed,
            **scaling,
        }
        made = self.step_part(plans, part, source, arguments, stage)
        if stage == "both" and made is not None:
            lasting.note(made, self._switches(lasting, source, norm, scaling), part.plan.hyper.version)

    def _lasting(self, plans: PlanSet, part: Part, rule: Rule) -> Lasting:
        """What a launch of a part is given as long as its rule is the same and nothing moved."""
        known: Lasting | None = plans.lasting.get(part.plan)
        if known is not None and known.rule is rule and known.version == self.states.version:
            return known
        counts = {"steps": self.states.steps, "skipped": self.states.skipped, "own": self.states.scalars(rule.own)}
        found = Lasting(rule, self.states.version, plans.values(part), self.streams_of(part, rule), counts)
        plans.lasting[part.plan] = found
        return found

    def _launch_again(
        self, lasting: Lasting, part: Part, source: Sources, norm: Tensor, scaling: Mapping[str, Tensor | None]
    ) -> bool:
        """Makes the last launch of a part once more, and returns whether it did: if it would be given the same now.

        Learning rates may be others; they are uploaded.
        """
        if self._change is Change.ANY or lasting.version != self.states.version:
            return False
        hyper = part.plan.hyper
        again = lasting.again(self._switches(lasting, source, norm, scaling), hyper.version)
        if again is None:
            return False
        if self._change is Change.RATE:
            hyper.turn(self.groups_of(part))
            lasting.hyper_version = hyper.version
        again(norm)
        return True

    def _switches(
        self, lasting: Lasting, source: Sources, norm: Tensor, scaling: Mapping[str, Tensor | None]
    ) -> tuple[Any, ...]:
        """What a launch is given beside what lasts and the numbers of the groups: tensors by their addresses."""
        keys = self._keys_of(lasting) if lasting.draws else None
        observed = self.observed()[0] if self.stats_every else None
        scale, found = scaling["grad_scale"], scaling["found_inf"]
        return (
            source.table.data_ptr(),
            source.dtype,
            source.viewed,
            norm.dtype,
            self.max_norm,
            self.skip_nonfinite,
            self.average,
            self._clears,
            None if keys is None else keys.data_ptr(),
            None if observed is None else observed.data_ptr(),
            None if scale is None else scale.data_ptr(),
            None if found is None else found.data_ptr(),
        )

    def _keys_of(self, lasting: Lasting) -> Tensor | None:
        """What random bits are drawn by, where there is something to round."""
        return self.states.keys() if lasting.draws and self.stochastic_rounding else None

    def step_part(
        self, plans: PlanSet, part: Part, source: Sources, arguments: dict[str, Any], stage: Stage = "both"
    ) -> Again | None:
        """The launches of such a step; a class that needs more than a rule can say has others.

        Args:
            arguments: Of `Plan.step_`.

        Returns:
            What makes them once more, if these launches are all of the step.
        """
        rule = arguments["rule"]
        if rule.statistics is None or stage == "move" or not self.states.is_partial:
            made: Again = part.plan.step_(source, **arguments, stage=stage)
            return made
        part.plan.step_(source, **arguments, stage="measure")
        add_up_sums(plans, part, rule)
        if stage == "both":
            part.plan.step_(source, **arguments, stage="move")
        return None

    def applied_rule(self, part: Part) -> Rule:
        """That of the launch which moves the values of a part."""
        return self.with_average(self.rule() if part.kind is None else part.kind)

    def streams_of(self, part: Part, rule: Rule) -> list[Stream]:
        """The streams of its states."""
        return self.states.streams(part.region, rule.states, part.apart)

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

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim's, and drops what `store.accumulate` gathered for the variables of this optimizer."""
        self.follow()
        for param in self.membership.foreign:
            zero_foreign(param, set_to_none)
        plans = self._plans if self._planned == self.membership.version else None
        gradients_of(self.registry).zero(set_to_none, self.membership.members(), plans)

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
        for part in self._launched_parts(plans):
            self.upload_part(part)

    def _launched_parts(self, plans: PlanSet) -> list[Part]:
        """Those whose plans a step launches: this rank's shares of them, where state is shared out over ranks."""
        if not self.states.is_divided:
            return plans.parts
        return [share.part for share in divided_of(self, plans).shares]

    def upload_part(self, part: Part) -> None:
        """The same for one launch."""
        part.plan.upload_hyper(self.applied_rule(part), self.groups_of(part), self.max_norm, self.check_changed)


def zero_foreign(param: Tensor, set_to_none: bool) -> None:
    """Of a parameter that the store does not hold yet."""
    if param.grad is not None:
        if set_to_none:
            param.grad = None
        else:
            param.grad.zero_()
