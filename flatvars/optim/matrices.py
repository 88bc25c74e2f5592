"""What is between the two launches of a step of matrices: products over batches of directions, in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed.owners import Owners
from ..gradients.plans import Part
from ..memory.batches import Batch, Block, find_batches
from ..memory.layout import Layout
from ..memory.streams import Stream
from ..variables.variable import Variable
from .directions import Directions
from .newton_schulz import NewtonSchulz, orthogonalize_, scratch_numel
from .row_moments import MomentPlaces, Outputs, RowMoments, WeightOf

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
        outputs: Where directions are divided by roots of second moments of outputs.
    """

    blocks: tuple[Block, ...]
    factors: tuple[float, ...]
    how: NewtonSchulz
    outputs: Outputs | None = None


@dataclass(frozen=True)
class Finish:
    """What a batch becomes when it is orthogonal.

    Attributes:
        factor: What its matrices are multiplied by.
        placed: Its second moments, if outputs have some.
    """

    factor: float
    placed: MomentPlaces | None


@dataclass(frozen=True)
class Round:
    """Batches that are made orthogonal together: the smaller sides of their matrices are equal.

    Attributes:
        finishes: Of each batch.
    """

    how: NewtonSchulz
    batches: tuple[Batch, ...]
    finishes: tuple[Finish, ...]

    @property
    def scratch_numel(self) -> int:
        return sum(scratch_numel(batch.count, batch.shape) for batch in self.batches)


