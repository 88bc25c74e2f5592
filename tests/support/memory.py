"""Memory that tells: guards around a stream, NaN around a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

# Elements on either side; a multiple of 128 keeps every alignment of the stream itself.
GUARD = 2048
# Exact in every dtype, and in no result.
SENTINEL = -24576.0


class Guarded:
    """A stream of zeros in the middle of an allocation whose other elements hold a sentinel."""

    def __init__(self, numel: int, dtype: torch.dtype, device: torch.device) -> None:
        self.storage = torch.full((numel + 2 * GUARD,), SENTINEL, dtype=dtype, device=device)
        self.stream = self.storage[GUARD : GUARD + numel]
        self.stream.zero_()

    def assert_intact(self) -> None:
        """Fails if anything before or behind the stream was written."""
        before, behind = self.storage[:GUARD], self.storage[GUARD + len(self.stream) :]
        assert bool((before == SENTINEL).all()), "memory before the stream was written"
        assert bool((behind == SENTINEL).all()), "memory behind the stream was written"


def in_poison(tensor: Tensor, shift: int = 0, stride: tuple[int, ...] | None = None) -> Tensor:
    """A copy of a gradient inside a buffer of NaN, `shift` elements off an aligned address.

    Args:
        stride: Memory order of the copy; the tensor's own if not given. 0 for expanded axes, whose first entry counts.
    """
    stride = tensor.stride() if stride is None else stride
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, stride, strict=True)) + 1 if tensor.numel() else 0
    buffer = torch.full((reach + 2 * GUARD + shift,), torch.nan, dtype=tensor.dtype, device=tensor.device)
    view = buffer.as_strided(tensor.shape, stride, GUARD + shift)
    own = tuple(slice(None, 1) if s == 0 else slice(None) for s in stride)
    view[own].copy_(tensor[own])
    return view


def expanded(shape: tuple[int, ...]) -> Tensor:
    """What `sum().backward()` leaves: one number in all places, strides 0."""
    return torch.randn(1).expand(shape) if shape else torch.randn(())
