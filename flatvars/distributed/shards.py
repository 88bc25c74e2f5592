"""Shards of DTensors: what FSDP2, HSDP and tensor parallelism made of a module's parameters, by their public API alone.

A shard is this rank's plain tensor, wherever torch put it. A norm over shards of mixed meshes is exact: every variable
counts once, however many ranks hold the same numbers of it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..backend import UNIT
from ..errors import FlatvarsError
from .collectives import add_up


def is_divided(tensor: Any) -> bool:
    """Whether a tensor is a DTensor. Who has any has imported them; nobody else waits for that import."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_successor(tensor: Any, whole: Any) -> bool:
    """Whether a tensor is another DTensor than one, divided alike: not the whole one that FSDP2 puts in its place."""
    return (
        tensor is not whole
        and is_divided(tensor)
        and tensor.device_mesh == whole.device_mesh
        and tensor.placements == whole.placements
    )


@torch.no_grad()
def local_of(tensor: Any) -> Tensor:
    """This rank's shard of a DTensor, in place."""
    local: Tensor = tensor.to_local()
    return local.detach()


@torch.no_grad()
def grads_of(wholes: Iterable[Any]) -> list[Tensor | None]:
    """This rank's shards of the gradients that lie in `.grad` of DTensors, each divided as the DTensor itself.

    Sequence parallelism leaves sums of which each rank has a part: they are added up here, on all ranks.
    """
    return [_grad_of(whole, whole.grad) for whole in wholes]


def _grad_of(whole: Any, grad: Any) -> Tensor | None:
    if grad is None:
        return None
    if grad.placements != whole.placements:
        grad = grad.redistribute(placements=whole.placements)
    shard: Tensor = grad.to_local()  # itself, as autograd looks at nothing here
    return shard


