"""Snapshots: the training state in host memory, one copy per stream; saved in the background, or rolled back to."""

from __future__ import annotations

import dataclasses
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, MismatchError
from ..memory.streams import Stream
from ..variables.registry import HasRegistry, Registry
from .background import Writer, writer_of
from .capture import capture
from .image import Image, Plane
from .opening import PathOrStream
from .rollback import Rollback
from .save import SHARD_SIZE, check_target, write

Key = tuple[str, torch.dtype]


def to_host(tensor: Tensor, memory: Tensor | None = None) -> Tensor:
    """A copy in host memory, pinned where a GPU writes it; there when the device's work up to now is done."""
    if memory is None:
        memory = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return memory.copy_(tensor.detach(), non_blocking=True)


class Snapshot:
    """A training state in host memory, made by `VarStore.snapshot`.

    Example:
        >>> store.snapshot(optimizer)
        Snapshot(2 variables, 1 optimizer, 768 bytes)
    """

    def __init__(self, registry: Registry, image: Image, rng: Any, writer: Writer) -> None:
        self._registry = weakref.ref(registry)
        self._image: Image | None = image
        self._rng = rng
        self._writer = writer
        self._ready: torch.cuda.Event | None = None
        if registry.device.type == "cuda":
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record(torch.cuda.current_stream(registry.device))

    def image(self) -> Image:
        """What was copied; waits until the device has copied it.

        Raises:
            CheckpointError: another snapshot took its memory over.
        """
        if self._image is None:
            raise CheckpointError(
                "this snapshot's memory was taken over by a later one (reuse=, or a ring of snapshots)"
            )
        if self._ready is not None:
            self._ready.synchronize()
        return self._image

    @property
    def nbytes(self) -> int:
        """Host memory that it takes."""
        image = self._image
        return 0 if image is None else sum(plane.held.nbytes for plane in image.planes)

    def __repr__(self) -> str:
        if self._image is None:
            return "Snapshot(its memory was taken over by a later one)"
        return f"Snapshot({self._image.content()}, {self.nbytes:,} bytes)"

    def save(self, path: PathOrStream, *, shard_size: int | str | None = SHARD_SIZE, wait: bool = False) -> None:
        """Writes a checkpoint in the background, as `VarStore.save` would have at the time of the snapshot.

        One save of a store is written at a time: if an earlier one is still at it, this call waits for it.

        Args:
            wait: Return when the file is there.

        Raises:
            CheckpointError: an earlier save failed; or the path says no format.
        """
        image = self.image()
        check_target(path, image, shard_size)
        self._writer.submit(lambda: write(image, path, shard_size), str(path), self)
        if wait:
            self._writer.wait()

    def wait(self) -> None:
        """Returns when saves of this store are on the disk.

        Raises:
            CheckpointError: one failed.
        """
        self._writer.wait()

    def _give_up(self) -> dict[Key, Stream]:
        """Its memory, for another snapshot; waits while it is being saved."""
        self._writer.wait_for(self)
        image, self._image = self._image, None
        return {} if image is None else {(plane.stream, plane.region): plane.held for plane in image.planes}


def take(registry: Registry, optimizer: Any, schedulers: Any, rng: Any, reuse: Snapshot | None) -> Snapshot:
    """See `VarStore.snapshot`."""
    writer = writer_of(registry)
    writer.raise_failure()
    image = capture(registry, optimizer, schedulers, rng)
    memory = reuse._give_up() if reuse is not None else {}
    planes: list[Plane] = []
    copies: dict[int, Stream] = {}
    for plane in image.planes:
        held = plane.held
        copy = copies[id(held)] = _copied(held, memory.get((plane.stream, plane.region)))
        planes.append(dataclasses.replace(plane, held=copy))
    image.planes = planes
    image.loose = {key: to_host(tensor) for key, tensor in image.loose.items()}
    for one in image.training.optimizers if image.training is not None else []:
        one.copy(to_host, copies)
    return Snapshot(registry, image, rng, writer)


def _copied(stream: Stream, old: Stream | None) -> Stream:
    """A copy of a stream in host memory, in that of an older one where it fits."""
    buffers = (stream.buffer, *stream.beside)
    memory = () if old is None else (old.buffer, *old.beside)
    fits = [(one.shape, one.dtype) for one in buffers] == [(one.shape, one.dtype) for one in memory]
    first, *beside = map(to_host, buffers, memory if fits else [None] * len(buffers))
    return dataclasses.replace(stream, buffer=first, beside=tuple(beside), shared=False)


def restore(registry: Registry, snapshot: Snapshot) -> None:
    """See `VarStore.restore`."""
    image = snapshot.image()
    if snapshot._registry() is not registry:
        raise MismatchError("the snapshot is of another store; save it, and load the file here")
    rollback = Rollback(registry, image, snapshot._rng)
    rollback.check()
    rollback.apply()


class SnapshotRing:
    """The last few snapshots of a training run, in memory that is allocated once.

    Args:
        store: Whose.
        optimizer, schedulers, rng: As for `VarStore.snapshot`.
        keep: How many.

    Example:
        >>> ring = SnapshotRing(store, optimizer, keep=3)
        >>> ring.take()
        >>> ring.restore()  # after a loss spike
    """

    def __init__(
        self,
        store: HasRegistry,
        optimizer: Any = None,
        schedulers: Any = None,
        rng: bool | Mapping[str, torch.Generator] = False,
        *,
        keep: int = 3,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep} snapshots is none; give at least 1")
        self._store = store
        self._of = (optimizer, schedulers, rng)
        self._keep = keep
        self._snapshots: deque[Snapshot] = deque()
        self._spare: list[Snapshot] = []

    def take(self) -> Snapshot:
        """Takes a snapshot; the oldest goes when there are more than `keep`, and its memory is used again."""
        reuse = self._spare.pop() if self._spare else None
        if reuse is None and len(self._snapshots) == self._keep:
            reuse = self._snapshots.popleft()
        self._snapshots.append(take(self._store.registry, *self._of, reuse))
        return self._snapshots[-1]

    def restore(self, back: int = 0) -> None:
        """Rolls the store back to the newest snapshot, or to one `back` before it; newer ones are dropped.

        Raises:
            CheckpointError: there is no such snapshot.
        """
        if not self._snapshots:
            raise CheckpointError("the ring holds no snapshot yet; call ring.take() where the state is good")
        if not 0 <= back < len(self._snapshots):
            raise CheckpointError(
                f"the ring holds {len(self._snapshots)} snapshots; there is none {back} before the last"
            )
        restore(self._store.registry, self._snapshots[-1 - back])
        for _ in range(back):
            self._spare.append(self._snapshots.pop())

    def __len__(self) -> int:
        return len(self._snapshots)

    def __repr__(self) -> str:
        nbytes = sum(one.nbytes for one in (*self._snapshots, *self._spare))
        return f"SnapshotRing({len(self)} of at most {self._keep} snapshots, {nbytes:,} bytes)"

    def __getitem__(self, index: int) -> Snapshot:
        return self._snapshots[index]
