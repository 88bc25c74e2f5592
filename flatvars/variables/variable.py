"""Variable: the record a store keeps of one of its named tensors."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..distributed.shards import divided_as, local_of, shard_as
from ..errors import FlatvarsError, SpecError
from ..memory.layout import Span
from ..memory.spec import VarSpec
from .places import Place


class GradientAccess(Protocol):
    """What a variable asks of whatever keeps gradients."""

    @property
    def mode(self) -> str:
        """How they are kept: "gather" or "views"."""

    def of(self, variable: Variable) -> Tensor | None:
        """The gradient, wherever it lies, or None."""

    def add(self, variable: Variable, grad: Tensor) -> None:
        """Adds to the gradient; None counts as zero."""

    def zero(self, set_to_none: bool = True, variables: Sequence[Variable] | None = None) -> None:
        """Forgets gradients, or makes zeros of them."""

    def release(self, variables: Sequence[Variable]) -> None:
        """Forgets variables that leave, or get another shape: their gradients are left in `.grad`, in own memory."""


class MaskAccess(Protocol):
    """What a variable asks of whatever says which of its elements train."""

    def of(self, variable: Variable) -> Tensor | None:
        """Which elements train, bool [shape], or None where all do."""

    def take(self, variable: Variable, mask: Tensor | None) -> None:
        """Makes the mask of a variable what `of` told of another."""

    def freeze(self, variables: Sequence[Variable], clear_grad: bool = True) -> None:
        """Stops training whole variables."""

    def check(self) -> None:
        """Raises where something is masked that is no element."""


class Home(Protocol):
    """What a variable asks of its registry."""

    @property
    def gradients(self) -> GradientAccess: ...

    @property
    def masks(self) -> MaskAccess: ...

    def settle(self) -> None:
        """Carves what was declared."""

    def clone(self, variable: Variable, name: str | None) -> Variable:
        """Declares a copy of a variable."""

    def read(self, variable: Variable) -> Tensor:
        """The numbers of a variable."""

    def write(self, variable: Variable, numbers: Tensor) -> None:
        """Replaces the numbers of a variable."""


Described = tuple[torch.dtype, torch.Size, tuple[int, ...], torch.device]
"""What of a tensor decides where it lies."""


class View(NamedTuple):
    """A variable's value and gradient (None if it has none) in another shape; both share memory with the variable."""

    value: Tensor
    grad: Tensor | None


