"""Gradients of shards: they lie in `.grad` of DTensors, as FSDP2 and tensor parallelism leave them, averaged already.

Each is seen as the gradient of this rank's shard, in place; what was dropped or made of one, is of the other. Norms are
those of all ranks, and therefore a message: every rank asks for them at the same place.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backend import unit_counts
from ..distributed.shards import divided_as, grads_of
from ..variables.registry import Registry
from ..variables.variable import Variable
from .cycle import Collected, Given
from .gathered import Gathered
from .plans import PlanSet


class Sharded(Gathered):
    """See above."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._weights: weakref.WeakKeyDictionary[PlanSet, list[Tensor]] = weakref.WeakKeyDictionary()

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
        plans.norm_(collected.sources, grad_scale)
        total = torch.zeros((), dtype=torch.float64, device=plans.norm.device)
        for part, weights in zip(plans.parts, self._weights_of(plans), strict=True):
            total += (part.plan.launches.squares().to(torch.float64) * weights).sum()
        plans.norm.copy_(sharding.add_up(total).sqrt())
        return plans.norm

    def _weights_of(self, plans: PlanSet) -> list[Tensor]:
        """Of each part: what a unit counts, float64 [units]."""
        if plans not in self._weights:
            sharding = self.registry.sharding
            assert sharding is not None
            found = []
            for part in plans.parts:
                shares = torch.tensor([sharding.share_of(plans.variables[k].whole) for k in part.order])
                units = torch.from_numpy(unit_counts(part.plan.segments))
                found.append(shares.to(torch.float64).repeat_interleave(units).to(plans.norm.device))
            self._weights[plans] = found
        return self._weights[plans]
