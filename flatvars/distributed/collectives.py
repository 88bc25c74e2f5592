"""The collectives that are used, in place on flat buffers; torch has renamed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 deprecates the names ending in `_tensor`, which older versions have alone.
_RENAMED = hasattr(dist, "reduce_scatter_single")
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single" if _RENAMED else "reduce_scatter_tensor", None)
_all_gather: Any = getattr(dist, "all_gather_single" if _RENAMED else "all_gather_into_tensor", None)

Message = Callable[[], None]
"""Sends zeros, of as many elements as something that was sent."""

_noted: list[Message] | None = None  # where messages are noted; steps are taken by one thread


@contextmanager
def heard() -> Iterator[list[Message]]:
    """Notes what is sent inside by this process's own calls of `add_up`, `gather_shares` and `exchange`."""
    global _noted
    outer, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = outer


def _note(send: Callable[..., None], tensors: tuple[Tensor, ...], *rest: Any) -> None:
    if _noted is not None:
        forms = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]  # not the memory

        def again() -> None:
            send(*(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in forms), *rest)

        _noted.append(again)


def average_share(share: Tensor, whole: Tensor, group: Any) -> None:
    """Writes this rank's range of the mean over ranks: share is [numel / ranks], whole is [numel] and stays."""
    _reduce_scatter(share, whole, op=dist.ReduceOp.AVG, group=group)


class Reduction:
    """An average that is under way.

    Args:
        piece: [numel]: written with the mean over ranks on the owner, and with anything on the others.
        owner: The rank that wants it.
    """

    def __init__(self, piece: Tensor, owner: int, group: Any) -> None:
        # Gloo knows no AVG here. Its own, of a reduce_scatter, is this sum and this division as well.
        has_mean = dist.get_backend(group) == dist.Backend.NCCL
        op = dist.ReduceOp.AVG if has_mean else dist.ReduceOp.SUM
        self._summed = None if has_mean or group.rank() != owner else piece
        self._world = group.size()
        self._work = dist.reduce(piece, group_dst=owner, op=op, group=group, async_op=True)

    def wait(self) -> None:
        """Until it is there; of a GPU, only what is launched from now on waits."""
        self._work.wait()
        if self._summed is not None:
            self._summed.div_(self._world)


def gather_shares(whole: Tensor, share: Tensor, group: Any) -> None:
    """Fills whole, [numel], with the ranges of all ranks; share may be this rank's range of it."""
    _note(gather_shares, (whole, share), group)
    _all_gather(whole, share, group=group)


def add_up(numbers: Tensor, group: Any) -> None:
    """Sums over ranks, in place."""
    _note(add_up, (numbers,), group)
    dist.all_reduce(numbers, op=dist.ReduceOp.SUM, group=group)


def exchange(received: Tensor, sent: Tensor, received_sizes: list[int], sent_sizes: list[int], group: Any) -> None:
    """Sends every rank its stretch of `sent`, and writes what they send one behind the other; sizes are by rank."""
    _note(exchange, (received, sent), received_sizes, sent_sizes, group)
    dist.all_to_all_single(received, sent, received_sizes, sent_sizes, group=group)


def send_from_first(tensor: Tensor, group: Any) -> None:
    """Makes every rank's tensor the first rank's, in place."""
    dist.broadcast(tensor, group=group, group_src=0)


def gather_numbers(number: Tensor, group: Any, world: int) -> Tensor:
    """One number of every rank, [ranks]."""
    found = number.new_empty(world)
    _all_gather(found, number.reshape(1), group=group)
    return found


def gather_objects(value: Any, group: Any, world: int) -> list[Any]:
    """A picklable object of every rank."""
    found: list[Any] = [None] * world
    dist.all_gather_object(found, value, group=group)
    return found
