"""Which rank makes which matrix of Muon's orthogonal, of stores whose ranks have parts of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..distributed.owners import Matrix, Owners, Run
from ..distributed.shards import rows_of
from ..errors import FlatvarsError
from ..memory.streams import Stream
from ..variables.registry import Registry
from ..variables.variable import Variable
from .matrices import MatrixShape


def owners_for(
    registry: Registry,
    variables: Sequence[Variable],
    shapes: Sequence[MatrixShape],
    held: Stream,
    kind: str,
    divisible: bool,
) -> Owners | None:
    """The owners of some matrices of one dtype; None where every rank has all of each.

    Args:
        shapes: Of each variable.
        held: The stream of their momentum, whose range this rank's directions have.
        kind: Name of the optimizer's class.
        divisible: Whether it has `each_shard`.

    Raises:
        FlatvarsError: matrices are divided over several meshes, or not by their rows.
    """
    works = [sum(math.prod(block.shape) * min(block.shape) for block in shape.blocks) for shape in shapes]
    if registry.group is not None:
        ranks, layout = registry.group.ranks, registry.layout
        shares = [layout.share(variables[0].dtype, rank) for rank in range(ranks.world)]
        matrices = []
        for variable, work in zip(variables, works, strict=True):
            span = variable.span
            ends = [[min(max(end - span.offset, 0), span.numel) for end in share] for share in shares]
            runs = tuple(Run(*pair) for pair in ends)
            matrices.append(Matrix(span.numel, work, runs, span.offset + runs[ranks.rank].first - held.base))
        return Owners(matrices, ranks.rank, registry.group.process_group)
    if registry.sharding is None:
        return None
    return _owners_of_rows(variables, works, held, kind, divisible)


EACH_SHARD = (
    ", or pass each_shard=True, by which every rank makes its shard orthogonal for itself: another optimizer, whose "
    "steps depend on the mesh"
)


def _owners_of_rows(
    variables: Sequence[Variable], works: Sequence[float], held: Stream, kind: str, divisible: bool
) -> Owners | None:
    found, other = [], EACH_SHARD if divisible else ""
    for variable in variables:
        try:
            found.append(rows_of(variable.whole))
        except FlatvarsError as error:
            raise FlatvarsError(
                f"{kind} works on whole matrices, and cannot on {variable.name!r}: {error}. Give it a param group with "
                f'"rule": "AdamW"{other}'
            ) from None
    groups = {id(one[0]): one for one in found if one is not None}
    if not groups:
        return None
    if len(groups) > 1:
        raise FlatvarsError(
            f"{kind}'s matrices of one dtype are divided over several meshes; call fully_shard with one mesh for all "
            f"of them{other}"
        )
    group, rank, some = next(iter(groups.values()))
    matrices = []
    for variable, one, work in zip(variables, found, works, strict=True):
        numel = math.prod(variable.whole.shape)
        runs = [(0, numel)] * len(some) if one is None else one[2]
        matrices.append(Matrix(numel, work, tuple(Run(*run) for run in runs), variable.span.offset - held.base))
    return Owners(matrices, rank, group)