class MatrixStep(Directions):
    """The matrices of one part of an optimizer's plans.

    Args:
        part: Its plan's variables are matrices.
        variables: In the part's order.
        shapes: Of each.
        layout: Of their store, until it carves anew.
        momentum: Their stream, which begins where the region does, or where this rank's share does.
        owners: Who makes which of them orthogonal, where ranks have parts.

    Attributes:
        momentum: For launches.
        moments: Of outputs, where all shapes have some.
    """

    def __init__(
        self,
        part: Part,
        variables: Sequence[Variable],
        shapes: Sequence[MatrixShape],
        layout: Layout,
        momentum: Stream,
        owners: Owners | None = None,
    ) -> None:
        device = momentum.buffer.device
        super().__init__(part, len(momentum.buffer), torch.bfloat16, device, momentum.base, momentum.divided)
        self.momentum = momentum.stored
        if momentum.divided:
            self.momentum = self.momentum._replace(places=self.places(momentum.buffer))
        self.owners = owners
        self.indices, self.shapes, self.layout = [v.index for v in variables], list(shapes), layout
        outputs = [shape.outputs for shape in shapes if shape.outputs is not None]
        dtype = torch.float64 if part.region == torch.float64 else torch.float32
        self.moments = RowMoments(variables, outputs, dtype, device) if outputs else None
        self._touched: list[bool] | None = None
        self._rounds: list[Round] = []
        self._begins = {v.index: (place, v.span.offset) for place, v in enumerate(variables)}
        self._owned = []
        if owners is not None:
            begins = {k: (k, start) for k, start in zip(owners.owned, owners.starts, strict=True)}
            self._owned = self._find(owners.owned, self._batches_of_owned, begins)

    def rounds(self, touched: Sequence[bool]) -> list[Round]:
        """All that is to do in place: for the variables that have a gradient; or for those that lie on this rank."""
        touched = list(touched)
        if touched != self._touched:
            chosen = [k for k, hit in enumerate(touched) if hit] if self.owners is None else self.owners.here
            self._touched, self._rounds = touched, self._find(chosen, self._batches_in_place, self._begins)
        return self._rounds

    def _find(
        self,
        chosen: Sequence[int],
        batches_of: Callable[[dict[int, list[Block]]], list[Batch]],
        begins: Mapping[int, tuple[int, int]],
    ) -> list[Round]:
        """What is to do for some of the variables.

        Args:
            batches_of: The batches that blocks make, by the position of their variable.
            begins: Of each member of these: its position, and where it begins.
        """
        kinds: dict[BatchKind, dict[int, list[Block]]] = {}
        for k in chosen:
            shape = self.shapes[k]
            for block, factor in zip(shape.blocks, shape.factors, strict=True):
                kinds.setdefault((shape.how, factor, shape.outputs), {}).setdefault(k, []).append(block)
        most = ROUND["cpu" if self.directions.device.type == "cpu" else "cuda"] // self.directions.element_size()
        alike: dict[tuple[NewtonSchulz, int], list[tuple[Batch, Finish]]] = {}
        for (how, factor, outputs), blocks in kinds.items():
            for batch in batches_of(blocks):
                pieces = batch.pieces(most // (batch.shape[0] * batch.shape[1]))
                pairs = [(piece, Finish(factor, self._placed(piece, outputs, begins))) for piece in pieces]
                alike.setdefault((how, min(batch.shape)), []).extend(pairs)
        return [round_ for (how, _), pairs in alike.items() for round_ in _rounds(how, pairs, most)]

    def _batches_in_place(self, blocks: dict[int, list[Block]]) -> list[Batch]:
        return self.layout.batches([self.indices[k] for k in blocks], list(blocks.values()))

    def _batches_of_owned(self, blocks: dict[int, list[Block]]) -> list[Batch]:
        assert self.owners is not None
        starts = dict(zip(self.owners.owned, self.owners.starts, strict=True))
        matrices = [(torch.bfloat16, starts[k], k, block) for k, some in blocks.items() for block in some]
        return find_batches(matrices, {torch.bfloat16: 0})

    def _placed(
        self, batch: Batch, outputs: Outputs | None, begins: Mapping[int, tuple[int, int]]
    ) -> MomentPlaces | None:
        return None if outputs is None or self.moments is None else self.moments.place(batch, outputs, begins)

    def orthogonalize(
        self, touched: Sequence[bool], weight_of: WeightOf, moves: Tensor | None, written: Tensor | None
    ) -> None:
        """Makes orthogonal directions of directions; a collective, where ranks have parts of matrices.

        Args:
            weight_of: Of second moments.
            moves: bool []: whether the step is not skipped; None where none is.
            written: bool [variables of the part]: which have a gradient, where the device alone knows.
        """
        self._orthogonalize(self.rounds(touched), self.directions, self.base, weight_of, moves, written)
        if self.owners is not None and self.owners.is_needed:
            whole = self.directions.new_zeros(self.owners.numel)
            self.owners.collect(self.directions, whole)
            self._orthogonalize(self._owned, whole, 0, weight_of, moves, written)
            self.owners.spread(whole, self.directions)
        if self.owners is not None and self.moments is not None:
            self.moments.share(self.owners)

    def _orthogonalize(
        self,
        rounds: Sequence[Round],
        buffer: Tensor,
        base: int,
        weight_of: WeightOf,
        moves: Tensor | None,
        written: Tensor | None,
    ) -> None:
        """Works on a buffer that begins at element `base` of where the batches lie."""
        if not rounds:
            return
        need = max(one.scratch_numel for one in rounds)
        scratch = torch.empty(need, dtype=torch.bfloat16, device=self.directions.device)
        for one in rounds:
            batches = [batch.view(buffer, base) for batch in one.batches]
            orthogonalize_(batches, one.how, scratch)
            for matrices, finish in zip(batches, one.finishes, strict=True):
                if finish.placed is not None and self.moments is not None:
                    hits = moves
                    if written is not None:
                        hits = written[finish.placed.members]
                        hits = hits if moves is None else hits & moves
                    weight = weight_of(finish.placed.outputs)
                    self.moments.normalize_(matrices, finish.placed, weight, finish.factor, hits)
                elif finish.factor != 1.0:
                    matrices.mul_(finish.factor)


BatchKind = tuple[NewtonSchulz, float, Outputs | None]


def _rounds(how: NewtonSchulz, pairs: Sequence[tuple[Batch, Finish]], most: int) -> list[Round]:
    """Batches with what they become, in rounds of at most `most` elements, or of one batch."""
    found: list[list[tuple[Batch, Finish]]] = []
    filled = 0
    for pair in pairs:
        if not found or filled + pair[0].numel > most:
            found.append([])
            filled = 0
        found[-1].append(pair)
        filled += pair[0].numel
    return [Round(how, tuple(b for b, _ in some), tuple(f for _, f in some)) for some in found]
