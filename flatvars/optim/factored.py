"""Second moments of matrices by the means of their rows and columns, over batches of variables where they lie.

    R <- lerp(R, mean of g^2 over a row, w), C <- lerp(C, mean over a column, w)        w = t^beta2_decay
    u = g / sqrt(max(R C / max(mean of R, eps1), eps1^2))

of the last two axes; a variable of fewer has V <- lerp(V, g^2, w) in the place of R C / mean. Variables of one shape at
equal distances are one batch, whose R, C and V are one tensor each; the entry of a variable in `optimizer.state` shows
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..gradients.plans import Part
from ..memory.streams import normal_tensors
from ..variables.variable import Variable
from .beside import Beside, EntryOf
from .directions import Directions

# Elements that are worked on together, so that what is made of them stays in the caches of a CPU.
AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 25}

Sizes = tuple[int, ...]
Member = tuple[Variable, int, int, int]
"""A variable, the number of its param group, its place in the part and its row of counts."""


def factored_shapes(shape: Sizes) -> dict[str, Sizes]:
    """Names and shapes of what is kept of a variable, as torch.optim.Adafactor has them."""
    if len(shape) < 2:
        return {"variance": shape}
    return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}


@dataclass
class Alike:
    """Variables of one shape, one memory order and one param group at equal distances.

    Attributes:
        group: Number of the param group.
        variables: In the order of their offsets.
        places: Of each, in the part of the plans.
        order: The same on the device, int64.
        rows: Of each, in the counts of steps, int64 on the device.
        distance: Elements from the beginning of one to that of the next.
        kept: By name, what is kept of all, [variables, *shape].
        beside: The same, of each.
    """

    group: int
    variables: Sequence[Variable]
    places: Sequence[int]
    order: Tensor
    rows: Tensor
    distance: int
    kept: Mapping[str, Tensor]
    beside: Sequence[Beside]

    def view(self, buffer: Tensor, first: int, last: int) -> Tensor:
        """Some of the variables in a stream that begins where the region does, [last - first, *shape]."""
        spec, offset = self.variables[0].spec, self.variables[first].span.offset
        return buffer.as_strided((last - first, *spec.shape), (self.distance, *spec.stride), offset)

    def pieces(self, touched: Sequence[bool], most: int) -> Iterator[tuple[int, int]]:
        """First and last of runs of variables that have a gradient, of about `most` elements."""
        count = max(most // max(self.variables[0].spec.numel, 1), 1)
        for hit, run in groupby(range(len(self.places)), key=lambda i: bool(touched[self.places[i]])):
            indices = list(run)
            for first in range(0, len(indices), count) if hit else ():
                yield indices[first], indices[min(first + count, len(indices)) - 1] + 1


def batches_of(members: Sequence[Member], dtype: torch.dtype, device: torch.device) -> list[Alike]:
    """Variables in as few batches as their offsets allow.

    Args:
        members: In any order.
        dtype: Of what is kept.
    """
    alike: dict[Any, list[Member]] = {}
    for member in sorted(members, key=lambda member: member[0].span.offset):
        alike.setdefault((member[1], member[0].spec.shape, member[0].spec.stride), []).append(member)
    found = []
    for (group, shape, _), some in alike.items():
        for run in _runs(some):
            offsets = [member[0].span.offset for member in run]
            with normal_tensors():
                kept = {
                    name: torch.zeros((len(run), *one), dtype=dtype, device=device)
                    for name, one in factored_shapes(tuple(shape)).items()
                }
                order, rows = (torch.tensor([m[i] for m in run], dtype=torch.int64).to(device) for i in (2, 3))
            distance = offsets[1] - offsets[0] if len(run) > 1 else 1
            variables, places = [member[0] for member in run], [member[2] for member in run]
            beside = [Beside(v, {name: kept[name][i] for name in kept}) for i, v in enumerate(variables)]
            found.append(Alike(group, variables, places, order, rows, distance, kept, beside))
    return found


def _runs(members: Sequence[Member]) -> list[list[Member]]:
    """Runs of equal distances, each as long as it goes."""
    runs: list[list[Member]] = []
    for member in members:
        run = runs[-1] if runs else []
        step = run[1][0].span.offset - run[0][0].span.offset if len(run) > 1 else 0
        if run and (len(run) == 1 or member[0].span.offset - run[-1][0].span.offset == step):
            run.append(member)
        else:
            runs.append([member])
    return runs


class FactoredStep(Directions):
    """What Adafactor needs for one part of an optimizer's plans.

    Args:
        part, numel, device: As for `Directions`.
        members: As of `batches_of`.
        number_dtype: Of the numbers that a variable stands for.
    """

    def __init__(
        self,
        part: Part,
        members: Sequence[Member],
        numel: int,
        device: torch.device,
        number_dtype: Callable[[Variable], torch.dtype],
    ) -> None:
        dtype = torch.float64 if part.region == torch.float64 else torch.float32
        super().__init__(part, numel, dtype, device)
        self.values = self.directions
        self.batches = batches_of(members, dtype, device)
        self._epsilons = [torch.finfo(number_dtype(batch.variables[0])).eps for batch in self.batches]

    def bind(self, touched: Sequence[bool], entry_of: EntryOf) -> None:
        """Goes on from what `optimizer.state` holds of the variables that have a gradient."""
        for batch in self.batches:
            for place, beside in zip(batch.places, batch.beside, strict=True):
                if touched[place]:
                    beside.bind(entry_of)

    def divide(
        self,
        touched: Sequence[bool],
        groups: Sequence[Mapping[str, Any]],
        steps: Tensor,
        moves: Tensor | None,
        written: Tensor | None,
    ) -> None:
        """Makes directions of gradients.

        Args:
            steps: Taken by each variable, at its row.
            moves: bool []: whether the step is not skipped; None where none is.
            written: bool [variables of the part]: which have a gradient, where the device alone knows.
        """
        most = AT_ONCE["cpu" if self.directions.device.type == "cpu" else "cuda"]
        for batch, epsilon in zip(self.batches, self._epsilons, strict=True):
            group, hits = groups[batch.group], moves
            eps = group["eps"][0]
            eps = epsilon if eps is None else float(eps)
            weights = (steps[batch.rows].double().abs() + 1.0) ** float(group["beta2_decay"])
            weights = weights.to(self.directions.dtype)
            if written is not None:
                hits = written[batch.order] if moves is None else written[batch.order] & moves
            for first, last in batch.pieces(touched, most):
                kept = {name: tensor[first:last] for name, tensor in batch.kept.items()}
                some = hits[first:last] if hits is not None and hits.ndim else hits
                divide_(batch.view(self.directions, first, last), kept, weights[first:last], eps, some)


def divide_(g: Tensor, kept: Mapping[str, Tensor], weight: Tensor, eps: float, moves: Tensor | None) -> None:
    """Moves what is kept of some variables, and replaces their gradients by directions.

    Args:
        g: [variables, *shape].
        kept: By name, [variables, *shape].
        weight: [variables]: of the new squares.
        eps: Least mean of R, and root of the least estimate.
        moves: bool [variables] or []: what is kept moves; everywhere if None.
    """
    if "variance" in kept:
        v = _lerp_(kept["variance"], g * g, weight, moves)
        g.mul_(v.clamp(min=eps * eps).rsqrt_())
        return
    row, column = kept["row_var"], kept["col_var"]
    for means, axis in ((row, -1), (column, -2)):
        squares = torch.linalg.vector_norm(g, dim=axis, keepdim=True).square_()
        _lerp_(means, squares.div_(max(g.shape[axis], 1)), weight, moves)  # of no elements it is 0, and not NaN
    estimate = (row / row.mean(dim=-2, keepdim=True).clamp_(min=eps)) * column
    g.mul_(estimate.clamp_(min=eps * eps).rsqrt_())


def _lerp_(kept: Tensor, new: Tensor, weight: Tensor, moves: Tensor | None) -> Tensor:
    ones = (1,) * (kept.ndim - 1)
    moved = torch.lerp(kept, new, weight.view(-1, *ones))
    return kept.copy_(moved if moves is None else torch.where(moves.view(-1, *ones), moved, kept))
