"""NorMuon's second moment of every row (Li et al. 2025, arXiv 2510.05491; github.com/zichongli5/NorMuon).

    q = mean of O^2 over a row          V <- lerp(V, q, 1 - beta2)
    O <- O / (sqrt(V) + 1e-8), and then times a number that leaves its norm what it was

O is an orthogonal direction, a row of it what makes one output; V begins as 0 and is not corrected. 1e-8 is that of
microsoft/dion; the authors' is 1e-10. The new norm follows from q and V: rows are read once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..distributed.collectives import add_up
from ..distributed.owners import Owners
from ..memory.batches import Batch
from ..memory.streams import normal_tensors
from ..variables.variable import Variable
from .beside import Beside, EntryOf

SECOND_MOMENT = "second_momentum_buffer"
EPS = 1e-8


@dataclass(frozen=True)
class Outputs:
    """The outputs of a matrix: its rows, or the columns of one that is stored [in, out].

    Attributes:
        axis: 0 for rows, 1 for columns.
        group: Number of the param group, whose `beta2` it is.
    """

    axis: int
    group: int

    def kept_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the second moment of a variable: one number for each output."""
        return (shape[0], *(1 for _ in shape[1:])) if self.axis == 0 else (1, *shape[1:])


@dataclass(frozen=True)
class MomentPlaces:
    """Where the second moments of a batch lie.

    Attributes:
        outputs: Of its matrices.
        kept: int64 [matrices, outputs]: of each output, in `RowMoments.kept`.
        members: int64 [matrices]: place of each matrix's variable in the part.
    """

    outputs: Outputs
    kept: Tensor
    members: Tensor


class RowMoments:
    """Second moments of the matrices of one part of an optimizer's plans.

    Args:
        variables: In the order of the part.
        outputs: Of each.

    Attributes:
        kept: [outputs of all], in the order of the part: of whole matrices, on every rank that has a part of one.
    """

    def __init__(
        self, variables: Sequence[Variable], outputs: Sequence[Outputs], dtype: torch.dtype, device: torch.device
    ) -> None:
        shapes = [one.kept_shape(v.whole.shape) for v, one in zip(variables, outputs, strict=True)]
        sizes = [math.prod(shape) for shape in shapes]
        self._starts = list(accumulate(sizes, initial=0))
        self._mine: Tensor | None = None
        with normal_tensors():
            self.kept = torch.zeros(sum(sizes), dtype=dtype, device=device)
        pieces = [piece.view(shape) for piece, shape in zip(torch.split(self.kept, sizes), shapes, strict=True)]
        self.beside = [Beside(v, {SECOND_MOMENT: piece}) for v, piece in zip(variables, pieces, strict=True)]

    def bind(self, touched: Iterable[bool], entry_of: EntryOf) -> None:
        """Goes on from what `optimizer.state` holds of the variables that have a gradient."""
        for hit, beside in zip(touched, self.beside, strict=True):
            if hit:
                beside.bind(entry_of)

    def place(self, batch: Batch, outputs: Outputs, begins: Mapping[int, tuple[int, int]]) -> MomentPlaces:
        """Where those of a batch lie; all its matrices have such outputs.

        Args:
            begins: Of each of its members: place of the variable in the part, and where it begins.
        """
        rows, members = [], []
        for number, member in enumerate(batch.members):
            place, begin = begins[member]
            within = batch.offset + number * batch.distance - begin
            rows.append(self._starts[place] + within // max(batch.strides[outputs.axis], 1))
            members.append(place)
        device, count = self.kept.device, batch.shape[outputs.axis]
        with normal_tensors():
            first = torch.tensor(rows, dtype=torch.int64).to(device)
            kept = first[:, None] + torch.arange(count, dtype=torch.int64, device=device)
            return MomentPlaces(outputs, kept, torch.tensor(members, dtype=torch.int64).to(device))

    @torch.no_grad()
    def share(self, owners: Owners) -> None:
        """Makes them what the rank has that worked on each matrix, on all ranks: a collective."""
        if self._mine is None:
            sizes = torch.tensor([b - a for a, b in pairwise(self._starts)], dtype=torch.int64)
            worked = torch.tensor([worker == owners.rank for worker in owners.workers], dtype=torch.bool)
            self._mine = worked.repeat_interleave(sizes).to(self.kept.device)
        shared = torch.where(self._mine, self.kept, 0.0)
        add_up(shared, owners.group)
        self.kept.copy_(shared)

    def normalize_(self, matrices: Tensor, at: MomentPlaces, weight: float, factor: float, hits: Tensor | None) -> None:
        """Moves second moments, and divides directions by their roots.

        Args:
            matrices: bfloat16 [count, rows, columns]; multiplied by `factor` as well.
            weight: 1 - beta2.
            hits: bool [count] or []: whose moments move; all if None.
        """
        dim = 2 - at.outputs.axis
        squares = torch.linalg.vector_norm(matrices, dim=dim, dtype=self.kept.dtype).square_()
        squares.div_(matrices.shape[dim])
        before = self.kept[at.kept]
        moved = torch.lerp(before, squares, weight)
        if hits is not None:
            moved = torch.where(hits.view(-1, 1), moved, before)
        self.kept[at.kept] = moved
        by = moved.sqrt_().add_(EPS).reciprocal_()
        norm, changed = squares.sum(dim=1, keepdim=True), (squares * by * by).sum(dim=1, keepdim=True)
        # A matrix of zeros stays one.
        by.mul_(norm.div_(changed.clamp_(min=torch.finfo(by.dtype).tiny)).sqrt_().mul_(factor))
        matrices.mul_(by.unsqueeze(dim))


WeightOf = Callable[[Outputs], float]
"""1 - beta2, as the param groups say it now."""
