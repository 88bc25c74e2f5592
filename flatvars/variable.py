"""Variable: the record a store keeps of one of its named tensors."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .layout import Span

if TYPE_CHECKING:
    from .grads import Gradients


class Variable:
    """A named tensor of a store.

    Attributes:
        id: Unique in the store; never used again.
        index: Position in creation order.
        param: The Parameter (or buffer) whose memory is the variable's span. It stays the same object for life.
        names: All names it goes by in its modules, the first is its own; more than one for tied weights.
        owners: Modules that hold it, with the attribute's name.
        initializer: What its values were last initialized by; None if they were given.
    """

    def __init__(self, id: int, index: int, param: Tensor, span: Span, names: list[str], gradients: Gradients) -> None:
        self.id = id
        self.index = index
        self.param = param
        # By the store. Plain requires_grad_(False) is not: what it leaves in `.grad` is stepped, as by torch.optim.
        self.frozen = False
        self.state_epoch = 0  # grows when the room for its gradient and state is given up
        self.span = span
        self.names = names
        self.owners: list[tuple[weakref.ref[nn.Module], str]] = []
        self.initializer: Any = None
        # Weak: what looks after the gradients holds the variables.
        self._reference = weakref.ref(gradients)

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def value(self) -> Tensor:
        """The values, [shape], detached; a view of the store's buffer."""
        return self.param.detach()

    @property
    def grad(self) -> Tensor | None:
        """The gradient, [shape], wherever it lies, or None: which is not zeros."""
        gradients = self._reference()
        return self.param.grad if gradients is None else gradients.of(self)

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.span.spec.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.span.spec.dtype

    @property
    def requires_grad(self) -> bool:
        return self.param.requires_grad

    def norm(self) -> Tensor:
        """L2 norm of the values, a device scalar."""
        norm: Tensor = torch.linalg.vector_norm(self.value)
        return norm

    def __repr__(self) -> str:
        state = "trainable" if self.requires_grad else "frozen"
        has_grad = "no grad" if self.grad is None else "grad"
        return f"Variable({self.name!r}, id={self.id}, {self.dtype}, {tuple(self.shape)}, {state}, {has_grad})"
