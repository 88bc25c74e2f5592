"""Where the gradients of a launch lie: one dense run of memory per variable, and the device table of their addresses.

Triton's kernels and the CPU's read the same table: `[variables, 2]` int64, address (0: untouched) and dtype code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from operator import attrgetter, is_not

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import FlatvarsError, GradientError
from .segments import Segments

# Codes of the table that kernels read; the position is the code.
SOURCE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ITEM_SIZES = np.array([dtype.itemsize for dtype in SOURCE_DTYPES], dtype=np.int64)
CODE_OF = {dtype: code for code, dtype in enumerate(SOURCE_DTYPES)}

# Address of a gradient without elements: not 0, which means untouched, and never read.
EMPTY = 16

# Uploads that one capture may hold: of accumulate for each of several micro-batches, of norm and step.
SPARES = 8

_DTYPES, _STRIDED = frozenset(SOURCE_DTYPES), frozenset({torch.strided})
_dtype, _layout, _shape = attrgetter("dtype"), attrgetter("layout"), attrgetter("shape")
_exists = partial(is_not, None)
_address, _stride, _numel = Tensor.data_ptr, Tensor.stride, Tensor.numel

Shapes = list[tuple[int, ...]]
Looks = tuple[list[int], list[torch.dtype], Shapes, list[int]]


def in_memory_order(name: str, grad: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Returns `grad` as dense memory with strides `stride`: itself where it is so already, else a copy.

    Args:
        name: Of the variable, for the message.
        grad: Gradient, [shape], of a floating dtype; sparse gradients are made dense.

    Raises:
        GradientError: wrong shape, or a dtype that is not floating.
    """
    if tuple(grad.shape) != shape:
        raise GradientError(
            f"the gradient of {name!r} has shape {tuple(grad.shape)}, but the variable has shape {shape}; "
            "assign a gradient of the variable's shape, or None"
        )
    if grad.dtype not in SOURCE_DTYPES:
        raise GradientError(
            f"the gradient of {name!r} has dtype {grad.dtype}; float32, bfloat16, float16 or float64 is needed"
        )
    if grad.layout != torch.strided:
        grad = grad.to_dense()
    grad = grad.resolve_neg()
    if same_order(grad.shape, grad.stride(), stride):
        return grad
    return torch.empty_strided(shape, stride, dtype=grad.dtype, device=grad.device).copy_(grad)


def all_in_memory_order(grads: Sequence[Tensor], shapes: Shapes, strides: Shapes) -> bool:
    """Whether `in_memory_order` would return every one of these gradients as it is: a few loops in C.

    False also for strides that differ in axes of length 1 alone, which only a look at each can tell.
    """
    return (
        _STRIDED.issuperset(map(_layout, grads))
        and _DTYPES.issuperset(map(_dtype, grads))
        and list(map(_shape, grads)) == shapes
        and list(map(Tensor.stride, grads)) == strides
        and not any(map(Tensor.is_neg, grads))
    )


def _looks_of(grads: Sequence[Tensor]) -> Looks | None:
    """Address, dtype, strides and length of each: four loops in C. None if one has no address: it is sparse."""
    try:
        addresses, strides = list(map(_address, grads)), list(map(_stride, grads))
    except RuntimeError:
        return None
    return addresses, list(map(_dtype, grads)), strides, list(map(_numel, grads))


