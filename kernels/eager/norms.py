"""Norms on host memory: rows of a stream at the speed of memory, their sums in double precision.

A norm over everything runs at half the speed of norms of rows and loses digits; `dot` stalls for milliseconds when
other processes use the cores; an operator for each variable takes longer than the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Elements whose squares are summed in the tensor's own precision, float32 at least.
ROW = 2_048

Floats = npt.NDArray[np.float64]


def rows_of(tensor: Tensor, width: int, order: float) -> Floats:
    """Norms of stretches of `width` elements, of which the tensor is a whole number."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    rows: Floats = torch.linalg.vector_norm(tensor.view(-1, width), order, dim=1, dtype=wide).double().numpy()
    return rows


def _rows_and_rest(flat: Tensor, order: float) -> Floats:
    """Norms of the whole rows of a flat tensor, and of what is left."""
    whole = flat.numel() // ROW * ROW
    parts = [rows_of(flat[:whole], ROW, order)] if whole else []
    if whole < flat.numel():
        parts.append(rows_of(flat[whole:], flat.numel() - whole, order))
    return np.concatenate(parts) if parts else np.zeros(1)


def square_sum(flat: Tensor) -> float:
    """Of a flat tensor."""
    # Not np.dot: threads of BLAS spin on after it, and take the cores from torch's.
    return float(np.square(_rows_and_rest(flat, 2.0)).sum())


@np.errstate(over="ignore")  # as torch, which says nothing
def norm_of(flat: Tensor, order: float) -> float:
    """Of a flat tensor, for an order above 0."""
    norms = _rows_and_rest(flat, order)
    return float(norms.max() if order == np.inf else (norms**order).sum() ** (1.0 / order))


@np.errstate(over="ignore")
def norms_of(stream: Tensor, starts: Sequence[int], ends: Sequence[int], order: float) -> Floats:
    """Norms of many stretches of a stream at once, none of them empty; what lies in between may be anything.

    Args:
        starts, ends: In rising order; the padding up to an end counts, and is zero. The more factors of two they share,
            the faster it is.
    """
    first, last = starts[0], ends[-1]
    edges = np.stack([starts, ends], axis=1).ravel() - first
    width = int(np.gcd(np.gcd.reduce(edges), ROW))
    # One row behind the last, so that an end may be the end.
    rows = np.append(rows_of(stream[first:last], width, order), 0.0)
    places = edges // width
    if order == np.inf:
        largest: Floats = np.maximum.reduceat(rows, places)[::2]
        return largest
    sums: Floats = np.add.reduceat(rows**order, places)[::2]
    return sums ** (1.0 / order)
