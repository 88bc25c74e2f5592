"""Steps of two launches, with operators between them: one launch writes directions, the other moves values by them.

The first has all that is of gradients: where they lie, clipping, scaling and skips, which it counts. The second counts
steps, reads directions in the gradients' place, and keeps what belongs to values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend import CODE_OF, Rule, Sources, Stage, Stored
from ..gradients.plans import Part
from ..memory.streams import Stream, normal_tensors


class Directions:
    """Directions of one part of an optimizer's plans.

    Args:
        part: The variables.
        numel: Elements from `base` up to the last that a variable has.
        dtype: Of the directions.
        base: Element of the region at which they begin.
        is_share: Whether they are of this rank's share of the variables, which begins anywhere in one.

    Attributes:
        directions: Stream that begins at `base`.
        apply: The plan of the second launch.
    """

    def __init__(
        self, part: Part, numel: int, dtype: torch.dtype, device: torch.device, base: int = 0, is_share: bool = False
    ) -> None:
        self.part, self.apply, self.base = part, part.plan.companion(), base
        with normal_tensors():
            self.directions = torch.zeros(numel, dtype=dtype, device=device)
            self._skipped = torch.zeros((), dtype=torch.int32, device=device)  # the first launch has counted them
        self._counts = torch.zeros(0, device=device)
        self._table: Tensor | None = None
        if is_share:
            places = self.places(self.directions)
            self._table = torch.stack([places, torch.full_like(places, CODE_OF[dtype])], dim=1)

    def places(self, buffer: Tensor) -> Tensor:
        """int64 [variables] on the device: where each would begin, of a buffer that begins at `base`."""
        size, starts = buffer.element_size(), self.part.plan.segments.starts
        places = [buffer.data_ptr() + size * (start - self.base) for start in starts]
        return torch.tensor(places, dtype=torch.int64).to(buffer.device)

    def write(
        self,
        source: Sources,
        rule: Rule,
        values: Tensor | Stored,
        states: Sequence[Tensor],
        arguments: Mapping[str, Any],
        observed: Tensor | None,
        frozen: Stream | None,
    ) -> None:
        """The first launch.

        Args:
            rule, values, states: What it makes; the directions are among them.
            arguments: Of the step, as of `Plan.step_`.
            observed: Where it writes what it tells.
            frozen: Mask of the region, if elements are masked: their directions are 0.
        """
        steps = arguments["steps"]
        if len(self._counts) != len(steps):
            self._counts = torch.zeros_like(steps)  # nobody reads them
        others = {"base": self.base, "unit": 0, "own": (), "keys": None, "observed": observed, "steps": self._counts}
        made = {"rule": rule, "values": values, "states": states}
        self.part.plan.step_(source, **{**arguments, **others, **made})
        if frozen is not None:
            masked = frozen.buffer[self.base :][: len(self.directions)]
            self.directions.masked_fill_(masked.view(torch.bool), 0.0)

    def move(self, source: Sources, arguments: Mapping[str, Any], stage: Stage = "both") -> None:
        """The second launch; of a rule with statistics, that of those before it, or both."""
        again = {"max_norm": None, "grad_scale": None, "skipped": self._skipped, "clear": False, "stage": stage}
        self.apply.step_(self._sources(source), **{**arguments, **again})

    def _sources(self, source: Sources) -> Sources:
        """The directions, of the variables that have a gradient."""
        if self._table is not None:
            table = self._table.clone()
            table[:, 0] *= source.table[:, 0] != 0
            return Sources(table, source.touched, self.directions.dtype)
        read = self.apply.viewed if source.viewed else self.apply.gathered
        found: Sources = read(self.directions, source.touched)
        return found

    def upload(self, before: Rule, rule: Rule, groups: Sequence[Mapping[str, Any]], **numbers: Any) -> None:
        """Copies changed numbers to the device.

        Args:
            before, rule: Of the first launch and of the second.
            numbers: `max_norm` and `check` of `Plan.upload_hyper`.
        """
        self.part.plan.upload_hyper(before, groups, **numbers)
        self.apply.upload_hyper(rule, groups, **{**numbers, "max_norm": None})
