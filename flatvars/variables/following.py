"""Following: memory that left the store, in a way that torch allows, is copied back in and is the store's again."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ..errors import AliasError, MovedWarning
from ..memory.spec import VarSpec, contiguous_stride, is_dense
from ..memory.streams import VALUES, is_shared
from .binding import describe_stray
from .variable import GradientAccess, Variable, byte_range, overlaps


class Mover(Protocol):
    """What following asks of the registry."""

    device: torch.device
    variables: list[Variable]

    def is_bound(self, variable: Variable, param: Tensor) -> bool: ...

    def move_in(self, variable: Variable, param: Tensor) -> None: ...

    def hold(self, variable: Variable, param: Tensor) -> None: ...

    def lay_out(self, specs: Sequence[VarSpec], device: torch.device, fresh: Sequence[Variable] = ()) -> None: ...

    @property
    def gradients(self) -> GradientAccess: ...

    def view(self, stream: str, variable: Variable) -> Tensor: ...

    def write(self, variable: Variable, numbers: Tensor) -> None: ...

    def spread(self) -> list[tuple[int, int]]: ...


@torch.no_grad()
def take_back(registry: Mover, moved: Mapping[Variable, Tensor], buffers: Mapping[Variable, Tensor]) -> None:
    """Takes in tensors that stand where variables did: a copy of each, or one re-carve where dtypes or devices changed.

    Or where somebody still looks at the memory that the variable had, as who keeps `p.data`, assigns other values for
    an evaluation and puts it back: that memory must stay as it is.

    Args:
        moved: Variables whose memory is not their span any more, with the tensors that modules use instead: mostly the
            variable's own.
        buffers: The same of buffers, of which nothing can be lost: they may have other shapes, and share memory.

    Raises:
        AliasError: following would lose something: another shape, no values, memory that others share. Nothing has
            changed then.
    """
    for variable, tensor in moved.items():
        if reason := why_not(variable, tensor):
            raise AliasError(describe_stray(variable, reason))
    check_apart(registry, moved)
    moved = {**moved, **buffers}
    leave_behind(moved)
    same = all(spec_of(v, tensor) == v.spec and tensor.device == registry.device for v, tensor in moved.items())
    if same and not any(map(is_held, moved)):
        for variable, tensor in moved.items():
            if overlaps(tensor, registry.view(VALUES, variable)):  # its own, in another order
                variable.param.data = tensor.detach().clone()
            registry.move_in(variable, tensor)
    else:
        take_in(registry, [moved.get(variable, variable.param) for variable in registry.variables])


@torch.no_grad()
def take_in(registry: Mover, tensors: Sequence[Tensor]) -> list[str]:
    """One re-carve by tensors of all variables, whose values, shapes, dtypes and device count.

    A variable that got another shape begins anew: its gradient, state and mask were those of other elements.

    Returns:
        Names of those whose values were taken in.

    Raises:
        AliasError: they lie on several devices. Nothing has changed then.
    """
    variables = registry.variables
    devices = {tensor.device for tensor in tensors} or {registry.device}
    if len(devices) > 1:
        raise AliasError(
            f"variables now lie on several devices ({', '.join(sorted(map(str, devices)))}); move the whole module to "
            "one of them"
        )
    specs = [spec_of(variable, tensor) for variable, tensor in zip(variables, tensors, strict=True)]
    fresh = [v for v, spec in zip(variables, specs, strict=True) if spec.shape != v.spec.shape]
    strayed = {
        variable.index: tensor.detach()
        for variable, tensor in zip(variables, tensors, strict=True)
        if variable in fresh or not registry.is_bound(variable, tensor)
    }
    grads = [(v, tensor.grad) for v, tensor in zip(variables, tensors, strict=True) if v in fresh and tensor.is_leaf]
    registry.gradients.release(fresh)
    for variable, tensor in zip(variables, tensors, strict=True):
        if tensor is not variable.param:
            registry.hold(variable, tensor)
    registry.lay_out(specs, devices.pop(), fresh)
    for index, values in strayed.items():
        registry.write(variables[index], values)
    for variable, grad in grads:
        if grad is not None and tuple(grad.shape) == variable.spec.shape:
            variable.param.grad = grad
    return [variables[index].name for index in strayed]


def spec_of(variable: Variable, tensor: Tensor) -> VarSpec:
    """The variable's spec if the tensor is its value; equal to what it is if nothing changed."""
    shape, stride = tuple(tensor.shape), tensor.stride()
    if shape == variable.spec.shape and (not is_dense(shape, stride) or _alike(shape, stride, variable.spec.stride)):
        stride = variable.spec.stride
    elif not is_dense(shape, stride):
        stride = contiguous_stride(shape)
    room = variable.spec.has_room and tensor.dtype.is_floating_point
    return dataclasses.replace(variable.spec, shape=shape, stride=stride, dtype=tensor.dtype, has_room=room)