class Variable:
    """A named tensor of a store.

    Two variables are equal when id and name are.

    Attributes:
        id: Unique in the store and never used again; stays when the variable is renamed, moved or converted.
        index: Position in creation order; negative once it was removed from its store.
        spec: Name, shape, dtype and memory order.
        param: The Parameter (or buffer) whose memory is the variable's span. It stays the same object for life.
        whole: What modules and param groups hold: the DTensor of which `param` is this rank's shard, in the same
            memory; everywhere else `param` itself.
        first: Of a shard that is one run of the whole variable's elements in memory order: the first of them. 0 also
            where it is no multiple of 16: kernels then count from the shard's own start.
        names: All names it goes by in its modules, the first is its own; more than one for tied weights.
        places: Where modules hold it.
        shard_places: Where modules hold the DTensor of which it is a shard, while FSDP2 has put no whole tensor there.
        declared: What its tensor was when it was declared, for want of a carve: what differs by then, the user changed.
        is_leaf: Whether it is trained as a plain leaf tensor, which is no Parameter.
        is_numbered: Whether its name is but a number, for want of one; a module that is watched gives it its own.
        group: Param group of optimizers that are made from the store.
        initializer: Of `flatvars.init`, if one wrote its values; `store.reinit` runs it again.
    """

    _whole: Tensor | None = None
    first = 0
    initializer: Any = None
    is_leaf = False
    is_numbered = False
    declared: Described | None = None
    # By the store. Plain requires_grad_(False) is not: what it leaves in `.grad` is stepped, as by torch.optim.
    frozen = False
    state_epoch = 0  # grows when the room for its gradient and state is given up
    shard_places: Sequence[Place] = ()

    def __init__(
        self, id: int, index: int, spec: VarSpec, param: Tensor, names: list[str], registry: Home, group: int = 0
    ) -> None:
        self.id = id
        self.index = index
        self.spec = spec
        self.param = param
        self.names = names
        self.group = group
        self.places: list[Place] = []
        self._span: Span | None = None
        # The memory that its Parameter was bound to last: gone unless somebody else looks at it as well.
        self.memory: weakref.ref[torch.UntypedStorage] | None = None
        # Weak: the registry holds its variables, and buffers must go with the last handle of the store.
        self._reference = weakref.ref(registry)

    # What it is -----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.spec.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.spec.dtype

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return self.spec.numel

    @property
    def whole(self) -> Tensor:
        return self.param if self._whole is None else self._whole

    @whole.setter
    def whole(self, tensor: Tensor) -> None:
        self._whole = tensor

    @property
    def is_shard(self) -> bool:
        """Whether it is this rank's shard of a DTensor."""
        return self._whole is not None

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Of the whole variable, of which this rank may have a shard."""
        return self.spec.shape if self._whole is None else tuple(self._whole.shape)

    def as_whole(self, local: Tensor) -> Tensor:
        """What a tensor of this rank's shard, [shape], is a shard of; the tensor itself where nothing is sharded."""
        return local if self._whole is None else divided_as(self._whole, local)

    def shard_of(self, value: Any) -> Any:
        """The inverse: this rank's shard of a tensor of the whole shape; anything else as it is."""
        return value if self._whole is None else shard_as(self._whole, value)

    @property
    def requires_grad(self) -> bool:
        return self.whole.requires_grad

    @property
    def is_buffer(self) -> bool:
        """Whether it is a value that nobody trains: neither a Parameter nor a leaf that was given to be trained."""
        return not self.is_leaf and not isinstance(self.param, nn.Parameter)

    @property
    def is_parameter(self) -> bool:
        """Whether it was declared to be trained: of a floating dtype, and not a buffer."""
        return not self.is_buffer and self.dtype.is_floating_point

    @property
    def trains(self) -> bool:
        """Whether steps may move it: it has room for a gradient and state, and the store has not frozen it."""
        return self.spec.has_room and not self.frozen

    @property
    def span(self) -> Span:
        """Where it lies; carves what was declared and not carved yet."""
        if self._span is None:
            self._registry.settle()
        assert self._span is not None
        return self._span

    @property
    def _registry(self) -> Home:
        registry = self._reference()
        if registry is None:
            raise FlatvarsError(
                f"the store of variable {self.name!r} is gone; keep the VarStore, or a module it adopted, alive"
            )
        return registry

    def has_shape(self, shape: Sequence[int]) -> bool:
        return tuple(shape) == self.spec.shape

    # Value ----------------------------------------------------------------------------------------------------------

    @property
    def value(self) -> Tensor:
        """The values, [shape], detached; a view of the store's buffer, or this rank's shard, wherever it lies now."""
        return self.param.detach() if self._whole is None else local_of(self._whole)

    @torch.no_grad()
    def set_value(self, value: Tensor) -> None:
        """Copies values, [shape], converted to the variable's dtype and device; the gradient stays as it is.

        In a store of `values="split"` it takes float32 as it is, and with `values="corrected"` nearly so.

        Raises:
            SpecError: another shape (nothing is broadcast), or a view of the variable's own memory.
        """
        self._check_shape("value", value)
        if overlaps(value, self.param):
            raise SpecError(
                f"cannot set variable {self.name!r} to a tensor that is a view of its own memory; pass a clone()"
            )
        registry = self._reference()
        self.param.copy_(value) if registry is None else registry.write(self, value)

    def norm(self) -> Tensor:
        """L2 norm of the values, a device scalar."""
        registry = self._reference()
        norm: Tensor = torch.linalg.vector_norm(self.value if registry is None else registry.read(self))
        return norm

    def view(self, *shape: int) -> View:
        """Value and gradient together in another shape of as many elements; they share memory with the variable.

        Raises:
            RuntimeError: torch's, where the memory order does not allow the shape.
        """
        grad = self.grad
        return View(self.value.view(*shape), None if grad is None else grad.view(*shape))

    # Gradient -------------------------------------------------------------------------------------------------------

    @property
    def grad(self) -> Tensor | None:
        """The gradient, [shape], wherever it lies, or None: which is not zeros."""
        registry = self._reference()
        return self.param.grad if registry is None else registry.gradients.of(self)

    def set_grad(self, grad: Tensor | None) -> None:
        """Replaces the gradient by a copy of `grad`, [shape]; None clears it.

        Raises:
            SpecError: another shape.
        """
        self.clear_grad()
        if grad is not None:
            self.accumulate_grad(grad)

    def clear_grad(self) -> None:
        """Makes the gradient None."""
        self._registry.gradients.zero(True, [self])

    def accumulate_grad(self, grad: Tensor) -> None:
        """Adds to the gradient; a copy of `grad`, [shape], if there was none. Also where `requires_grad` is False.

        Raises:
            SpecError: another shape.
        """
        self._check_shape("gradient", grad)
        self._registry.gradients.add(self, grad)

    # Whole records --------------------------------------------------------------------------------------------------

    def clone(self, name: str | None = None) -> Variable:
        """A new variable of the store with the same value, mask and group, and without a gradient.

        Args:
            name: Of the clone; this variable's with the store's suffix for duplicates if not given.
        """
        return self._registry.clone(self, name)

    def detach(self) -> Variable:
        """Freezes this variable and clears its gradient; `store.unfreeze` trains it again. Returns itself."""
        self._registry.masks.freeze([self])
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Variable) and self.id == other.id and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        state = "requires_grad" if self.requires_grad else "frozen" if self.is_parameter else "buffer"
        grad = "none" if self.grad is None else "set"
        return f"Variable({self.name!r}, id={self.id}, {self.dtype}, {tuple(self.shape)}, {state}, grad={grad})"

    def _check_shape(self, what: str, tensor: Tensor) -> None:
        if tuple(tensor.shape) != self.spec.shape:
            raise SpecError(
                f"variable {self.name!r} has shape {self.spec.shape}, but a {what} of shape {tuple(tensor.shape)} was "
                "given; nothing is broadcast: expand it first"
            )


def described(tensor: Tensor) -> Described:
    """What of a tensor decides where it lies."""
    return tensor.dtype, tensor.shape, tensor.stride() if tensor.layout == torch.strided else (), tensor.device


def overlaps(left: Tensor, right: Tensor) -> bool:
    """Whether the bytes from first to last element of two tensors meet; any two variables share a storage."""
    if left.device != right.device or not left.numel() or not right.numel():
        return False
    (first, stop), (other, other_stop) = byte_range(left), byte_range(right)
    return first < other_stop and other < stop


def byte_range(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte and behind the last byte of a strided tensor with at least one element."""
    first, size = tensor.data_ptr(), tensor.element_size()
    if tensor.is_contiguous():
        return first, first + tensor.numel() * size
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return first, first + reach * size
