"""Receipts: which gradients in `.grad` a step has used, told later, from as little as can be kept of them.

`.grad` of a stepped parameter stays where it is, as torch leaves it. A checkpoint must know whether it belongs to the
past. It does if the cycle began with zeroed gradients, for then the next one will, and the tensors are those of the
step, unchanged. Where nobody zeroes gradients, they add up, and are never past.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import compress
from operator import attrgetter

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .repeats import Left

_version = attrgetter("_version")

WITNESSES = 128
"""Tensors that are looked at. Of more than these, every n-th: zeroing, a backward pass and clipping reach many at once,
and to keep an eye on all would cost a step as much as reading them twice."""


class Receipt:
    """What one step used.

    Args:
        grads: The gradients, as they lie in `.grad`; None for those that do not.
        touched: Which of these are gradients.
        ends: Whether the step ended their cycle.
    """

    def __init__(self, grads: Sequence[Tensor | None], touched: list[bool], ends: bool) -> None:
        self.touched = touched
        self.ends = ends
        present = range(len(grads)) if all(touched) else list(compress(range(len(grads)), touched))
        places = present[:: -(-len(present) // WITNESSES) or 1]
        tensors = grads.at(places) if grads.__class__ is Left else list(map(grads.__getitem__, places))
        there = [tensor is not None for tensor in tensors]
        self._places = list(compress(places, there))
        witnesses: list[Tensor] = list(compress(tensors, there))  # type: ignore[arg-type]
        self._witnesses = list(map(weakref.ref, witnesses))
        self._versions = list(map(_version, witnesses))

    def is_alive(self) -> bool:
        """Whether the tensors are still there, whatever was added to them."""
        return all(tensor is not None for tensor in map(_look, self._witnesses))

    def holds(self, grads: Sequence[Tensor | None]) -> bool:
        """Whether they are as the step left them, and lie in `.grad` still: somebody may only keep them."""
        tensors = list(map(_look, self._witnesses))
        there = all(tensor is grads[k] for k, tensor in zip(self._places, tensors, strict=True))
        return there and [None if tensor is None else tensor._version for tensor in tensors] == self._versions


class ViewReceipt:
    """The same where gradients are views, which are always there: their versions were all read for the step itself.

    Args:
        views: Of all variables.
        versions: int64 [views], as the step found them.
        touched, ends: As of a `Receipt`.
    """

    def __init__(
        self, views: Sequence[Tensor], versions: npt.NDArray[np.int64], touched: list[bool], ends: bool
    ) -> None:
        self.touched = touched
        self.ends = ends
        self._views, self._versions = views, versions

    def is_alive(self) -> bool:
        """See `Receipt.is_alive`: what somebody put in the place of a view was noted as zeroed when it was taken in."""
        return True

    def holds(self, grads: Sequence[Tensor | None]) -> bool:
        """See `Receipt.holds`."""
        used = compress(zip(grads, self._views, self._versions.tolist(), strict=True), self.touched)
        return all(grad is view and view._version == version for grad, view, version in used)


def _look(reference: weakref.ref[Tensor]) -> Tensor | None:
    tensor = reference()
    if tensor is not None:
        tensor._fix_weakref()  # type: ignore[attr-defined]  # as torch.utils.weak does where C++ alone held on to it
    return tensor