def same_order(shape: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    """Whether two strides of one shape address the same memory; axes of length 1 or 0 do not matter."""
    return left == right or 0 in shape or all(a == b for n, a, b in zip(shape, left, right, strict=True) if n > 1)


def upload(table: Tensor, host: Tensor) -> None:
    """Copies a host table to its device buffer without a synchronization.

    Page-locked memory from torch's caching allocator is not handed out again before the copy has run.
    """
    table.copy_(host.pin_memory() if table.is_cuda else host, non_blocking=True)


def is_capturing(table: Tensor) -> bool:
    """Whether work on this tensor's device is being captured in a CUDA graph."""
    return table.is_cuda and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class Sources:
    """What a launch needs to know of its gradients.

    Attributes:
        table: [variables, 2] int64 on the device: address (0: none) and dtype code.
        touched: Which variables have a gradient.
        dtype: Of all of them, or None where they differ.
        viewed: Whether they are views of the stream, which are there whether written or not: `touched` then says which
            variables have an element. The launch of the norm finds out which were written, and must come first.
    """

    table: Tensor
    touched: Sequence[bool]
    dtype: torch.dtype | None
    viewed: bool = False


class AddressTable:
    """Uploads addresses, and skips the upload while they repeat, as they do with an allocator in steady state."""

    def __init__(self, segments: Segments, device: torch.device) -> None:
        self.segments = segments
        self.table = torch.zeros((len(segments), 2), dtype=torch.int64, device=device)
        self.uploads = 0
        self._starts = np.array(segments.starts, dtype=np.int64)
        # Kernels count from the first element of the whole variable, which lies before that of a shard.
        self._firsts = np.array(segments.firsts, dtype=np.int64) if any(segments.firsts) else None
        # What the table holds: which variables have a gradient, and where, of which dtypes.
        self._touched: list[bool] = []
        self._addresses: list[int] = []
        self._dtypes: list[torch.dtype] = []
        self._rows = np.zeros((len(segments), 2), dtype=np.int64)
        self._sources = Sources(self.table, [], torch.float32)
        # How those gradients looked that were looked at closely, or which stream was pointed into.
        self._looks: Looks | None = None
        self._place: tuple[int, torch.dtype] | None = None
        self._viewed: Sources | None = None  # as it was pointed into, for views
        # Shapes and strides of the variables of one pattern of touched ones, kept as long as it repeats.
        self._pattern: tuple[list[bool], Shapes, Shapes] = ([], [], [])
        # Alive until the next upload: copies made of gradients, and memory that a captured graph copies from.
        self._kept: list[Tensor] = []
        self._captured: list[Tensor] = []
        self._spares: list[Tensor] = []

    def scattered(self, grads: Sequence[Tensor | None]) -> Sources:
        """Points at gradients wherever they lie; None leaves its variable untouched.

        A gradient in another memory order than its variable, or sparse, is copied first.

        Raises:
            GradientError: names the variable whose gradient no kernel can read.
        """
        touched = list(map(_exists, grads))
        present: Sequence[Tensor] = list(compress(grads, touched))  # type: ignore[arg-type]
        looks = _looks_of(present)
        if looks is not None and looks == self._looks and touched == self._touched:
            return self._point(touched, looks[0], looks[1])
        if self._pattern[0] != touched:
            shapes, strides = self.segments.shapes, self.segments.strides
            self._pattern = (touched, list(compress(shapes, touched)), list(compress(strides, touched)))
        self._kept = []  # freed first, so that the allocator gives new copies the old addresses
        if looks is not None and self._readable(present, looks):
            sources = self._point(touched, looks[0], looks[1])
            self._looks = looks
            return sources
        names = compress(self.segments.names, touched)
        present = self._kept = list(map(in_memory_order, names, present, *self._pattern[1:]))
        return self._point(touched, list(map(_address, present)), list(map(_dtype, present)))

    @property
    def has_copies(self) -> bool:
        """Whether copies of gradients are read, and not these themselves."""
        return bool(self._kept)

    def moved(self, addresses: npt.NDArray[np.int64]) -> Sources:
        """Points at gradients that differ from those of the last call of `scattered` in where they lie, and no more.

        Args:
            addresses: [variables], read for those that have a gradient.
        """
        rows = self._rows.copy()
        hit = rows[:, 0] != 0
        rows[hit, 0] = np.where(addresses == 0, EMPTY, addresses)[hit]
        self._step_back(rows, hit)
        if not (np.array_equal(rows, self._rows) and self.repeats):
            self._looks, self._place, self._addresses = None, None, []
            self._put(rows)
        return self._sources

    @property
    def repeats(self) -> bool:
        """Whether the table holds what was put there last, and need not be told so.

        Once a graph was captured, a replay may have put its own addresses into the table: what was seen is no proof.
        And a graph must bring its addresses itself, also those that are there while it is captured.
        """
        return self.uploads > 0 and not self._captured and not is_capturing(self.table)

    def _readable(self, present: Sequence[Tensor], looks: Looks) -> bool:
        """What `all_in_memory_order` says, of gradients that were looked at already."""
        _, shapes, strides = self._pattern
        return (
            looks[2] == strides
            and _DTYPES.issuperset(looks[1])
            and list(map(_shape, present)) == shapes
            and not any(map(Tensor.is_neg, present))
        )

    def gathered(self, stream: Tensor, touched: Sequence[bool]) -> Sources:
        """Points into the flat gradient stream, for the variables that are touched."""
        touched = list(touched)
        place = stream.data_ptr(), stream.dtype
        if place == self._place and touched == self._touched:
            return self._point(touched, self._addresses, self._dtypes)
        starts = self._starts if all(touched) else self._starts[np.array(touched, dtype=bool)]
        addresses = (starts * stream.element_size() + stream.data_ptr()).tolist()
        sources = self._point(touched, addresses, [stream.dtype] * len(addresses))
        self._place = place
        return sources

    def viewed(self, stream: Tensor, told: Sequence[bool] | None = None) -> Sources:
        """Points every variable into the flat gradient stream; which were written, the launch of the norm finds out.

        A stream starts as -0.0, which adds nothing: a variable of which every element still is -0.0 was not written.

        Args:
            told: Which variables have a gradient; read for those without elements alone, of which no launch can tell.
        """
        if self._place == (stream.data_ptr(), stream.dtype) and self._viewed is not None and self.repeats:
            return self._viewed
        numels = self.segments.numels
        if 0 in numels:
            told = told or [False] * len(numels)
            touched = [bool(numel or known) for numel, known in zip(numels, told, strict=True)]
        else:
            touched = [True] * len(numels)
        found = replace(self.gathered(stream, touched), viewed=True)
        self._viewed = None if 0 in numels else found
        return found

    def holds(self, sources: Sources) -> bool:
        """Whether the table still says what `viewed` returned, so that this may be launched with again."""
        return sources is self._viewed and self.repeats

    def _point(self, touched: list[bool], addresses: list[int], dtypes: list[torch.dtype]) -> Sources:
        seen = addresses == self._addresses and touched == self._touched and dtypes == self._dtypes
        if seen and self.repeats:
            return self._sources
        self._looks, self._place = None, None
        rows = np.zeros((len(touched), 2), dtype=np.int64)
        hit = np.flatnonzero(touched)
        placed: npt.NDArray[np.int64] = np.array(addresses, dtype=np.int64)
        kinds = set(dtypes)
        rows[hit, 0] = np.where(placed == 0, EMPTY, placed)
        rows[hit, 1] = CODE_OF[dtypes[0]] if len(kinds) == 1 else [CODE_OF[dtype] for dtype in dtypes]
        self._step_back(rows, hit)
        self._put(rows)
        uniform = next(iter(kinds)) if len(kinds) == 1 else None
        self._sources = Sources(self.table, touched, uniform if kinds else torch.float32)
        self._touched, self._addresses, self._dtypes = touched, addresses, dtypes
        return self._sources

    def _step_back(self, rows: npt.NDArray[np.int64], hit: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> None:
        """From addresses of shards to where the whole variables would begin, of those that have a gradient."""
        if self._firsts is not None:
            rows[hit, 0] -= self._firsts[hit] * ITEM_SIZES[rows[hit, 1]]

    def _put(self, rows: npt.NDArray[np.int64]) -> None:
        self._viewed = None
        self._upload(torch.from_numpy(rows))
        self._rows = rows
        self.uploads += 1

    def _upload(self, host: Tensor) -> None:
        if not is_capturing(self.table):
            upload(self.table, host)
            while self.table.is_cuda and len(self._spares) < SPARES:
                self._spares.append(torch.empty_like(host, pin_memory=True))
            return
        # A replay copies from this memory again, so it must live, unchanged, as long as the graph may; and page-locked
        # memory cannot be allocated during a capture, so it was set aside before.
        if not self._spares:
            raise FlatvarsError(
                f"a CUDA graph captured a step before it ran once, or more than {SPARES} steps of one store; run a few "
                "steps first, and capture fewer at a time"
            )
        spare = self._spares.pop()
        spare.copy_(host)
        self.table.copy_(spare, non_blocking=True)
        self._captured.append(spare)
