"""Newton-Schulz iterations on batches of matrices, in bfloat16: the nearest matrix with orthogonal rows or columns.

    X <- U / norm(U);   as often as there are coefficients (a, b, c):  A = X X',  B = b A + c A A,  X <- a X + B X

The polynomials drive all singular values towards 1. Tall matrices take A = X' X and X <- a X + X B, which is the same
and moves nothing: no matrix is transposed or copied, and the result lies where U lay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import check_number

Coefficients = tuple[float, float, float]
CoefficientSet = Literal["keller", "quintic", "polar", "deepseekv4"]

KELLER = (3.4445, -4.7750, 2.0315)
SETS: dict[str, tuple[Coefficients, ...]] = {
    # github.com/KellerJordan/Muon, and torch.optim.Muon
    "keller": (KELLER,) * 5,
    # NVIDIA-NeMo/Emerging-Optimizers, "quintic"
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # Polar Express (Amsel et al. 2025, arXiv 2505.16932), as microsoft/dion has it
    "polar": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    # DeepSeek-V4: eight steps that spread, two that settle
    "deepseekv4": (KELLER,) * 8 + ((2.0, -1.5, 0.5),) * 2,
}
"""By name: the coefficients of every iteration; the last ones go on where more are asked for."""


@dataclass(frozen=True)
class NewtonSchulz:
    """How a batch is made orthogonal.

    Attributes:
        coefficients: Of every iteration.
        eps: Least norm, or what is added to it.
        add_eps: Whether it is added.
        stretch: Factor of the norm: the largest singular value must not pass 1.
    """

    coefficients: tuple[Coefficients, ...]
    eps: float = 1e-7
    add_eps: bool = False
    stretch: float = 1.0


def newton_schulz_of(coefficients: Any, steps: int | None, eps: float, add_eps: bool) -> NewtonSchulz:
    """From what a param group says.

    Args:
        coefficients: A name of `SETS`, three numbers for all iterations, or three for each.
        steps: Iterations; as many as the set has if None.

    Raises:
        ValueError: no such set, not three numbers, or a number of iterations that makes no sense.
        TypeError: no numbers.
    """
    if isinstance(coefficients, str):
        if coefficients not in SETS:
            raise ValueError(f"ns_coefficients={coefficients!r} is no set of coefficients; there are {', '.join(SETS)}")
        known = SETS[coefficients]
    else:
        if not isinstance(coefficients, Sequence):
            raise TypeError(
                f"ns_coefficients={coefficients!r}: give three numbers, three for each iteration, or a name"
            )
        rows = list(coefficients)
        rows = rows if rows and isinstance(rows[0], Sequence) else [rows]
        if any(not isinstance(row, Sequence) or len(row) != 3 for row in rows):
            raise ValueError(
                "Coefficients must be a tuple of exactly 3 values, or a list of such: "
                f"ns_coefficients={coefficients} was given"
            )
        for row in rows:
            for number in row:
                check_number("ns_coefficients", number)
        known = tuple((float(a), float(b), float(c)) for a, b, c in rows)
    steps = len(known) if steps is None else steps
    if not 0 <= steps < 100:
        raise ValueError(f"Number of steps must be less than 100 for computational efficiency: ns_steps={steps}")
    chosen = (known + known[-1:] * steps)[:steps]
    if coefficients == "polar":
        return NewtonSchulz(chosen, 1e-6, True, 1.02)
    return NewtonSchulz(chosen, float(eps), add_eps)


def scratch_numel(count: int, shape: tuple[int, int]) -> int:
    """Elements of bfloat16 that `orthogonalize_` needs beside a batch."""
    return count * (shape[0] * shape[1] + 2 * min(shape) ** 2)


def orthogonalize_(batches: Sequence[Tensor], how: NewtonSchulz, scratch: Tensor) -> None:
    """Replaces matrices by their orthogonal neighbors, in place; a matrix of zeros stays one.

    Args:
        batches: bfloat16 [count, rows, columns] each, at any distance from each other; the smaller of rows and columns
            is the same in all: their Gram matrices are one batch.
        scratch: bfloat16 [at least the sum of their `scratch_numel`].
    """
    small, total = min(batches[0].shape[1:]), sum(len(batch) for batch in batches)
    cuts = [total * small * small] * 2 + [batch.numel() for batch in batches]
    gram, update, *rooms = torch.split(scratch[: sum(cuts)], cuts)
    gram, update = gram.view(total, small, small), update.view(total, small, small)
    firsts = [sum(len(batch) for batch in batches[:i]) for i in range(len(batches))]
    grams, updates = ([x[i : i + len(b)] for i, b in zip(firsts, batches, strict=True)] for x in (gram, update))
    here, there = list(batches), [room.view(batch.shape) for room, batch in zip(rooms, batches, strict=True)]
    # The last product must land where the matrices lay.
    x, y = (there, here) if len(how.coefficients) % 2 else (here, there)
    for batch, out in zip(batches, x, strict=True):
        torch.div(batch, _norms(batch, how), out=out)
    for a, b, c in how.coefficients:
        for one, into in zip(x, grams, strict=True):
            left, right = (one.mT, one) if one.shape[1] > one.shape[2] else (one, one.mT)
            torch.bmm(left, right, out=into)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=update)
        for one, by, into in zip(x, updates, y, strict=True):
            left, right = (one, by) if one.shape[1] > one.shape[2] else (by, one)
            torch.baddbmm(one, left, right, beta=a, out=into)
        x, y = y, x


def _norms(batch: Tensor, how: NewtonSchulz) -> Tensor:
    """What each matrix is divided by, [count, 1, 1]."""
    norm: Tensor = torch.linalg.vector_norm(batch, dim=(1, 2), keepdim=True)
    if how.stretch != 1.0:
        norm = norm.mul_(how.stretch)
    return norm.add_(how.eps) if how.add_eps else norm.clamp_(min=how.eps)
