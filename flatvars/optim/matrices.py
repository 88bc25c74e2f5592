"""The step of matrices: a launch that writes directions, products over batches of them, a launch that applies them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backend import CODE_OF, MUON_DIRECTION, Rule, Sources, Stored
from ..distributed.owners import Owners
from ..gradients.plans import Part
from ..memory.batches import Batch, Block, find_batches
from ..memory.layout import Layout
from ..memory.streams import Stream, normal_tensors
from .newton_schulz import NewtonSchulz, orthogonalize_, scratch_numel

# Bytes of matrices that are worked on together, and of the room that they need beside them. On a CPU they should stay
# in its caches; on a GPU all of a GPT-2 small are one round of launches.
ROUND = {"cpu": 16 << 20, "cuda": 192 << 20}


@dataclass(frozen=True)
class MatrixShape:
    """What the products need to know of a variable.

    Attributes:
        blocks: The matrices in it.
        factors: Of each: what its direction is multiplied by when it is orthogonal, beside the variable's own scale.
        how: Of the iterations.
    """

    blocks: tuple[Block, ...]
    factors: tuple[float, ...]
    how: NewtonSchulz


@dataclass(frozen=True)
class Round:
    """Batches that are made orthogonal together: the smaller sides of their matrices are equal.

    Attributes:
        factors: What the matrices of each are multiplied by then.
    """

    how: NewtonSchulz
    batches: tuple[Batch, ...]
    factors: tuple[float, ...]

    @property
    def scratch_numel(self) -> int:
        return sum(scratch_numel(batch.count, batch.shape) for batch in self.batches)


class MatrixStep:
    """The matrices of one part of an optimizer's plans.

    Args:
        part: Its plan's variables are matrices.
        indices: Index of the span of each, in the part's order.
        shapes: Of each.
        layout: Of their store, until it carves anew.
        momentum: Their stream, which begins where the region does, or where this rank's share does.
        owners: Who makes which of them orthogonal, where ranks have parts.
    """

    def __init__(
        self,
        part: Part,
        indices: Sequence[int],
        shapes: Sequence[MatrixShape],
        layout: Layout,
        momentum: Stream,
        owners: Owners | None = None,
    ) -> None:
        self.part, self.indices, self.shapes, self.layout = part, list(indices), list(shapes), layout
        self.apply = part.plan.companion()
        self.base, self.owners = momentum.base, owners
        device = momentum.buffer.device
        with normal_tensors():
            self.directions = torch.zeros(len(momentum.buffer), dtype=torch.bfloat16, device=device)
            self._skipped = torch.zeros((), dtype=torch.int32, device=device)
        self._steps = torch.zeros(0, device=device)
        self._touched: list[bool] | None = None
        self._rounds: list[Round] = []
        self._owned = [] if owners is None else self._find(owners.owned, self._batches_of_owned)
        # A share begins anywhere in a variable: what launches read and write is told where each would begin.
        self._is_share = momentum.divided
        self._momentum = momentum.stored
        if self._is_share:
            self._momentum = self._momentum._replace(places=self._places(momentum.buffer))
            self._directed = torch.stack(
                [self._places(self.directions), torch.full((len(part.order),), CODE_OF[torch.bfloat16], device=device)],
                dim=1,
            )

    def _places(self, buffer: Tensor) -> Tensor:
        """int64 [variables] on the device: where each would begin, of a buffer over the range of the momentum."""
        size, starts = buffer.element_size(), self.part.plan.segments.starts
        places = [buffer.data_ptr() + size * (start - self.base) for start in starts]
        return torch.tensor(places, dtype=torch.int64).to(buffer.device)

    def rounds(self, touched: Sequence[bool]) -> list[Round]:
        """All that is to do in place: for the variables that have a gradient; or for those that lie on this rank."""
        touched = list(touched)
        if touched != self._touched:
            chosen = [k for k, hit in enumerate(touched) if hit] if self.owners is None else self.owners.here
            self._touched, self._rounds = touched, self._find(chosen, self._batches_in_place)
        return self._rounds

    def _find(self, chosen: Sequence[int], batches_of: Callable[[dict[int, list[Block]]], list[Batch]]) -> list[Round]:
        """What is to do for some of the variables.

        Args:
            batches_of: The batches that blocks make, by the position of their variable.
        """
        kinds: dict[tuple[NewtonSchulz, float], dict[int, list[Block]]] = {}
        for k in chosen:
            shape = self.shapes[k]
            for block, factor in zip(shape.blocks, shape.factors, strict=True):
                kinds.setdefault((shape.how, factor), {}).setdefault(k, []).append(block)
        most = ROUND["cpu" if self.directions.device.type == "cpu" else "cuda"] // self.directions.element_size()
        alike: dict[tuple[NewtonSchulz, int], list[tuple[Batch, float]]] = {}
        for (how, factor), blocks in kinds.items():
            for batch in batches_of(blocks):
                pieces = batch.pieces(most // (batch.shape[0] * batch.shape[1]))
                alike.setdefault((how, min(batch.shape)), []).extend((piece, factor) for piece in pieces)
        return [round_ for (how, _), pairs in alike.items() for round_ in _rounds(how, pairs, most)]

    def _batches_in_place(self, blocks: dict[int, list[Block]]) -> list[Batch]:
        return self.layout.batches([self.indices[k] for k in blocks], list(blocks.values()))

    def _batches_of_owned(self, blocks: dict[int, list[Block]]) -> list[Batch]:
        assert self.owners is not None
        starts = dict(zip(self.owners.owned, self.owners.starts, strict=True))
        matrices = [(torch.bfloat16, starts[k], k, block) for k, some in blocks.items() for block in some]
        return find_batches(matrices, {torch.bfloat16: 0})

    def launch(
        self,
        source: Sources,
        momentum: Stream,
        values: Stored,
        groups: Sequence[Mapping[str, Any]],
        frozen: Stream | None,
        common: Mapping[str, Any],
        scaling: Mapping[str, Tensor | None],
        last: Mapping[str, Any],
        observed: tuple[Tensor | None, Tensor | None],
    ) -> None:
        """One step.

        Args:
            groups: Numbers of every row, `scale` among them.
            frozen: Mask of the region, if elements are masked: their directions are 0, and value and momentum stay.
            common: Arguments of both launches: norm, skip; and of the first: max_norm, skipped.
            scaling: A GradScaler's.
            observed: Where each launch writes what it tells.
            last: Arguments of the second launch, which counts: its rule, states, steps, base, own and keys.
        """
        steps = last["steps"]
        if len(self._steps) != len(steps):
            self._steps = torch.zeros_like(steps)
        self.part.plan.step_(
            source,
            MUON_DIRECTION,
            self._momentum,
            [self.directions],
            groups,
            steps=self._steps,
            base=self.base,
            observed=observed[0],
            **common,
            **scaling,
        )
        if frozen is not None:
            masked = frozen.buffer[self.base :][: len(self.directions)]
            self.directions.masked_fill_(masked.view(torch.bool), 0.0)
        self._orthogonalize(self.rounds(source.touched), self.directions, self.base)
        if self.owners is not None and self.owners.is_needed:
            whole = self.directions.new_zeros(self.owners.numel)
            self.owners.collect(self.directions, whole)
            self._orthogonalize(self._owned, whole)
            self.owners.spread(whole, self.directions)
        # Skips were counted by the first launch.
        again = {**common, "skipped": self._skipped, "max_norm": None}
        self.apply.step_(
            self._orthogonal(source),
            values=values,
            groups=groups,
            **again,
            **last,
            observed=observed[1],
            found_inf=scaling["found_inf"],
        )

    def _orthogonal(self, source: Sources) -> Sources:
        """The directions, of the variables that have a gradient."""
        if not self._is_share:
            read = self.apply.viewed if source.viewed else self.apply.gathered
            return read(self.directions, source.touched)
        table = self._directed.clone()
        table[:, 0] *= source.table[:, 0] != 0
        return Sources(table, source.touched, torch.bfloat16)

    def _orthogonalize(self, rounds: Sequence[Round], buffer: Tensor, base: int = 0) -> None:
        """Works on a buffer that begins at element `base` of where the batches lie."""
        if not rounds:
            return
        need = max(one.scratch_numel for one in rounds)
        scratch = torch.empty(need, dtype=torch.bfloat16, device=self.directions.device)
        for one in rounds:
            batches = [batch.view(buffer, base) for batch in one.batches]
            orthogonalize_(batches, one.how, scratch)
            for matrices, factor in zip(batches, one.factors, strict=True):
                if factor != 1.0:
                    matrices.mul_(factor)

    def upload(self, rule: Rule, groups: Sequence[Mapping[str, Any]], max_norm: float | None) -> None:
        """Copies changed numbers to the device.

        Args:
            rule: Of the second launch.
        """
        self.part.plan.upload_hyper(MUON_DIRECTION, groups, max_norm)
        self.apply.upload_hyper(rule, groups, None)


def _rounds(how: NewtonSchulz, pairs: Sequence[tuple[Batch, float]], most: int) -> list[Round]:
    """Batches with their factors, in rounds of at most `most` elements, or of one batch."""
    found: list[list[tuple[Batch, float]]] = []
    filled = 0
    for pair in pairs:
        if not found or filled + pair[0].numel > most:
            found.append([])
            filled = 0
        found[-1].append(pair)
        filled += pair[0].numel
    return [Round(how, tuple(b for b, _ in some), tuple(f for _, f in some)) for some in found]
