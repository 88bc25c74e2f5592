"""Gradients of shards: they lie in `.grad` of DTensors, as FSDP2 and tensor parallelism leave them, averaged already.

Each is seen as the gradient of this rank's shard, in place; what was dropped or made of one, is of the other. Norms are
those of all ranks, and therefore a message: every rank asks for them at the same place.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from ..distributed.shards import divided_as, grads_of
from ..variables.registry import Registry
from ..variables.variable import Variable
from .cut_units import CutUnits, unit_weights, weighted_sum
from .cycle import Collected, Given
from .gathered import Gathered
from .plans import PlanSet


class Sharded(Gathered):
    """See above."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._units: weakref.WeakKeyDictionary[PlanSet, list[CutUnits | Tensor]] = weakref.WeakKeyDictionary()

    def _divided(self, variables: Sequence[Variable] | None) -> list[Variable]:
        """Those of some variables, of all if not given, that are shards."""
        chosen = self.registry.variables if variables is None else variables
        return [variable for variable in chosen if variable.whole is not variable.param]

    def _look(self, variables: Sequence[Variable] | None = None) -> None:
        """Shards see what lies in `.grad` of their DTensors."""
        divided = self._divided(variables)
        for variable, grad in zip(divided, grads_of([v.whole for v in divided]), strict=True):
            variable.param.grad = grad

    def _drop(self, variables: Sequence[Variable] | None = None) -> None:
        """DTensors lose the gradients that were taken out of `.grad` of their shards."""
        for variable in self._divided(variables):
            if variable.param.grad is None and variable.whole.grad is not None:
                variable.whole.grad = None

    def of(self, variable: Variable) -> Tensor | None:
        self._look([variable])
        return super().of(variable)

    @torch.no_grad()
    def add(self, variable: Variable, grad: Tensor) -> None:
        self._look([variable])
        super().add(variable, grad)
        if variable.whole is not variable.param and variable.whole.grad is None and variable.param.grad is not None:
            variable.whole.grad = divided_as(variable.whole, variable.param.grad)

    def accumulate(self, grads: Given = None, scale: float = 1.0) -> None:
        self._look()
        super().accumulate(grads, scale)
        self._drop()

    def collect(self, plans: PlanSet) -> Collected:
        self._look(plans.variables)
        found = super().collect(plans)
        self._drop(plans.variables)
        return found

    def zero(
        self, set_to_none: bool = True, variables: Sequence[Variable] | None = None, plans: PlanSet | None = None
    ) -> None:
        if not set_to_none:  # in place
            self._look(variables)
        super().zero(set_to_none, variables, plans)
        self._drop(variables)

    def flush(self) -> None:
        self._look()
        super().flush()

    def _has_norm_of(self, used: set[int]) -> bool:
        """What `accumulate` finds on the way is the norm of this rank's shards."""
        return False

    def norm_for(self, plans: PlanSet, collected: Collected, grad_scale: Tensor | None = None) -> Tensor:
        """The norm over all ranks: sums of squares of shards, weighed by how many ranks have the same, and added up."""
        sharding = self.registry.sharding
        assert sharding is not None
        plans.renew_norm()
        total = torch.zeros((), dtype=torch.float64, device=plans.norm.device)
        for part, source, units in zip(plans.parts, collected.sources, self._units_of(plans), strict=True):
            if isinstance(units, CutUnits):
                total += units.squares(source, [self._local_grad(plans, collected, k) for k in part.order], grad_scale)
                continue
            part.plan.norm_(source, grad_scale)
            total += weighted_sum(part.plan.launches.squares(), units)
        plans.norm.copy_(sharding.add_up(total).sqrt())
        return plans.norm

    def _local_grad(self, plans: PlanSet, collected: Collected, k: int) -> Tensor | None:
        """The gradient of a shard, wherever it lies."""
        if not collected.touched[k]:
            return None
        pending = collected.pending[k]
        return self._lying(plans.variables[k]) if pending is None else pending

    def _units_of(self, plans: PlanSet) -> list[CutUnits | Tensor]:
        """Of each part: how cut units are put together; where none is, what a unit counts, float64 [units]."""
        if plans not in self._units:
            sharding = self.registry.sharding
            assert sharding is not None
            found: list[CutUnits | Tensor] = []
            for part in plans.parts:
                variables = [plans.variables[k] for k in part.order]
                shares = [sharding.share_of(variable.whole) for variable in variables]
                cut = CutUnits(part, variables, shares)
                if cut.numel and part.plan.launches.tables.frozen is None:
                    found.append(cut)
                    continue
                found.append(unit_weights(part.plan.segments, shares).to(plans.norm.device))
            self._units[plans] = found
        return self._units[plans]
