"""How far a result may lie from the float64 truth, by dtype: the only place with such numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Allowed distance from the truth, which is rounded to the result's dtype first.

    Attributes:
        relative, absolute: As torch.testing's `rtol` and `atol`.
        norm: Relative, of sums over many elements.
        differing: Share of elements that may differ from the rounded truth at all.
    """

    relative: float
    absolute: float
    norm: float
    differing: float


TOLERANCES = {
    # Some ten float32 operations of half an ulp (6e-8) each; `absolute` is that of terms below 4 which cancel. Norms
    # are sums of pairs, so their error grows with the logarithm of the length.
    torch.float32: Tolerance(relative=1e-6, absolute=5e-7, norm=1e-6, differing=1.0),
    # One ulp (2^-7 at worst): float32 inside may put a result on the other side of a tie, and products of bfloat16
    # numbers lie near ties often. Truncation would stay within an ulp as well, but differ in half of all elements.
    torch.bfloat16: Tolerance(relative=2**-7, absolute=5e-7, norm=1e-6, differing=0.05),
    # One ulp (2^-10 at worst); below 2^-14 the spacing is constant, 6e-8.
    torch.float16: Tolerance(relative=2**-10, absolute=5e-7, norm=1e-6, differing=0.05),
    # Some ten operations of half an ulp (1e-16) each.
    torch.float64: Tolerance(relative=2e-15, absolute=1e-15, norm=1e-15, differing=1.0),
}

# |x|^p through exp2 and log2 in float32: p * log2(x) is rounded before exp2 takes it as an exponent.
POWER_NORM = 1e-5
# Bias correction against double: ulp of float32. `log(beta)` is rounded once, exp and ten steps of the series add.
BIAS_ULP = 4
# A rule in Triton against its twin on torch, both in float32: only exp and the order of exact operations differ.
TWIN = Tolerance(relative=4e-7, absolute=1e-7, norm=0.0, differing=1.0)


def assert_close(actual: Tensor, truth: Tensor, tolerance: Tolerance | None = None) -> None:
    """Compares a result with its float64 truth, rounded to the result's dtype."""
    tolerance = tolerance or TOLERANCES[actual.dtype]
    actual, rounded = actual.detach().cpu(), truth.to(actual.dtype)
    torch.testing.assert_close(
        actual.double(), rounded.double(), rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True
    )
    if actual.numel() >= 100:
        same = (actual == rounded) | (actual.isnan() & rounded.isnan())
        differing = 1.0 - same.double().mean().item()
        assert differing <= tolerance.differing, f"{differing:.1%} of the elements are rounded another way"


def assert_norm(actual: Tensor, truth: Tensor | float, dtype: torch.dtype, relative: float | None = None) -> None:
    """Compares a norm, or several, with the float64 truth."""
    truth = torch.as_tensor(truth, dtype=torch.float64)
    rtol = TOLERANCES[dtype].norm if relative is None else relative
    torch.testing.assert_close(actual.detach().cpu().double(), truth, rtol=rtol, atol=0.0, equal_nan=True)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Compares memory: NaN equals NaN, and -0.0 is not 0.0."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    left, right = actual.detach().cpu().contiguous().view(kind), expected.detach().cpu().contiguous().view(kind)
    differing = int((left != right).sum())
    assert differing == 0, f"{differing} of {left.numel()} elements differ"
