"""What an exchange of gradients in buckets needs to know of a store's variables, until they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed.buckets import Bucket, cut_buckets
from ..variables.variable import Variable
from .plans import PlanSet


@dataclass(frozen=True)
class Cut:
    """The buckets of a store, until its variables change.

    Attributes:
        generation: Of the registry.
        variables, ids: All that train, in creation order.
        buckets: In the order in which they are sent.
        order: Where each of them is in the order of memory, from the end to the begin.
        params: Of them.
        puts: Positions of the variables that are put when a bucket is started; last, of those that lie in none.
        plans: Over those; None where there are none.
        within: The buckets in which each variable lies.
        is_void: Whether the buckets are of other variables, and none of these lies in any.
    """

    generation: int
    variables: list[Variable]
    params: list[Tensor]
    ids: list[int]
    buckets: list[Bucket]
    order: list[int]
    puts: list[list[int]]
    plans: list[PlanSet | None]
    within: list[list[int]]
    is_void: bool = False

    def facts(self) -> dict[str, str]:
        """What must be the same on all ranks, in words."""
        found = {}
        for variable, some in zip(self.variables, self.within, strict=True):
            places = [self.buckets[n] for n in some]
            words = [f"[{bucket.start}, {bucket.stop}) of {bucket.region} to rank {bucket.owner}" for bucket in places]
            found[variable.name] = f"in the buckets {', '.join(words)}" if words else "in no bucket"
        return found


def buckets_for(plans: PlanSet, dtype_of: Callable[[torch.dtype], torch.dtype], bucket_bytes: int) -> list[Bucket]:
    """The buckets of all variables of some plans, in reverse memory order.

    Args:
        dtype_of: From a region's dtype to that of its flat gradients.
        bucket_bytes: The most of a bucket.
    """
    layout = plans.registry.layout
    limits = {region.dtype: bucket_bytes // dtype_of(region.dtype).itemsize for region in layout.regions}
    return cut_buckets(layout, [v.index for v in plans.variables], limits)


def cut_for(plans: PlanSet, found: Sequence[Bucket], order: list[int]) -> Cut:
    """What is to be known of all variables of some plans.

    Args:
        found: Their buckets, in reverse memory order.
        order: Positions of these, in the order in which they are sent.
    """
    registry, variables = plans.registry, plans.variables
    buckets = [found[n] for n in order]
    within: list[list[int]] = [[] for _ in variables]
    for n, bucket in enumerate(buckets):
        for k in bucket.members:
            within[k].append(n)
    puts: list[list[int]] = [[] for _ in range(len(buckets) + 1)]
    for k, some in enumerate(within):
        puts[some[0] if some else -1].append(k)
    made = [PlanSet(registry, [variables[k] for k in some]) if some else None for some in puts]
    return Cut(plans.generation, variables, plans.params, plans.ids, buckets, order, puts, made, within)


def void_cut(generation: int, variables: Sequence[Variable], buckets: Sequence[Bucket]) -> Cut:
    """Buckets of other variables, in the order in which they are sent: none of these lies in any."""
    ids, params = [v.id for v in variables], [v.param for v in variables]
    nowhere: list[list[int]] = [[] for _ in range(len(buckets) + 1)]
    within: list[list[int]] = [[] for _ in variables]
    order, plans = list(range(len(buckets))), [None] * len(nowhere)
    return Cut(generation, list(variables), params, ids, list(buckets), order, nowhere, [*plans], within, is_void=True)
