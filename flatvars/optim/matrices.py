"""The step of matrices: a launch that writes directions, products over batches of them, a launch that applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backend import MUON_APPLY, MUON_DIRECTION, Sources
from ..gradients.plans import Part
from ..memory.batches import Batch, Block
from ..memory.layout import Layout
from ..memory.streams import Stream, normal_tensors
from .newton_schulz import NewtonSchulz, orthogonalize_, scratch_numel

# Bytes of matrices in one product. On a CPU they should stay in its caches: two cores of a Xeon with 2 MB of second
# level and a shared third ran 768 x 3072 fastest by twos and threes.
PIECE = {"cpu": 16 << 20, "cuda": 64 << 20}


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
class Work:
    """A batch, and what is done with it."""

    batch: Batch
    how: NewtonSchulz
    factor: float


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
        self._work: list[Work] = []

    def work(self, touched: Sequence[bool]) -> list[Work]:
        """The batches of the variables that have a gradient."""
        touched = list(touched)
        if touched != self._touched:
            self._touched, self._work = touched, self._find(touched)
        return self._work

    def _find(self, touched: list[bool]) -> list[Work]:
        kinds: dict[tuple[NewtonSchulz, float], dict[int, list[Block]]] = {}
        for index, shape, hit in zip(self.indices, self.shapes, touched, strict=True):
            for block, factor in zip(shape.blocks, shape.factors, strict=True) if hit else ():
                kinds.setdefault((shape.how, factor), {}).setdefault(index, []).append(block)
        most = PIECE["cpu" if self.directions.device.type == "cpu" else "cuda"] // self.directions.element_size()
        return [
            Work(piece, how, factor)
            for (how, factor), blocks in kinds.items()
            for batch in self.layout.batches(blocks, list(blocks.values()))
            for piece in batch.pieces(most // (batch.shape[0] * batch.shape[1]))
        ]

    def launch(
        self,
        source: Sources,
        momentum: Stream,
        values: Tensor,
        groups: Sequence[Mapping[str, Any]],
        frozen: Stream | None,
        common: Mapping[str, Any],
        scaling: Mapping[str, Tensor | None],
    ) -> None:
        """One step.

        Args:
            groups: Numbers of every row, `scale` among them.
            frozen: Mask of the region, if elements are masked: their directions are 0, and value and momentum stay.
            common: Arguments of both launches: norm, skip; and of the first: steps, max_norm, skipped.
            scaling: A GradScaler's.
        """
        self.part.plan.step_(source, MUON_DIRECTION, momentum.buffer, [self.directions], groups, **common, **scaling)
        if frozen is not None:
            self.directions.masked_fill_(frozen.buffer[: len(self.directions)].view(torch.bool), 0.0)
        work = self.work(source.touched)
        if work:
            need = max(scratch_numel(one.batch.count, one.batch.shape) for one in work)
            scratch = torch.empty(need, dtype=torch.bfloat16, device=self.directions.device)
            for one in work:
                matrices = one.batch.view(self.directions)
                orthogonalize_(matrices, one.how, scratch)
                if one.factor != 1.0:
                    matrices.mul_(one.factor)
        steps = common["steps"]
        if len(self._steps) != len(steps):
            self._steps = torch.zeros_like(steps)
        read = self.apply.viewed if source.viewed else self.apply.gathered
        # Counts and skips were counted by the first launch.
        again = {**common, "steps": self._steps, "skipped": self._skipped, "max_norm": None}
        found_inf = scaling["found_inf"]
        orthogonal = read(self.directions, source.touched)
        self.apply.step_(orthogonal, MUON_APPLY, values, [], groups, **again, found_inf=found_inf)

    def upload(self, groups: Sequence[Mapping[str, Any]], max_norm: float | None) -> None:
        """Copies changed numbers to the device."""
        self.part.plan.upload_hyper(MUON_DIRECTION, groups, max_norm)
        self.apply.upload_hyper(MUON_APPLY, groups, None)