def _alike(shape: Sequence[int], stride: Sequence[int], other: Sequence[int]) -> bool:
    """Whether strides put all elements in the same order; those of axes of length 1 mean nothing."""
    return 0 in shape or all(n == 1 or a == b for n, a, b in zip(shape, stride, other, strict=True))


def why_unheld(tensor: Tensor) -> str | None:
    """Why no store can hold a tensor, or None."""
    if tensor.layout != torch.strided or tensor.is_quantized or type(tensor.data) is not Tensor:
        return (
            f"it is a {type(tensor.data).__name__} of layout {tensor.layout} now (fully_shard and parallelize_module "
            "make DTensors of parameters: call them before the store is made)"
        )
    if tensor.is_meta:
        return "it lies on the meta device now, without values"
    if tensor.dtype.is_complex:
        return f"it is {tensor.dtype} now"
    if tensor.numel() and not tensor.untyped_storage().nbytes():
        return "its storage was resized to 0 bytes, and its values are gone"
    return None


def why_not(variable: Variable, tensor: Tensor) -> str | None:
    """What would be lost if a tensor was simply taken in as the variable's value, or None."""
    if reason := why_unheld(tensor):
        return reason
    if tuple(tensor.shape) != variable.spec.shape:
        return "gradient and state of another shape would be lost"
    if tensor.device.type == "cpu" and is_shared(tensor):
        return "other processes that share its memory now would lose sight of it"
    return None


def check_apart(registry: Mover, moved: Mapping[Variable, Tensor]) -> None:
    """Raises AliasError where tensors share memory, with each other or with a variable: copies would come apart."""
    mine = {v: registry.view(VALUES, v) for v in moved}
    others = [(v, t) for v, t in moved.items() if t.numel() and not within(byte_range(t), byte_range(mine[v]))]
    ranges = [(*byte_range(tensor), variable.name) for variable, tensor in others]
    ranges += [(*reach, "") for reach in registry.spread()]
    ranges.sort()
    for (_, stop, name), (first, _, other) in pairwise(ranges):
        if first < stop:
            taken, shared = (name, other) if name else (other, name)
            raise AliasError(
                f"variable {taken!r} no longer lies in its store, and cannot be taken back: its Parameter now shares "
                f"memory with {f'variable {shared!r}' if shared else 'another variable of the store'}, and the two "
                "would come apart. Assign the one Parameter to both modules and call store.rebind(), or assign a "
                "clone() of the values"
            )


def is_held(variable: Variable) -> bool:
    """Whether anybody looks at the memory that a variable's Parameter was bound to, and is not now.

    Plain views of a buffer, as those of a shared store, are not told from it: they count as let go.
    """
    storage = None if variable.memory is None else variable.memory()
    return storage is not None and storage.nbytes() == variable.spec.numel * variable.dtype.itemsize


def leave_behind(moved: Mapping[Variable, Tensor]) -> None:
    """Gives tensors that were replaced values in memory of their own: who kept one goes on seeing what it held."""
    for variable, tensor in moved.items():
        if tensor is not variable.param:
            variable.param.data = variable.param.detach().clone(memory_format=torch.preserve_format)


def within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    """Whether one range of addresses lies in another."""
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def tell(variables: Sequence[Variable]) -> None:
    """Warns that these were followed."""
    more = f" and {len(variables) - 1} more" if len(variables) > 1 else ""
    warnings.warn(
        f"variable {variables[0].name!r}{more} had left the store (module.to(), half(), `.data =`, "
        "vector_to_parameters, load_state_dict(assign=True), a conversion inside a forward pass): the values were "
        "copied back in, which costs a copy each time and is not told again. VarStore(on_moved='error') raises "
        "instead",
        MovedWarning,
        stacklevel=2,
    )
