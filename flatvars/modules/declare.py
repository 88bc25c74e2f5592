"""Declaring variables by name: what is new gets memory and values at once, and its place in the buffer later.

A declared variable's parameter can be used right away. All that were declared are carved together, the next time the
store's buffers are asked for (`store.values`, an optimizer's step, `freeze`, ...): one carve, however many there are.
Inside `store.declaring()` values wait as well, and are written by one launch per dtype.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .. import init
from ..errors import SpecError
from ..init import Initializer
from ..memory.spec import VarSpec
from ..variables.registry import Registry
from ..variables.variable import Variable
from .tensors import Found, check_memory, check_private, make_spec

OnDuplicate = Literal["suffix", "error"]
"""What is done about a name in use."""

ON_DUPLICATE: tuple[OnDuplicate, ...] = get_args(OnDuplicate)


@dataclass(frozen=True)
class Request:
    """A variable to declare, with the arguments of `Declarations.create`."""

    name: str
    shape: tuple[int, ...]
    initializer: Initializer
    dtype: torch.dtype | None = None
    trainable: bool = True
    group: int = 0


class Declarations:
    """What new variables of a store get when nothing else is said.

    Attributes:
        registry: Where they go.
        dtype: Of trainable variables.
        on_duplicate: "suffix" (tch's `name__N`, N being the number of variables) or "error".
    """

    def __init__(self, registry: Registry, dtype: torch.dtype, on_duplicate: OnDuplicate) -> None:
        if on_duplicate not in ON_DUPLICATE:
            raise ValueError(f"on_duplicate={on_duplicate!r} does not exist; use one of {ON_DUPLICATE}")
        self.registry = registry
        self.dtype = dtype
        self._waiting = threading.local()  # `variables` of this thread that get their values together, in a block
        self.on_duplicate = on_duplicate

    def create(
        self,
        name: str,
        shape: Sequence[int],
        initializer: Initializer,
        *,
        dtype: torch.dtype | None = None,
        trainable: bool = True,
        group: int = 0,
    ) -> Variable:
        """Declares a variable with the values of an initializer, drawn for its name.

        Raises:
            NameTakenError: the name is in use, and duplicates are errors.
            SpecError: a shape or dtype that no store can hold.
        """
        registry = self.registry
        with registry.lock:
            registry.check_usable()
            name = self._name(name)
            spec = VarSpec(name, tuple(shape), dtype or self.dtype, has_room=trainable)
            values = torch.empty(spec.shape, dtype=spec.dtype, device=registry.device)
            target = init.Target(name, initializer, values.view(-1), 0, spec.shape, spec.stride)
            works = init.prepare([target], registry.seed)  # refuses what does not fit
            waiting: list[Variable] | None = getattr(self._waiting, "variables", None)
            if waiting is None:
                for work in works:
                    work()
            variable = registry.declare(spec, nn.Parameter(values) if trainable else values, [name], group)
            variable.initializer = initializer
            if waiting is not None:
                waiting.append(variable)
            return variable

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_waiting"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _waiting=threading.local())

    @contextmanager
    def together(self) -> Iterator[None]:
        """See `VarStore.declaring`."""
        if getattr(self._waiting, "variables", None) is not None:  # in a block already, which will do it
            yield
            return
        waiting: list[Variable] = []
        self._waiting.variables = waiting
        try:
            yield
        finally:
            self._waiting.variables = None
            # Without those that `create_all` took back.
            init.refill_(self.registry, [v for v in waiting if self.registry.by_name.get(v.name) is v])

    def create_all(self, requests: Sequence[Request]) -> list[Variable]:
        """Declares several variables in order, or none: what the first that fails raises passes through."""
        registry = self.registry
        with registry.lock:
            before = len(registry.variables)
            try:
                return [
                    self.create(r.name, r.shape, r.initializer, dtype=r.dtype, trainable=r.trainable, group=r.group)
                    for r in requests
                ]
            except Exception:
                registry.retract(before)
                raise

    def take(
        self, name: str, tensor: Tensor, *, trainable: bool | None = None, group: int = 0, exact: bool = False
    ) -> Variable:
        """Declares a variable with the values, dtype and memory order of a tensor, on the store's device.

        A Parameter, or a leaf that requires a gradient, becomes the variable's own; of any other tensor a copy is
        taken.

        Args:
            trainable: If not given, a Parameter keeps its flag, and any other tensor is trained.
            exact: A name that is in use is an error, whatever `on_duplicate` says.
        """
        registry = self.registry
        with registry.lock:
            registry.check_usable()
            name = name if exact else self._name(name)
            registry.check_names([name])
            found = Found(check_tensor(name, tensor), [name])
            own = isinstance(tensor, nn.Parameter)
            leaf = not own and trainable is not False and tensor.is_leaf and tensor.requires_grad
            if trainable is None:
                trainable = tensor.requires_grad if own else True
            spec = dataclasses.replace(make_spec(found, None), has_room=trainable)
            check_memory([found])
            if own or leaf:
                check_unshared(registry, name, tensor)
                check_private([found])
                param: Tensor = tensor.requires_grad_(trainable)
            else:
                values = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=registry.device)
                values.copy_(tensor.detach())
                param = nn.Parameter(values) if trainable else values
            variable = registry.declare(spec, param, [name], group)
            variable.is_leaf = leaf
            return variable

    def _name(self, name: str) -> str:
        return self.registry.free_name(name) if self.on_duplicate == "suffix" else name


def check_tensor(name: str, tensor: object) -> Tensor:
    """Raises TypeError for what is no tensor."""
    if isinstance(tensor, Tensor):
        return tensor
    hint = (
        "store.add_module(module, prefix) takes modules" if isinstance(tensor, nn.Module) else "torch.tensor(it) is one"
    )
    raise TypeError(f"variable {name!r} was given as a {type(tensor).__name__}, and a tensor is needed; {hint}")


def check_unshared(registry: Registry, name: str, param: Tensor) -> None:
    """Raises SpecError for a Parameter that is a view of a variable: in the store, the two would come apart."""
    other = registry.sharing(param)
    if other is not None and not other.frozen:  # what is frozen was, maybe, reparametrized away: it keeps its values
        raise SpecError(
            f"{name!r} shares memory with variable {other.name!r} but is another object, so they would come apart in "
            "the store; give one Parameter to both modules, or a clone() of it"
        )


def check_part(part: str, what: str) -> str:
    """One part of a dotted path.

    Raises:
        SpecError: it is empty or contains a dot.
    """
    if not part or "." in part:
        fault = "is empty" if not part else "contains a dot"
        raise SpecError(
            f"{what} {part!r} {fault}; give one part of a dotted path at a time: path / 'layer1' / 'weight'"
        )
    return part
