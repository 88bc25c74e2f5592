"""Adafactor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..backend import ADAFACTOR, ADAFACTOR_GRADIENT, Rule, Sources, Stage
from ..gradients.plans import Part, PlanSet
from ..memory.streams import FROZEN_ELEMENTS
from ..variables.registry import HasRegistry, Registry
from .base import Optimizer
from .checks import check_at_least, check_number
from .divided import add_up_sums
from .factored import FactoredStep, factored_shapes
from .factored_parts import FactoredParts
from .membership import by_rows
from .scaling import moves_of


class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) with torch.optim.Adafactor's arguments and results.

    Of a matrix it keeps the means of squared gradients over rows and columns alone, of the last two axes. Variables of
    one shape are one batch of operators, in the place where they lie: the store lays them side by side. Room for one
    gradient of everything, in the precision of the arithmetic, is kept from step to step. Where ranks have parts of
    variables, each keeps all these means, and operators are some for each variable.

    Args:
        params: As for `Optimizer`.
        lr: Most that a step may be of the root mean square of a variable's values; from step t on it is 1 / sqrt(t),
            where that is less.
        beta2_decay: Exponent, at most 0: squares of step t have the weight t^beta2_decay.
        eps: Least mean of squares and root of the least estimate, the epsilon of the variable's dtype if None (of
            float32, where values are split or corrected); least root mean square of the values.
        d: Least root mean square of a direction that is clipped, at least 1.
        weight_decay: Decoupled.
        foreach: As in torch.optim, and ignored.
        maximize: Ascend.
        store, max_norm, skip_nonfinite, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

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

    def _attach(self, registry: Registry) -> None:
        super()._attach(registry)
        self._rooms: dict[int, FactoredStep | FactoredParts] = {}

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

    def loose_states(
        self, shape: tuple[int, ...], group: Mapping[str, Any], names: Iterable[str]
    ) -> dict[str, tuple[int, ...]]:
        return factored_shapes(shape)

    # Plans ------------------------------------------------------------------------------------------------------------

    def arrange(self) -> None:
        """Lays variables of one shape side by side."""
        self.registry.lay_side_by_side([v for v, _ in by_rows(self.membership.groups)])

    def _make_plans(self) -> PlanSet:
        self._rooms = {}
        return super()._make_plans()

    def _room_of(self, plans: PlanSet, part: Part) -> FactoredStep | FactoredParts:
        room = self._rooms.get(id(part))
        if room is None:
            numbers = {v.id: number for v, number in by_rows(self.membership.groups)}
            variables = [plans.variables[k] for k in part.order]
            slots = self.states.slots
            members = [(v, numbers[v.id], place, slots[v.id]) for place, v in enumerate(variables)]
            if self.states.is_partial:
                room = FactoredParts(part, members, self.registry)
            else:
                numel = max((v.span.stop for v in variables), default=0)
                room = FactoredStep(part, members, numel, self.registry.device, self.registry.number_dtype)
            self._rooms[id(part)] = room
        return room

    # Stepping ---------------------------------------------------------------------------------------------------------

    def step_part(
        self, plans: PlanSet, part: Part, source: Sources, arguments: dict[str, Any], stage: Stage = "both"
    ) -> None:
        """A launch that gathers gradients, operators that make directions of them, and the two of the step.

        Where ranks have parts of variables, with two messages: of squares along rows and columns, and of the sums.
        """
        room = self._room_of(plans, part)
        room.bind(source.touched, lambda variable: self.entries[variable.param])
        frozen = self.registry.streams.find(FROZEN_ELEMENTS, part.region)
        room.write(source, ADAFACTOR_GRADIENT, room.values, [], arguments, self.observed()[1], frozen)
        known = not source.viewed and isinstance(room, FactoredStep)
        written = None if known else part.plan.written(source)
        room.divide(source.touched, self.param_groups, self.states.steps, moves_of(arguments), written)
        if not self.states.is_partial:
            room.move(source, arguments)
            return
        room.move(source, arguments, "measure")
        add_up_sums(plans, part, arguments["rule"])
        room.move(source, arguments, "move")

    def upload_part(self, part: Part) -> None:
        assert self._plans is not None
        numbers = {"max_norm": self.max_norm, "check": self.check_changed}
        room = self._room_of(self._plans, part)
        room.upload(ADAFACTOR_GRADIENT, self.applied_rule(part), self.groups_of(part), **numbers)
