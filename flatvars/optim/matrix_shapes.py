"""What the numbers of a param group make of a variable that is stepped as matrices: which, how, and by how much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch

from ..errors import SpecError
from ..memory.batches import matrix_of, split_block
from ..memory.spec import VarSpec
from ..variables.selectors import names
from ..variables.variable import Variable
from .checks import LENGTHS, check_kinds
from .matrices import MatrixShape
from .muon_settings import adjustment
from .newton_schulz import NewtonSchulz, newton_schulz_of

NUMBERS = ("lr", "weight_decay", "momentum", "nesterov", "eps", "ns_steps", "betas", "beta2", "amsgrad", "maximize")
"""Entries of a param group of matrices, or of the rest, that are numbers."""

OPTIONAL = frozenset({"ns_steps"})
"""Those of them that may be None."""


def shape_of(variable: Variable, group: Mapping[str, Any]) -> tuple[MatrixShape, float]:
    """The matrices in a variable, and the factor of its learning rate.

    Raises:
        ValueError: it is no matrix, or cannot be split as the group says.
    """
    spec = whole_spec(variable, bool(group.get("each_shard", False)))
    shape = spec.shape
    if len(shape) != 2 and (len(shape) < 3 or not group.get("convolutions", False)):
        raise ValueError(
            f"Muon only supports 2D parameters whereas we found a parameter with size: {torch.Size(shape)}: "
            f'{variable.name!r}. Put it into a group with "rule": "AdamW", give Muon the whole store, or, for a '
            "convolution, pass convolutions=True"
        )
    axis = output_axis(variable.names, group)
    sizes: Any = next((n for p, n in group.get("split") or () if any(names(name, p) for name in variable.names)), 1)
    try:
        block = matrix_of(spec)
        if isinstance(sizes, Integral):
            if sizes < 1 or block.shape[axis] % sizes:
                raise SpecError(f"{block.shape[axis]} outputs are not {sizes} equal parts")
            sizes = [block.shape[axis] // int(sizes)] * int(sizes)
        blocks = split_block(block, sizes, axis) if min(block.shape) else [block]
    except SpecError as error:
        raise ValueError(f"Muon cannot step {variable.name!r} of shape {shape}: {error}") from None

    def scale(rows: int, columns: int) -> float:
        out, into = (columns, rows) if axis else (rows, columns)
        sides = (out, into) if len(shape) == 2 else shape[-2:]
        return adjustment(group["adjust_lr_fn"], max(out, 1), max(into, 1), (max(sides[0], 1), max(sides[1], 1)))

    scales = [scale(*one.shape) for one in blocks]
    factors = tuple(one / scales[0] for one in scales)
    return MatrixShape(tuple(blocks), factors, schulz_of(group)), scales[0]


def whole_spec(variable: Variable, each_shard: bool) -> VarSpec:
    """Of all of a variable, of which this rank may have a shard; or of the shard."""
    whole = variable.whole
    if each_shard or whole is variable.param:
        return variable.spec
    return replace(variable.spec, shape=tuple(whole.shape), stride=tuple(whole.stride()))


def output_axis(names_of_it: Iterable[str], group: Mapping[str, Any]) -> int:
    """Which axis of a matrix its outputs are: 0, or 1 of one that the group says is stored [in, out]."""
    return int(any(names(name, pattern) for pattern in group.get("in_out") or () for name in names_of_it))


def schulz_of(group: Mapping[str, Any]) -> NewtonSchulz:
    """The iterations that a param group asks for.

    Raises:
        ValueError, TypeError: see `newton_schulz_of`.
    """
    check_kinds(group, [name for name in NUMBERS if name in group], LENGTHS, False, OPTIONAL)
    return newton_schulz_of(
        group["ns_coefficients"], group["ns_steps"], float(group["eps"]), bool(group.get("add_eps", False))
    )


def as_pairs(split: Any) -> tuple[tuple[str, Any], ...] | None:
    """A split as a param group keeps it, which can be compared and saved; None for none."""
    pairs = split.items() if isinstance(split, Mapping) else split or ()
    return tuple((str(p), int(n) if isinstance(n, Integral) else tuple(int(m) for m in n)) for p, n in pairs) or None
