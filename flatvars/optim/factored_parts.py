"""Adafactor's second moments where ranks have parts of variables: see `factored.py` for what is made of them.

Means of rows and columns are few numbers: every rank keeps those of whole variables, and of variables of fewer than two
axes all squares. A rank adds up the squares of what it has, in float64; one all_reduce makes them sums over whole
variables; and each divides its own part of the gradients.

Sent: 8 B for each row, each column, and each element of a variable of fewer than two axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..backend import Stored
from ..distributed.collectives import add_up
from ..distributed.shards import indices_of, is_divided
from ..gradients.plans import Part
from ..memory.boxes import boxes_of, strides_of
from ..memory.streams import normal_tensors
from ..variables.registry import Registry
from ..variables.variable import Variable
from .beside import Beside, EntryOf
from .directions import Directions
from .factored import Member, factored_shapes

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class HeldPart:
    """A rectangular part of a variable that lies here.

    Attributes:
        view: Its directions, [sizes], in place.
        index: Which indices of each axis of the whole they have.
    """

    view: Tensor
    index: Slices


class Kept(NamedTuple):
    """What is known of a variable.

    Attributes:
        means: What is kept, by name, in place.
        sums: Of squares, of the same shapes.
        pieces: What lies here.
    """

    means: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]
    pieces: Sequence[HeldPart]


class FactoredParts(Directions):
    """What Adafactor needs for one part of an optimizer's plans.

    Args:
        part: Its variables are this rank's share of a region, or shards.
        members: As of `factored.batches_of`, in the order of the part.
        registry: Of the store.

    Attributes:
        values: The directions, for the launch that writes gradients there.
    """

    def __init__(self, part: Part, members: Sequence[Member], registry: Registry) -> None:
        dtype = torch.float64 if part.region == torch.float64 else torch.float32
        variables, device, is_share = [member[0] for member in members], registry.device, registry.group is not None
        base, stop = registry.layout.share(part.region) if is_share else (0, max(v.span.stop for v in variables))
        super().__init__(part, stop - base, dtype, device, base, is_share)
        self.values = Stored(self.directions, places=self.places(self.directions) if is_share else None)
        self._registry, self._groups = registry, [member[1] for member in members]
        self._epsilons = [torch.finfo(registry.number_dtype(v)).eps for v in variables]
        shapes = [factored_shapes(tuple(v.whole.shape)) for v in variables]
        sizes = [sum(map(math.prod, some.values())) for some in shapes]
        starts = list(accumulate(sizes, initial=0))
        with normal_tensors():
            self._kept = torch.zeros(starts[-1], dtype=dtype, device=device)
            self._sums = torch.zeros(starts[-1], dtype=torch.float64, device=device)
            self._of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)
            self._rows = torch.tensor([member[3] for member in members], dtype=torch.int64).to(device)
            weights = [1.0 if registry.sharding is None else registry.sharding.share_of(v.whole) for v in variables]
            counts = [n for v, some in zip(variables, shapes, strict=True) for n in _counts(v, some)]
            lengths = [math.prod(shape) for some in shapes for shape in some.values()]
            by = torch.tensor(counts, dtype=torch.float64).repeat_interleave(torch.tensor(lengths)).to(device)
            self._factors = torch.tensor(weights, dtype=torch.float64).to(device)[self._of] / by
        self._all = [
            Kept(_cut(self._kept, start, some), _cut(self._sums, start, some), self._pieces(variable))
            for variable, start, some in zip(variables, starts, shapes, strict=False)
        ]
        self.beside = [Beside(v, kept.means) for v, kept in zip(variables, self._all, strict=True)]

    def _pieces(self, variable: Variable) -> list[HeldPart]:
        """What lies here of a variable."""
        spec, offset, whole = variable.spec, variable.span.offset, variable.whole
        if self._registry.group is not None:
            first, stop = (
                min(max(end - offset, 0), spec.numel) for end in (self.base, self.base + len(self.directions))
            )
            found = []
            for box in boxes_of(first, stop, spec.shape, spec.stride):
                at = offset + box.start - self.base
                view = self.directions.as_strided(box.sizes, strides_of(box, spec.stride), at)
                index = tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))
                found.append(HeldPart(view, index))
            return found
        if not spec.numel:
            return []
        view = self.directions.as_strided(spec.shape, spec.stride, offset)
        indices = indices_of(whole) if is_divided(whole) else list(map(np.arange, spec.shape))
        found = []
        for runs in product(*map(_runs, indices)):
            here, there = tuple(run[0] for run in runs), tuple(run[1] for run in runs)
            found.append(HeldPart(view[here], there))
        return found

    def bind(self, touched: Sequence[bool], entry_of: EntryOf) -> None:
        """Goes on from what `optimizer.state` holds of the variables that may have a gradient."""
        for hit, beside in zip(touched, self.beside, strict=True):
            if hit:
                beside.bind(entry_of)

    def divide(
        self,
        touched: Sequence[bool],
        groups: Sequence[Mapping[str, Any]],
        steps: Tensor,
        moves: Tensor | None,
        written: Tensor | None,
    ) -> None:
        """Makes directions of gradients; a collective.

        Args:
            touched: Not read: `written` says it.
            steps: Taken by each variable, at its row.
            moves: bool []: whether the step is not skipped; None where none is.
            written: bool [variables of the part]: which have a gradient.
        """
        assert written is not None
        self._sums.zero_()
        for _, sums, pieces in self._all:
            for piece in pieces:
                _add_squares(piece, sums)
        means = self._add_up(self._sums * self._factors).to(self._kept.dtype)
        decays = torch.tensor([float(groups[number]["beta2_decay"]) for number in self._groups], dtype=torch.float64)
        weights = (steps[self._rows].double().abs() + 1.0) ** decays.to(steps.device, non_blocking=True)
        moved = torch.lerp(self._kept, means, weights.to(means.dtype)[self._of])
        hits = written if moves is None else written & moves
        self._kept.copy_(torch.where(hits[self._of], moved, self._kept))
        for (kept, _, pieces), number, epsilon in zip(self._all, self._groups, self._epsilons, strict=True):
            given = groups[number]["eps"][0]
            eps = epsilon if given is None else float(given)
            for piece in pieces:
                piece.view.mul_(_estimate(kept, piece.index, eps).clamp_(min=eps * eps).rsqrt_())

    def _add_up(self, sums: Tensor) -> Tensor:
        """Over all ranks."""
        if self._registry.group is not None:
            add_up(sums, self._registry.group.process_group)
            return sums
        assert self._registry.sharding is not None
        return self._registry.sharding.add_up(sums)


def _runs(indices: npt.NDArray[np.int64]) -> list[tuple[slice, slice]]:
    """Runs of successive indices: where they are in the list, and which they are."""
    ends = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    return [(slice(a, b), slice(int(indices[a]), int(indices[b - 1]) + 1)) for a, b in pairwise(ends)]


def _counts(variable: Variable, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """How many squares each number that is kept is a mean of."""
    whole = tuple(variable.whole.shape)
    return [max(math.prod(whole) // max(math.prod(shape), 1), 1) for shape in shapes.values()]


def _cut(flat: Tensor, start: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Views of a flat tensor, one behind the other."""
    found = {}
    for name, shape in shapes.items():
        found[name] = flat[start : start + math.prod(shape)].view(shape)
        start += math.prod(shape)
    return found


def _add_squares(piece: HeldPart, sums: Mapping[str, Tensor]) -> None:
    squares = piece.view * piece.view
    if "variance" in sums:
        sums["variance"][piece.index] += squares
        return
    *others, rows, columns = piece.index
    sums["row_var"][(*others, rows)] += squares.sum(-1, keepdim=True, dtype=torch.float64)
    sums["col_var"][(*others, slice(None), columns)] += squares.sum(-2, keepdim=True, dtype=torch.float64)


def _estimate(kept: Mapping[str, Tensor], index: Slices, eps: float) -> Tensor:
    """Of the squares, at these indices; memory of its own."""
    if "variance" in kept:
        return kept["variance"][index].clone()
    *others, rows, columns = index
    row = kept["row_var"][tuple(others)]
    part = kept["row_var"][(*others, rows)] / row.mean(dim=-2, keepdim=True).clamp_(min=eps)
    return part * kept["col_var"][(*others, slice(None), columns)]
