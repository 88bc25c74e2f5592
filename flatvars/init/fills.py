"""Writing first values: one launch per stream, whatever variables, initializers and shapes lie in it.

The value of an element depends on (seed, name, row-major index) alone: the words of variable `name` are those of
Philox4x64-10 with the key (seed, name_key(name)). Not on creation order, offsets, padding, dtype or device, nor on what
part is filled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .. import backend
from ..backend import Draw, Fill
from ..errors import InitError
from ..memory.spec import contiguous_stride, is_dense
from .initializers import Initializer, Orthogonal, Sparse, check_initializer


@dataclass(frozen=True, eq=False)
class Target:
    """A variable, or a stretch of one, that gets first values.

    Attributes:
        name: Of the variable; the generator's key.
        stream: Flat memory, [numel] contiguous: a store's values, or a lone parameter's own.
        offset: Element of the stream where the variable's element `first` lies.
        shape, stride: Of the whole variable; dense, in elements.
        first, count: A stretch in row-major order, for a shard of a row-major variable; all of it if not given.
    """

    name: str
    initializer: Initializer
    stream: Tensor
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    first: int = 0
    count: int | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def view(self) -> Tensor:
        """The variable in its own shape."""
        # Not as_strided with an offset: that counts from the storage, in which the stream may begin later.
        return self.stream[self.offset :].as_strided(self.shape, self.stride)


def name_key(name: str) -> int:
    """The generator's key of a name: the first 8 bytes of its SHA-256, little-endian."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def check_seed(seed: int) -> None:
    """Raises InitError for a seed out of [0, 2^64)."""
    if not 0 <= seed < 2**64:
        raise InitError(f"seed {seed} does not fit 64 bits; give an integer in [0, 2**64)")


def check_keys(names: Iterable[str]) -> dict[str, int]:
    """The keys of names.

    Raises:
        InitError: two different names have one key, and would get the same values.
    """
    keys: dict[str, int] = {}
    seen: dict[int, str] = {}
    for name in names:
        if name in keys:
            continue
        key = keys[name] = name_key(name)
        other = seen.setdefault(key, name)
        if other != name:
            raise InitError(f"the names {other!r} and {name!r} have the same 64-bit hash; rename one of the two")
    return keys


def fill_(targets: Sequence[Target], seed: int) -> None:
    """Writes first values: one launch per stream, then what orthogonal and sparse variables need beyond it.

    All targets are checked before the first is written.

    Args:
        targets: Which do not overlap.
        seed: In [0, 2^64).

    Raises:
        InitError: an initializer that does not fit its variable, a seed out of range, two names of one hash.
    """
    for work in prepare(targets, seed):
        work()


def prepare(targets: Sequence[Target], seed: int) -> list[Callable[[], None]]:
    """The calls that `fill_` makes, checked: for those who write several things or nothing."""
    check_seed(seed)
    keys = check_keys(target.name for target in targets)
    lengths = {key: check_stream(stream) for key, stream in {id(t.stream): t.stream for t in targets}.items()}
    # A model has thousands of variables and a few initializers and shapes. By identity: -0.0 and 0.0 are equal.
    draws: dict[tuple[int, tuple[int, ...], torch.dtype], Draw] = {}
    streams: dict[object, tuple[Tensor, list[Fill]]] = {}
    singles: list[Callable[[], None]] = []
    for target in targets:
        stream, initializer = target.stream, target.initializer
        kind = (id(initializer), target.shape, stream.dtype)
        if kind not in draws:
            draws[kind] = checked_draw(target)
        fill = checked_fill(target, draws[kind], keys[target.name], lengths[id(stream)])
        if fill.count == 0:
            continue
        if not stream.dtype.is_floating_point:
            singles.append(partial(_fill_plain, stream, fill))
        elif isinstance(initializer, Orthogonal):
            singles.append(partial(_fill_orthogonal, target, initializer, fill, seed))
        else:
            place = (stream.device, stream.dtype, stream.data_ptr(), lengths[id(stream)])
            streams.setdefault(place, (stream, []))[1].append(fill)
            if isinstance(initializer, Sparse):
                singles.append(partial(_finish_sparse, target, initializer, seed))
    launches = [partial(_launch, stream, fills, seed) for stream, fills in streams.values()]
    return [*launches, *singles]


def check_stream(stream: Tensor) -> int:
    """The length of a stream.

    Raises:
        InitError: it is not flat memory.
        FlatvarsError: no backend writes to its device.
    """
    if stream.is_meta or stream.dim() != 1 or not stream.is_contiguous():
        raise InitError(
            f"variables are written into a flat contiguous stream, not into one of shape {tuple(stream.shape)} and "
            f"strides {stream.stride()} on {stream.device}"
        )
    backend.backend_for(stream.device)
    return len(stream)


def checked_draw(target: Target) -> Draw:
    """What the target's initializer writes into its shape and dtype; nothing into a shape without elements."""
    dtype = target.stream.dtype
    check_initializer(target.initializer, f"the initializer of {target.name!r}")
    if not dtype.is_floating_point and not target.initializer.is_constant:
        raise InitError(
            f"variable {target.name!r} is {dtype} and takes zeros(), ones() or constant(), not {target.initializer}"
        )
    try:
        return target.initializer.draw(target.shape, dtype) if target.numel else Draw(0, (0.0,))
    except InitError as error:
        raise InitError(f"variable {target.name!r}: {error}") from None


def checked_fill(target: Target, draw: Draw, key: int, length: int) -> Fill:
    """The target as kernels want it.

    Raises:
        InitError: says which variable, and what does not fit.
    """
    numel, first, offset = target.numel, target.first, target.offset
    count = numel - first if target.count is None else target.count
    if not 0 <= first <= first + count <= numel or not 0 <= offset <= offset + count <= length:
        raise InitError(
            f"elements {first} to {first + count} of variable {target.name!r} with {numel} do not fit a stream of "
            f"{length} at {offset}"
        )
    fill = Fill(offset, target.shape, target.stride, draw, key, first, count)
    if not fill.row_major and not is_dense(target.shape, target.stride):
        raise InitError(
            f"variable {target.name!r} of shape {target.shape} and strides {target.stride} is not dense; give those of "
            "a contiguous or permuted tensor"
        )
    if count != numel and (isinstance(target.initializer, (Orthogonal, Sparse)) or not fill.row_major):
        raise InitError(f"a part of variable {target.name!r} cannot be filled by {target.initializer}; fill all of it")
    return fill


@torch.no_grad()
def _launch(stream: Tensor, fills: Sequence[Fill], seed: int) -> None:
    backend.fill_(stream, fills, seed)


@torch.no_grad()
def _fill_plain(stream: Tensor, fill: Fill) -> None:
    stream[fill.start : fill.start + fill.count].fill_(fill.draw.numbers[0])


@torch.no_grad()
def _fill_orthogonal(target: Target, initializer: Orthogonal, fill: Fill, seed: int) -> None:
    dtype = torch.float64 if target.stream.dtype == torch.float64 else torch.float32
    normals = torch.empty(target.numel, dtype=dtype, device=target.stream.device)
    shape, stride = target.shape, contiguous_stride(target.shape)
    backend.fill_(normals, [Fill(0, shape, stride, fill.draw, fill.key, 0, fill.count)], seed)
    initializer.finish_(target.view(), normals)


@torch.no_grad()
def _finish_sparse(target: Target, initializer: Sparse, seed: int) -> None:
    initializer.finish_(target.view(), seed, name_key(target.name))
