"""The mark of a gradient that nobody wrote: -0.0 in every element.

It adds nothing to what is added to it, and stays what it is when it is scaled, clipped, averaged over processes or
divided by a loss scale: what passes over all gradients in place leaves those that are none as they are. What autograd
writes is not -0.0 in every element, but for a gradient that is: that one counts as none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

UNWRITTEN = -0.0
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_unwritten(tensor: Tensor) -> Tensor:
    """Which elements are the mark, bool of the tensor's shape."""
    bits = _BITS[tensor.element_size()]
    return tensor.view(bits) == torch.iinfo(bits).min


def is_written(tensor: Tensor) -> bool:
    """Whether an element is not the mark. Synchronizes."""
    return not bool(is_unwritten(tensor).all())


def keep_marks(streams: list[Tensor], operation: Callable[[list[Tensor]], object]) -> None:
    """Runs an operation on the elements of streams, in place, after which the mark is where it was before.

    Elements that are the mark stay it, though NaN times -0.0 is NaN; others do not become it, though a negative number
    times zero is -0.0: a variable of which that is the whole gradient has one.
    """
    unwritten = [is_unwritten(stream) for stream in streams]
    operation(streams)
    for stream, marks in zip(streams, unwritten, strict=True):
        stream.masked_fill_(is_unwritten(stream), 0.0)
        stream.masked_fill_(marks, UNWRITTEN)
