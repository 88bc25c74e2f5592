"""The step of matrices: a launch that writes directions, products over batches of them, a launch that applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backend import MUON_DIRECTION, Rule, Sources, Stored
from ..gradients.plans import Part
from ..memory.batches import Batch, Block
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
        momentum: Their stream, which begins where the region does.
    """

    def __init__(
        self, part: Part, indices: Sequence[int], shapes: Sequence[MatrixShape], layout: Layout, momentum: Stream
    ) -> None:
        self.part, self.indices, self.shapes, self.layout = part, list(indices), list(shapes), layout
        self.apply = part.plan.companion()
        device = momentum.buffer.device
        with normal_tensors():
            self.directions = torch.zeros(len(momentum.buffer), dtype=torch.bfloat16, device=device)
            self._skipped = torch.zeros((), dtype=torch.int32, device=device)
        self._steps = torch.zeros(0, device=device)
        self._touched: list[bool] | None = None
        self._rounds: list[Round] = []

    def rounds(self, touched: Sequence[bool]) -> list[Round]:
        """All that is to do for the variables that have a gradient."""
        touched = list(touched)
        if touched != self._touched:
            self._touched, self._rounds = touched, self._find(touched)
        return self._rounds

    def _find(self, touched: list[bool]) -> list[Round]:
        kinds: dict[tuple[NewtonSchulz, float], dict[int, list[Block]]] = {}
        for index, shape, hit in zip(self.indices, self.shapes, touched, strict=True):
            for block, factor in zip(shape.blocks, shape.factors, strict=True) if hit else ():
                kinds.setdefault((shape.how, factor), {}).setdefault(index, []).append(block)
        most = ROUND["cpu" if self.directions.device.type == "cpu" else "cuda"] // self.directions.element_size()
        alike: dict[tuple[NewtonSchulz, int], list[tuple[Batch, float]]] = {}
        for (how, factor), blocks in kinds.items():
            for batch in self.layout.batches(blocks, list(blocks.values())):
                pieces = batch.pieces(most // (batch.shape[0] * batch.shape[1]))
                alike.setdefault((how, min(batch.shape)), []).extend((piece, factor) for piece in pieces)
        return [round_ for (how, _), pairs in alike.items() for round_ in _rounds(how, pairs, most)]

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
            momentum.buffer,
            [self.directions],
            groups,
            steps=self._steps,
            observed=observed[0],
            **common,
            **scaling,
        )
        if frozen is not None:
            self.directions.masked_fill_(frozen.buffer[: len(self.directions)].view(torch.bool), 0.0)
        self._orthogonalize(self.rounds(source.touched))
        read = self.apply.viewed if source.viewed else self.apply.gathered
        # Skips were counted by the first launch.
        again = {**common, "skipped": self._skipped, "max_norm": None}
        orthogonal = read(self.directions, source.touched)
        self.apply.step_(
            orthogonal,
            values=values,
            groups=groups,
            **again,
            **last,
            observed=observed[1],
            found_inf=scaling["found_inf"],
        )

    def _orthogonalize(self, rounds: Sequence[Round]) -> None:
        if not rounds:
            return
        need = max(one.scratch_numel for one in rounds)
        scratch = torch.empty(need, dtype=torch.bfloat16, device=self.directions.device)
        for one in rounds:
            batches = [batch.view(self.directions) for batch in one.batches]
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