@torch.no_grad()
def divided_as(whole: Any, local: Tensor) -> Tensor:
    """A DTensor over a shard, in place, that is divided as another one is."""
    from torch.distributed.tensor import DTensor

    if local.device.type != whole.device_mesh.device_type:
        return beside_mesh(whole, local)
    made: Tensor = DTensor.from_local(
        local, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return made


def beside_mesh(whole: Any, local: Tensor) -> Tensor:
    """The same for a shard that FSDP2 keeps on the CPU while the mesh is of GPUs, where `from_local` would copy it.

    By the protocol of traceable tensor subclasses, which takes a shard as it is.
    """
    names, (placements, meta, *rest, _requires_grad) = whole.__tensor_flatten__()
    inner = {name: local if name == names[0] else getattr(whole, name) for name in names}
    context = (placements, meta._replace(dtype=local.dtype), *rest, False)
    made: Tensor = type(whole).__tensor_unflatten__(inner, context, whole.shape, whole.stride())
    return made


@torch.no_grad()
def shard_as(whole: Any, value: Any) -> Any:
    """This rank's shard of a tensor of the whole shape, divided already or not; anything else as it is."""
    from torch.distributed.tensor import distribute_tensor

    if not isinstance(value, Tensor) or value.shape != whole.shape:
        return value
    if not is_divided(value):
        value = distribute_tensor(value, whole.device_mesh, whole.placements, src_data_rank=None)
    elif value.placements != whole.placements:  # type: ignore[attr-defined]
        value = value.redistribute(placements=whole.placements)  # type: ignore[attr-defined]
    return local_of(value)


def whole_of(value: Any) -> Any:
    """All of a DTensor, which is a collective; anything else as it is."""
    return value.full_tensor() if is_divided(value) else value


def stretches_of(whole: Any) -> list[tuple[int, int]]:
    """The elements of a row-major DTensor that lie here, as (first, number), in the order in which they lie here.

    One for a shard of rows, one for each row of a shard of columns.

    Raises:
        FlatvarsError: see `indices_of`.
    """
    return _stretches(tuple(whole.shape), indices_of(whole))


def indices_of(whole: Any) -> list[npt.NDArray[np.int64]]:
    """Along each axis of a DTensor, the indices of which this rank has elements, in their order: those of all of them.

    torch itself divides a list of indices of each axis as the tensor is divided along it; no tensor of the whole shape
    is made.

    Raises:
        FlatvarsError: an axis behind the first is divided otherwise than by torch's `Shard`.
    """
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    shape, mesh = tuple(whole.shape), whole.device_mesh
    indices = []
    for axis, length in enumerate(shape):
        ways = [p if getattr(p, "dim", None) == axis else Replicate() for p in whole.placements]
        if axis:  # of the first, FSDP2 over tensor parallelism has another way
            ways = [Shard(0) if p.is_shard(axis) else p for p in ways]
        if any(getattr(p, "dim", 0) for p in ways):
            raise FlatvarsError(
                f"a tensor of shape {shape} is divided along its dimension {axis} in more than one way, as "
                f"{whole.placements}, and which of its elements a rank has is only known of the first dimension. Let "
                "fully_shard divide the first, as it does if shard_placement_fn= is left out or returns Shard(0) for "
                f"this parameter, or let parallelize_module divide another one than {axis}; then make the store anew"
            )
        numbers = torch.arange(length, device=mesh.device_type)
        indices.append(local_of(distribute_tensor(numbers, mesh, ways, src_data_rank=None)).cpu().numpy())
    return indices


def _stretches(shape: tuple[int, ...], indices: list[npt.NDArray[np.int64]]) -> list[tuple[int, int]]:
    """Of a row-major shape, elements with these indices along each axis."""
    if not all(map(len, indices)):
        return []
    cut = max((axis for axis, some in enumerate(indices) if len(some) < shape[axis]), default=0)
    inner = math.prod(shape[cut + 1 :])
    begins = np.zeros(1, dtype=np.int64)
    for axis, some in enumerate(indices[:cut]):
        begins = (begins[:, None] + some * math.prod(shape[axis + 1 :])).ravel()
    some = indices[cut] if shape else np.zeros(1, dtype=np.int64)
    runs = np.split(some, np.flatnonzero(np.diff(some) != 1) + 1)
    return [(int(begin + run[0] * inner), len(run) * inner) for begin in begins for run in runs]


def first_of(whole: Any) -> int:
    """Which element of a row-major DTensor its shard here begins with, where kernels may count from the whole's start.

    Returns:
        0 where the shard is no single run of elements, or begins at no multiple of 16, which vector loads need.
    """
    if whole.dim() == 0:
        return 0
    stretches = stretches_of(whole)
    first = stretches[0][0] if len(stretches) == 1 else 0
    return 0 if first % 16 else first


def cuts_units(tensor: Any) -> bool:
    """Whether a border between ranks lies inside of a unit: of 128 elements, counted from the start of a DTensor.

    It goes by the shape of the whole, the placements and the mesh, so that all ranks say the same. Along the last axis
    that is divided, a shard has runs of elements of the whole, one for each index of the axes before.

    Returns:
        False where every rank has all of it; True also where an axis that is divided in several ways may cut units.
    """
    if not is_divided(tensor) or not tensor.numel():
        return False
    mesh = tensor.device_mesh
    ways = [(p, mesh.size(k)) for k, p in enumerate(tensor.placements) if not p.is_replicate() and mesh.size(k) > 1]
    axis = max((p.dim for p, _ in ways), default=0)
    inner, ways = math.prod(tensor.shape[axis + 1 :]), [way for way in ways if way[0].dim == axis]
    if not ways or inner % UNIT == 0:
        return False
    if len(ways) > 1 or not ways[0][0].is_shard(axis):
        return True
    length, is_one_run = tensor.shape[axis], math.prod(tensor.shape[:axis]) == 1
    each = -(-length // ways[0][1])  # as torch.chunk
    between = each >= length or each * inner % UNIT == 0
    return not (between and (is_one_run or length * inner % UNIT == 0))


def rows_of(tensor: Any) -> tuple[Any, int, list[tuple[int, int]]] | None:
    """Who has which elements of a tensor in memory order: a process group, this rank in it, first and last of each.

    Returns:
        None where every rank has all of it.

    Raises:
        FlatvarsError: it is divided along another axis than the first, or over more than one dimension of a mesh.
    """
    if not is_divided(tensor):
        return None
    mesh, cuts = tensor.device_mesh, [i for i, p in enumerate(tensor.placements) if not p.is_replicate()]
    if not cuts:
        return None
    local, inner = local_of(tensor), math.prod(tensor.shape[1:])
    world, rank = mesh.size(cuts[0]), mesh.get_local_rank(cuts[0])
    rows = -(-tensor.shape[0] // world)  # as torch.chunk
    ends = [min(rows * k, tensor.shape[0]) * inner for k in range(world + 1)]
    runs = list(pairwise(ends))
    if len(cuts) > 1 or not tensor.placements[cuts[0]].is_shard(0) or local.numel() != runs[rank][1] - runs[rank][0]:
        raise FlatvarsError(
            f"a tensor of shape {tuple(tensor.shape)} is divided as {tensor.placements}, and only rows over one "
            "dimension of a mesh, as fully_shard divides them, are put together on one rank"
        )
    return mesh.get_group(cuts[0]), rank, runs


class Sharding:
    """The meshes over which the tensors of a store are divided.

    Args:
        tensors: DTensors, at least one, and plain tensors, of which every rank has the same.

    Attributes:
        mesh: The one that all others are parts of.

    Raises:
        FlatvarsError: no mesh has the ranks of all others.
    """

    def __init__(self, tensors: Sequence[Any]) -> None:
        meshes = {id(t.device_mesh): t.device_mesh for t in tensors if is_divided(t)}
        self.mesh = max(meshes.values(), key=lambda mesh: mesh.size())
        ranks = set(self.mesh.mesh.flatten().tolist())
        for mesh in meshes.values():
            if not ranks.issuperset(mesh.mesh.flatten().tolist()):
                raise FlatvarsError(
                    f"the module's parameters are divided over {self.mesh} and over {mesh}, and neither has the ranks "
                    "of the other, so that no norm of all gradients could be taken: divide at least one parameter "
                    "over a mesh of all dimensions, as fully_shard(model, mesh=...) after parallelize_module does"
                )
        self._groups = [self.mesh.get_group(axis) for axis in range(self.mesh.ndim)]

    def share_of(self, tensor: Any) -> float:
        """What one rank's square sum counts in that of all ranks: 1 / number of ranks that have the same numbers."""
        if not is_divided(tensor):
            return 1.0 / float(self.mesh.size())
        sizes = [tensor.device_mesh.size(axis) for axis, p in enumerate(tensor.placements) if not p.is_replicate()]
        return float(math.prod(sizes)) / float(self.mesh.size())

    def add_up(self, numbers: Tensor) -> Tensor:
        """Sums over all ranks of the mesh: one all_reduce for each of its dimensions, on the device it is of."""
        there = numbers.to(self.mesh.device_type)
        for group in self._groups:
            add_up(there, group)
        return there.to(numbers.device)

    def found(self, found_inf: Tensor | None) -> Tensor | None:
        """Whether a GradScaler of any rank found an infinity, float32 []; None if there is no scaler."""
        return None if found_inf is None else self.add_up(found_inf.to(torch.float64)).to(torch.float32)

    @torch.no_grad()
    def moved(self, pairs: Sequence[tuple[Tensor, Any]]) -> dict[int, Tensor]:
        """Which shards are other memory now, of those given with their DTensors, and what they are."""
        found = {}
        for k, (shard, whole) in enumerate(pairs):
            if shard is whole:
                continue
            local = whole.to_local()
            if local.data_ptr() != shard.data_ptr() or local.shape != shard.shape or local.dtype != shard.dtype:
                found[k] = local.detach()
        return found
