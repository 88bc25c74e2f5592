"""What a module holds, with all names and places, and whether a store can take it."""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..distributed.shards import is_divided
from ..errors import SpecError
from ..memory.spec import VarSpec, contiguous_stride, is_dense
from ..memory.streams import is_shared
from ..variables.claims import is_any_owned
from ..variables.lazy import is_lazy
from ..variables.places import Place
from ..variables.registry import Registry, variable_of
from ..variables.variable import byte_range

PLAIN = frozenset({Tensor, nn.Parameter})
"""Classes of tensors that hold just what they seem to: a Parameter of another kind of tensor is of that one's class."""


@dataclass
class Found:
    """A tensor of a module, with every name and place it has there."""

    tensor: Tensor
    names: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    is_parameter: bool = True


def find_tensors(module: nn.Module, prefix: str, buffers: bool, *, persistent: bool = True) -> list[Found]:
    """Parameters in registration order, then buffers if asked for; tied ones once, with all their names.

    Args:
        persistent: Only buffers that the module's state dict holds.
    """
    found: dict[int, Found] = {}
    root = weakref.ref(module)
    for kind in ("_parameters", "_buffers") if buffers else ("_parameters",):
        for path, owner in module.named_modules(remove_duplicate=False):
            parts, reference = tuple(path.split(".")) if path else (), weakref.ref(owner)
            before = "".join(f"{part}." for part in (prefix, path) if part)
            passed = owner._non_persistent_buffers_set if persistent and kind == "_buffers" else set()
            for attribute, tensor in getattr(owner, kind).items():
                if tensor is None or attribute in passed:
                    continue
                place, entry = Place(reference, attribute, root, parts), found.get(id(tensor))
                if entry is None:
                    entry = found[id(tensor)] = Found(tensor, [], [place], kind == "_parameters")
                elif not any(one.owner() is owner and one.attribute == attribute for one in entry.places):
                    entry.places.append(place)
                entry.names.append(before + attribute)
    return list(found.values())


def make_spec(found: Found, dtype: torch.dtype | None) -> VarSpec:
    """The spec of a module's tensor.

    Raises:
        SpecError: a lazy, sparse, quantized, complex or subclassed tensor.
    """
    tensor, name = found.tensor, found.names[0]
    if type(tensor) not in PLAIN:
        _check_class(tensor, name)
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise SpecError(f"{name!r} is {tensor.layout} and quantized={tensor.is_quantized}; only dense tensors are held")
    kind, shape, stride = tensor.dtype, tuple(tensor.shape), tensor.stride()
    if kind.is_complex:
        raise SpecError(f"{name!r} is {kind}; hold torch.view_as_real of it as a parameter instead")
    if not is_dense(shape, stride):
        # An expanded or sliced tensor does not fill its memory: it becomes row-major, with the same values.
        stride = contiguous_stride(shape)
    kind = dtype if dtype is not None and kind.is_floating_point else kind
    return VarSpec(name, shape, kind, stride, found.is_parameter and tensor.requires_grad)


def _check_class(tensor: Tensor, name: str) -> None:
    """Raises SpecError for a tensor that is more, or less, than what it seems to hold."""
    if is_lazy(tensor):
        raise SpecError(
            f"{name!r} is a lazy parameter without a shape yet; adopt its module, whose lazy ones are taken in after a "
            "forward pass, or run one first"
        )
    if is_divided(tensor):
        raise SpecError(
            f"{name!r} is a DTensor, of which this rank has a shard: adopt the whole module into a store of its own, "
            "VarStore.from_module(module), and make optimizers of that"
        )
    if type(tensor.data) is not Tensor:
        raise SpecError(
            f"{name!r} holds a {type(tensor.data).__name__}, a tensor subclass with its own memory; adopt plain tensors"
        )


def check_private(found: Iterable[Found]) -> None:
    """Raises SpecError for a tensor whose memory other processes share: in the store, they would lose sight of it."""
    for entry in found:
        tensor = entry.tensor
        if tensor.is_cpu and has_storage(tensor) and is_shared(tensor) and tensor.numel():
            raise SpecError(
                f"{entry.names[0]!r} lies in memory that other processes may share (module.share_memory(), or a module "
                "that was sent to this process), and its place in a store would be a copy that they do not see. To "
                "train one copy in all processes, adopt the module where it is made, call store.share_memory_(), and "
                "step what was sent with torch.optim; to train another one here, adopt copy.deepcopy(module)"
            )


def has_storage(tensor: Tensor) -> bool:
    """Whether a tensor lies in a storage that it tells."""
    return tensor.layout == torch.strided and (type(tensor) in PLAIN or not (is_lazy(tensor) or is_divided(tensor)))


def check_free(found: list[Found], former: Registry | None = None) -> None:
    """Raises where a tensor belongs to a store already.

    Args:
        former: A store that gives up all it holds.
    """
    for entry in found if is_any_owned(entry.tensor for entry in found) else ():
        owner = variable_of(entry.tensor)
        if owner is not None and owner[0] is not former:
            raise SpecError(
                f"{entry.names[0]!r} belongs to a store already, as {owner[1].name!r}; one parameter lies in one "
                "buffer: use that store (VarStore.of(module)), let it go first (VarStore.of(module).release()), or "
                "adopt a deepcopy of the module"
            )


def check_memory(found: list[Found], former: Registry | None = None) -> None:
    """Raises where a tensor belongs to a store already, or two share memory without being one object.

    Args:
        former: A store that gives up all it holds.
    """
    check_free(found, former)
    tensors = [entry.tensor for entry in found]
    storages = [tensor.untyped_storage().data_ptr() if has_storage(tensor) else 0 for tensor in tensors]
    # Nearly every tensor has a storage of its own; of what has none, or no memory in it, the address is 0.
    met = {storage for storage, count in Counter(storages).items() if count > 1 and storage}
    ranges = sorted(
        (storage, *byte_range(entry.tensor), entry.names[0])
        for storage, entry in zip(storages, found, strict=True)
        if storage in met and entry.tensor.numel()
    )
    for (storage, _, stop, name), (other_storage, first, _, other) in itertools.pairwise(ranges):
        if first < stop and storage == other_storage:
            raise SpecError(
                f"{name!r} and {other!r} share memory but are different objects, so they would come apart in the "
                "store; tie them by assigning one Parameter to both modules"
            )
