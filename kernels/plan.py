"""The plan: the host side of every launch over some variables of one region, whichever compiler made the kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .addresses import AddressTable, Sources, is_capturing
from .errors import check_order
from .formats import Stored, as_stored
from .hyper import Check, HyperTable, anything
from .launches import Again, Launches, NormSlot, StepInputs
from .rules import Rule

Stage = Literal["both", "measure", "move"]
"""Which launches of a step."""

# Plans whose launches were captured. A replay reads their tables and scratch, and nobody can tell when the last graph
# is gone: they are kept, though the optimizer makes others, 50 B for every 2,048 elements and what is masked.
_CAPTURED: set[Plan] = set()


class Plan:
    """Address table and hyper-parameters of some variables of one region.

    Args:
        launches: The kernels, over the tables of these variables.
        norm: float32 [] (float64) that every norm of this region's store or optimizer is written to.
        sums: float64 [regions] shared by the plans of one norm.
        slot: Position of this region among them; launches of one norm run in slot order.

    Attributes:
        hyper: The numbers of the param groups.
    """

    def __init__(self, launches: Launches, norm: Tensor, sums: Tensor, slot: int) -> None:
        self.launches = launches
        self.segments, self.device = launches.tables.segments, launches.tables.device
        self.out = NormSlot(norm, sums, slot)
        self.addresses = AddressTable(self.segments, self.device)
        self.hyper = HyperTable(self.segments.compute_dtype, self.device)
        self._last_norm: tuple[tuple[Any, ...], Again] | None = None  # what its launch was given, beside the norm

    def companion(self) -> Plan:
        """Another plan of the same variables, by the same kernels and scratch, with addresses and numbers of its own.

        For a launch that follows one of this plan's, and reads something else in the place of gradients.
        """
        return Plan(self.launches, self.out.norm, self.out.sums, self.out.slot)

    def write_norm_to(self, norm: Tensor) -> None:
        """From the next launch on, norms go to this tensor, like the one before."""
        self.out = NormSlot(norm, self.out.sums, self.out.slot)

    # Which gradients a launch reads -------------------------------------------------------------------------------

    def scattered(self, grads: Sequence[Tensor | None]) -> Sources:
        """Gradients wherever they lie; None leaves its variable untouched."""
        return self.addresses.scattered(grads)

    def gathered(self, stream: Tensor, touched: Sequence[bool]) -> Sources:
        """Gradients in the flat stream, of the variables that are touched."""
        return self.addresses.gathered(stream, touched)

    def viewed(self, stream: Tensor, told: Sequence[bool] | None = None) -> Sources:
        """Every variable as a view of the flat stream; `norm_` finds out which were written, and must run next.

        Args:
            told: Which variables have a gradient; read for those without elements alone, of which no launch can tell.
        """
        return self.addresses.viewed(stream, told)

    def written(self, sources: Sources) -> Tensor:
        """Which variables have a gradient, bool [variables] on the device, without a synchronization."""
        return self.launches.written() if sources.viewed else sources.table[:, 0] != 0

    # Launches -----------------------------------------------------------------------------------------------------

    def norm_(self, sources: Sources, grad_scale: Tensor | None = None) -> None:
        """Writes the L2 norm of the gradients, divided by `grad_scale` if given, to `norm`. One launch."""
        self._note_capture()
        norm = self.out.norm
        given = sources.table.data_ptr(), sources.dtype, sources.viewed, norm.dtype
        if grad_scale is None and self._last_norm is not None and self._last_norm[0] == given:
            self._last_norm[1](norm)
            return
        again = self.launches.accumulate(sources, None, self.out, grad_scale=grad_scale)
        self._last_norm = (given, again) if grad_scale is None else None

    def accumulate_(self, grads: Sequence[Tensor | None] | Sources, stream: Tensor, scale: float, add: bool) -> None:
        """Gathers into the flat stream and writes the norm of what it then holds to `norm`. One launch."""
        self._note_capture()
        sources = grads if isinstance(grads, Sources) else self.scattered(grads)
        self.launches.accumulate(sources, stream, self.out, scale=scale, add=add)

    def variable_norms(self, values: Tensor | None, sources: Sources | None, order: float) -> Tensor:
        """Norms of every variable, [variables, 2]: of its value and of its gradient; 0 for what is not given."""
        check_order(order)
        out = torch.empty((len(self.segments), 2), dtype=self.segments.compute_dtype, device=self.device)
        self.launches.norms(values, sources, order, out)
        return out

    def step_(
        self,
        sources: Sources,
        rule: Rule,
        values: Tensor | Stored,
        states: Sequence[Tensor | Stored],
        groups: Sequence[Mapping[str, Any]],
        *,
        steps: Tensor,
        base: int = 0,
        norm: Tensor,
        max_norm: float | None,
        skip: bool,
        skipped: Tensor,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        own: Sequence[Tensor] = (),
        keys: Tensor | None = None,
        unit: int = 0,
        observed: Tensor | None = None,
        clear: bool = False,
        check: Check = anything,
        stage: Stage = "both",
    ) -> Again:
        """Updates values and states of all variables that have a source. One launch; two of rules with statistics.

        Args:
            values, states: Streams; a tensor is stored as its dtype says.
            groups: Param groups, in the order of the segments' group numbers.
            steps: float32 [slots] on the device: steps taken by each variable, at the segments' slots; counted up.
            base: Element of the region at which the state streams begin, a multiple of 128.
            norm: [] on the device, of all gradients of the step; read only to clip or skip.
            max_norm: Multiply gradients by the coefficient that clips `norm` to this; None for none.
            skip: Leave everything as it is when `norm` is not finite, and count it in `skipped`.
            grad_scale, found_inf: A GradScaler's, float32 [] on the device: divide gradients by the one, leave
                everything as it is when the other is not 0.
            own: float32 [slots] each: the scalars that the rule's variables keep, in the rule's order.
            keys: int64 [1 + slots] on the device: a seed, then the key of each variable's name. With it, the states
                that the rule says are rounded at random in bfloat16; without, to nearest.
            unit: Unit of the region at which the scales of states begin.
            observed: float64 [slots, sums] on the device: written with sums over every variable that is stepped.
            clear: Write -0.0 over the gradients of viewed sources, in a step that is skipped, too.
            check: Called with every group that may have changed since the last launch; what it raises comes first.
            stage: "measure" for the launch of the statistics alone, "move" for the step after it.

        Returns:
            What makes these launches once more, as long as the `version` of `hyper` is the same.
        """
        self._note_capture()
        inputs = StepInputs(
            self.upload_hyper(rule, groups, max_norm, check),
            steps,
            base,
            norm,
            max_norm is not None,
            skip,
            skipped,
            self.out.slot == 0,
            grad_scale,
            found_inf,
            tuple(own),
            keys,
            unit,
            observed,
            clear,
        )
        kept, held = as_stored(values), [as_stored(state) for state in states]
        made: list[Again] = []
        if rule.statistics is not None and stage != "move":
            made.append(self.launches.statistics(sources, rule, kept, held, inputs._replace(clear=False)))
        if stage != "measure":
            made.append(self.launches.step(sources, rule, kept, held, inputs))
        return made[0] if len(made) == 1 and not self.addresses.table.is_cuda else partial(self._again, made)

    def _again(self, made: Sequence[Again], norm: Tensor) -> None:
        self._note_capture()
        for again in made:
            again(norm)

    def sums(self, rule: Rule, sources: Sources) -> Tensor:
        """What the statistics of a rule have found, float64 [variables, sums] on the device; 0 of what is untouched."""
        return torch.where(self.written(sources)[:, None], self.launches.sums(rule), 0.0)

    def _note_capture(self) -> None:
        if is_capturing(self.addresses.table):
            _CAPTURED.add(self)

    # Numbers on the device ----------------------------------------------------------------------------------------

    def upload_hyper(
        self, rule: Rule, groups: Sequence[Mapping[str, Any]], max_norm: float | None, check: Check = anything
    ) -> Tensor:
        """The hyper-parameter table, [groups, 1 + columns of the rule], after what changed was copied over."""
        return self.hyper.upload(rule, groups, max_norm, check)
