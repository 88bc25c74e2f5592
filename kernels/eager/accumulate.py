"""Accumulation: gradients into the flat stream, in a few operator calls however many variables there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress

import torch
from torch import Tensor

from ..segments import Segments


class Accumulation:
    """Where the gradients of one pattern of touched variables go in one stream.

    Args:
        stream: [numel], written in place; padding is left alone.
        touched: Which variables have a gradient.
        masks: bool [numel] of masked variables, by position; True counts as 0.
    """

    def __init__(
        self, segments: Segments, stream: Tensor, touched: Sequence[bool], masks: Mapping[int, Tensor]
    ) -> None:
        self.touched = list(touched)
        self._address = stream.data_ptr()
        spans = [stream[start : start + n] for start, n in zip(segments.starts, segments.numels, strict=True)]
        orders = zip(spans, segments.shapes, segments.strides, strict=True)
        views = [span.as_strided(shape, stride) for span, shape, stride in orders]
        self._targets = list(compress(views, self.touched))
        self._untouched = [span for span, hit in zip(spans, self.touched, strict=True) if not hit]
        self._masked = [(spans[i], mask) for i, mask in masks.items() if self.touched[i]]

    def fits(self, stream: Tensor, touched: Sequence[bool]) -> bool:
        """Whether this is the accumulation of that stream and pattern: it is kept from one micro-batch to the next."""
        return self._address == stream.data_ptr() and self.touched == touched

    def run(self, grads: Sequence[Tensor | None], scale: float, add: bool) -> None:
        """Overwrites or adds; gradients are those of all variables, in the memory order of theirs."""
        present = list(compress(grads, self.touched))
        if self._untouched and not add:
            torch._foreach_zero_(self._untouched)
        if present and add:
            torch._foreach_add_(self._targets, present, alpha=scale)  # type: ignore[arg-type]
        elif present:
            torch._foreach_copy_(self._targets, present)  # type: ignore[arg-type]
            if scale != 1.0:
                torch._foreach_mul_(self._targets, scale)
        for span, mask in self._masked:
            span.masked_fill_(mask, 0.0)
