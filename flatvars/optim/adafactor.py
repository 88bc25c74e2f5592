"""Adafactor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import ADAFACTOR, ADAFACTOR_GRADIENT, Rule, Sources, Stage
from ..gradients.plans import Part, PlanSet
from ..memory.streams import FROZEN_ELEMENTS
from ..variables.registry import HasRegistry, Registry
from .base import Optimizer
from .checks import check_at_least, check_number
from .factored import FactoredStep, factored_shapes
from .membership import by_rows
from .states import origin_of


class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) with torch.optim.Adafactor's arguments and results.

    Of a matrix it keeps the means of squared gradients over rows and columns alone, of the last two axes. Variables of
    one shape are one batch of operators, in the place where they lie: the store lays them side by side. Room for one
    gradient of everything, in the precision of the arithmetic, is kept from step to step.

    Args:
        params: As for `Optimizer`.
        lr: Most that a step may be of the root mean square of a variable's values; from step t on it is 1 / sqrt(t),
            where that is less.
        beta2_decay: Exponent, at most 0: squares of step t have the weight t^beta2_decay.
        eps: Least mean of squares and root of the least estimate, the epsilon of the variable's dtype if None; least
            root mean square of the values.
        d: Least root mean square of a direction that is clipped, at least 1.
        weight_decay: Decoupled.
        foreach: As in torch.optim, and ignored.
        maximize: Ascend.
        store, max_norm, skip_nonfinite, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    divisible = False
    known_states = ("row_var", "col_var", "variance")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        stats: bool | int = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, defaults, store=store, max_norm=max_norm, skip_nonfinite=skip_nonfinite, stats=stats)
        self._arrange()

    def _attach(self, registry: Registry) -> None:
        super()._attach(registry)
        self._rooms: dict[int, FactoredStep] = {}

    # What a class says of itself ------------------------------------------------------------------------------------

    def rule(self) -> Rule:
        return ADAFACTOR

    def number_names(self, defaults: Mapping[str, Any]) -> list[str]:
        return [name for name in defaults if name != "eps"]

    def check_numbers(self, numbers: Mapping[str, Any]) -> None:
        eps = numbers["eps"]
        if not isinstance(eps, (tuple, list)) or len(eps) != 2:
            raise ValueError(f"eps={eps!r}: give a tuple of two numbers, of which the first may be None")
        check_at_least(0.0, lr=numbers["lr"], weight_decay=numbers["weight_decay"])
        check_at_least(0.0, **{f"eps[{i}]": number for i, number in enumerate(eps) if i or number is not None})
        check_at_least(1.0, d=numbers["d"])
        check_number("beta2_decay", numbers["beta2_decay"])
        if not numbers["beta2_decay"] <= 0.0:
            raise ValueError(f"beta2_decay should be <= 0 but is: {numbers['beta2_decay']}")

    def loose_states(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return factored_shapes(shape)

    # Plans ------------------------------------------------------------------------------------------------------------

    def _arrange(self) -> None:
        """Lays variables of one shape side by side."""
        members = [v for v, _ in by_rows(self.membership.groups)]
        self.registry.lay_side_by_side(members)

    def _make_plans(self) -> PlanSet:
        self._arrange()
        self._rooms = {}
        return super()._make_plans()

    def _room_of(self, plans: PlanSet, part: Part) -> FactoredStep:
        room = self._rooms.get(id(part))
        if room is None:
            numbers = {v.id: number for v, number in by_rows(self.membership.groups)}
            variables = [plans.variables[k] for k in part.order]
            slots = self.states.slots
            members = [(v, numbers[v.id], place, slots[v.id]) for place, v in enumerate(variables)]
            numel = max((v.span.stop for v in variables), default=0)
            room = self._rooms[id(part)] = FactoredStep(part, members, numel, self.registry.device)
        return room

    # Stepping ---------------------------------------------------------------------------------------------------------

    def launch_part(
        self,
        plans: PlanSet,
        part: Part,
        source: Sources,
        norm: Tensor,
        scaling: Mapping[str, Tensor | None],
        stage: Stage = "both",
    ) -> None:
        """A launch that gathers gradients, operators that make directions of them, and the two of the step."""
        room, rule, groups = self._room_of(plans, part), self.kept_rule(), self.groups_of(part)
        states, observed = self.states.streams(part.region, rule.states), self.observed()
        room.bind(source.touched, lambda variable: self.entries[variable.param])
        common = {"norm": norm, "skip": self.skip_nonfinite, "check": self.check_changed}
        part.plan.step_(
            source,
            ADAFACTOR_GRADIENT,
            room.directions,
            [],
            groups,
            steps=room.counts(self.states.steps),
            max_norm=self.max_norm,
            skipped=self.states.skipped,
            observed=observed[1],
            **common,
            **scaling,
        )
        frozen = self.registry.streams.find(FROZEN_ELEMENTS, part.region)
        if frozen is not None:
            room.directions.masked_fill_(frozen.buffer[: len(room.directions)].view(torch.bool), 0.0)
        written = part.plan.written(source) if source.viewed else None
        moves = self._moves(norm, scaling["found_inf"])
        room.divide(source.touched, self.param_groups, self.states.steps, moves, written)
        values = plans.values(part)
        read = room.apply.viewed if source.viewed else room.apply.gathered
        room.apply.step_(
            read(room.directions, source.touched),
            rule,
            values,
            [held.stored for held in states],
            groups,
            steps=self.states.steps,
            **origin_of(states),
            max_norm=None,
            skipped=room.skipped,  # the first launch has counted them
            own=self.states.scalars(rule.own),
            keys=self._keys_for(rule, values, states),
            observed=observed[0],
            found_inf=scaling["found_inf"],
            **common,
        )

    def _moves(self, norm: Tensor, found_inf: Tensor | None) -> Tensor | None:
        """Whether this step is none of those that are skipped, bool [] on the device; None where none can be."""
        finite = norm.isfinite() if self.skip_nonfinite else None
        if found_inf is None:
            return finite
        good = found_inf.reshape(()) == 0.0
        return good if finite is None else good & finite

    def upload_part(self, part: Part) -> None:
        assert self._plans is not None
        room, groups = self._room_of(self._plans, part), self.groups_of(part)
        part.plan.upload_hyper(ADAFACTOR_GRADIENT, groups, self.max_norm, self.check_changed)
        room.apply.upload_hyper(self.kept_rule(), groups, None, self.check_changed)
