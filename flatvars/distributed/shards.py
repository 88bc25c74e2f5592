"""Shards of DTensors: what FSDP2, HSDP and tensor parallelism made of a module's parameters, by their public API alone.

A shard is this rank's plain tensor, wherever torch put it. A norm over shards of mixed meshes is exact: every variable
counts once, however many ranks hold the same numbers of it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import FlatvarsError
from .collectives import add_up


def is_divided(tensor: Any) -> bool:
    """Whether a tensor is a DTensor. Who has any has imported them; nobody else waits for that import."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


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
