"""Registry: the variables of a store, their layout and the streams over it. The only place that carves."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import AliasError, NameTakenError
from .layout import Layout, plan_layout
from .spec import VarSpec
from .streams import VALUES, Streams, view_of
from .variable import Variable

if TYPE_CHECKING:
    from .grads import Gradients

# Which registry a parameter belongs to. Keyed by identity: a Parameter cannot be hashed by value, and a weak reference
# to it would forbid torch.utils.swap_tensors. An entry counts only while the registry still holds that very object.
_owners: dict[int, tuple[weakref.ref[Registry], int]] = {}


def variable_of(param: Tensor) -> tuple[Registry, Variable] | None:
    """The registry and variable a parameter belongs to, or None."""
    reference, index = _owners.get(id(param), (None, 0))
    registry = reference() if reference is not None else None
    if registry is None or index >= len(registry.variables) or registry.variables[index].param is not param:
        return None
    return registry, registry.variables[index]


def _disown(ids: list[int]) -> None:
    """Forgets parameters of a registry that is gone, unless another one owns an object of the same identity by now."""
    for key in ids:
        reference, _ = _owners.get(key, (None, 0))
        if reference is not None and reference() is None:
            del _owners[key]


class Registry:
    """Variables in creation order over one set of streams.

    Attributes:
        generation: Grows whenever a plan made before must not be used again: spans moved, or a mask flipped.
        recarved: Called after spans moved, with no argument.
        seed: Of initializers that are not given another.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.layout: Layout = plan_layout([])
        self.streams = Streams(self.layout, device)
        self.variables: list[Variable] = []
        self.by_name: dict[str, Variable] = {}
        self.generation = 0
        self.seed = 0
        self.lock = threading.RLock()
        self.recarved: list[Callable[[], None]] = []
        self.gradients: Gradients  # set by the store that owns both
        self._next_id = 0
        self._claimed: list[int] = []
        weakref.finalize(self, _disown, self._claimed)
        self._optimizers = 0

    # Carving ------------------------------------------------------------------------------------------------------

    def extend(
        self,
        specs: Sequence[VarSpec],
        params: Sequence[Tensor],
        names: Sequence[list[str]],
        make: Callable[..., Variable],
    ) -> list[Variable]:
        """Carves more variables out of a buffer grown once; older ones keep their objects, values, grads and state.

        Args:
            specs, params, names: Of the new variables; a parameter's memory is released as its values move.
            make: Builds a Variable from (id, index, param, span, names).

        Raises:
            NameTakenError: a name is in use; nothing has changed then.
        """
        with self.lock:
            self.check_names([name for group in names for name in group])
            self.check_aliases()
            old = len(self.variables)
            self._carve([v.span.spec for v in self.variables] + list(specs), self.device, {i: i for i in range(old)})
            for k, (param, group) in enumerate(zip(params, names, strict=True)):
                variable = make(self._next_id, old + k, param, self.layout.spans[old + k], group)
                self._next_id += 1
                self.variables.append(variable)
                self.by_name.update(dict.fromkeys(group, variable))
                self.move_in(variable, param)
            self._notify()
            return self.variables[old:]

    def check_names(self, names: Iterable[str]) -> None:
        """Raises NameTakenError where a name is in use or comes twice."""
        seen: set[str] = set()
        for name in names:
            if name in self.by_name or name in seen:
                raise NameTakenError(
                    f"a variable named {name!r} exists already; pass another name, or adopt the module with prefix="
                )
            seen.add(name)

    def move_in(self, variable: Variable, param: Tensor) -> None:
        """Copies a parameter's values into the variable's span and binds it; its old memory is released."""
        view = self.view(VALUES, variable)
        if not param.is_meta and param.shape == view.shape:  # from meta there are no values, maybe not even a shape
            view.copy_(param.detach())
        variable.param = param
        bind(variable, view)
        self.claim(variable)

    def claim(self, variable: Variable) -> None:
        """Notes that the variable's parameter belongs to this registry."""
        _owners[id(variable.param)] = (weakref.ref(self), variable.index)
        self._claimed.append(id(variable.param))

    def check_aliases(self) -> None:
        """Raises AliasError for a parameter whose memory is not its span: carving would drop what it holds."""
        for variable in self.variables:
            check_alias(self, variable)

    def recarve(self, specs: Sequence[VarSpec], device: torch.device | None = None, *, check: bool = True) -> None:
        """Lays the same variables out anew, with other dtypes, masks or device; every handle follows."""
        with self.lock:
            if check:
                self.check_aliases()
            device = self.device if device is None else device
            self._carve(specs, device, {i: i for i in range(len(specs))})
            self._notify()

    def _carve(self, specs: Sequence[VarSpec], device: torch.device, source: dict[int, int]) -> None:
        for variable, spec in zip(self.variables, specs, strict=False):
            # Without room for state, what an optimizer knew of the variable is gone: its step count is another's.
            variable.state_epoch += variable.span.spec.trainable and not spec.trainable
        layout = plan_layout(specs)
        self.streams = self.streams.recarve(layout, device, source)
        self.layout, self.device = layout, device
        for variable in self.variables:
            variable.span = layout.spans[variable.index]
            bind(variable, self.view(VALUES, variable))

    def _notify(self) -> None:
        self.generation += 1
        for call in self.recarved:
            call()

    def view(self, stream: str, variable: Variable) -> Tensor:
        """The variable's shape over an existing stream; a tensor with a version counter of its own.

        Views share the counter of their base: an in-place write to one variable would then break the backward pass of
        every other.
        """
        region = variable.dtype
        buffer = self.streams.values(region) if stream == VALUES else self.streams.get(stream, region)
        return view_of(buffer, variable.span).data

    def register_optimizer(self) -> str:
        """A prefix for the state streams of one more optimizer."""
        self._optimizers += 1
        return f"optimizer{self._optimizers}"

    def release_optimizer(self, key: str) -> None:
        """Frees the state streams of an optimizer that is gone."""
        for name in self.streams.names():
            if name.startswith(f"{key}."):
                self.streams.drop(name)

    # Masks --------------------------------------------------------------------------------------------------------

    def sync_masks(self) -> None:
        """Follows `requires_grad` flags, flipped here or by plain torch; re-carves where a variable lacks room."""
        with self.lock:
            for variable in self.variables:
                variable.frozen = variable.frozen and not variable.requires_grad
            specs = [
                dataclasses.replace(v.span.spec, trainable=v.span.spec.trainable or v.requires_grad)
                for v in self.variables
            ]
            if any(
                spec is not v.span.spec and spec != v.span.spec for spec, v in zip(specs, self.variables, strict=True)
            ):
                self.recarve(specs)
            else:
                self.generation += 1

    def compact(self) -> None:
        """Gives back the gradient and state memory of frozen variables; their state is forgotten."""
        with self.lock:
            self.recarve([dataclasses.replace(v.span.spec, trainable=v.requires_grad) for v in self.variables])

    # Looking up ---------------------------------------------------------------------------------------------------

    def trainable(self) -> list[Variable]:
        """Variables with room for gradients and state that the store has not frozen, in creation order."""
        return [v for v in self.variables if v.span.spec.trainable and not v.frozen]

    def masks_moved(self) -> bool:
        """Whether plain torch made a variable trainable that the store has frozen, or has no room for."""
        return any(v.requires_grad for v in self.variables if v.frozen or not v.span.spec.trainable)

    def matching(self, patterns: str | Iterable[str] | None) -> list[Variable]:
        """Variables with a name that matches one of the globs; all for None.

        Raises:
            NameTakenError: a pattern matches nothing.
        """
        if patterns is None:
            return list(self.variables)
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self.by_name):
                raise NameTakenError(
                    f"pattern {pattern!r} matches none of the {len(self.by_name)} names of the store, "
                    f"such as {', '.join(repr(n) for n in list(self.by_name)[:3])}"
                )
        return [v for v in self.variables if any(fnmatchcase(n, p) for n in v.names for p in patterns)]


def lies_in_span(registry: Registry, variable: Variable, param: Tensor) -> bool:
    """Whether a tensor is the variable's span: address, strides and dtype."""
    view = registry.view(VALUES, variable)
    return param.data_ptr() == view.data_ptr() and param.stride() == view.stride() and param.dtype == view.dtype


def check_alias(registry: Registry, variable: Variable) -> None:
    """Raises AliasError when a variable's parameter is not its span."""
    param, view = variable.param, registry.view(VALUES, variable)
    if lies_in_span(registry, variable, param):
        return
    raise AliasError(
        f"variable {variable.name!r} no longer lies in its store: its Parameter now holds a {param.dtype} tensor of "
        f"shape {tuple(param.shape)} and strides {param.stride()} on {param.device} (the store holds {variable.dtype}, "
        f"{tuple(variable.shape)}, {view.stride()}, {registry.device}). Something replaced its memory: module.to(), "
        "half(), double(), load_state_dict(assign=True), vector_to_parameters or `.data =`. Call store.rebind() to "
        "take the new values in, or store.restore_aliases() to go back to the store's"
    )


def bind(variable: Variable, view: Tensor) -> None:
    """Makes a parameter's memory the view, keeping the object: optimizers, hooks and modules hold on to it."""
    param = variable.param
    grad = param.grad
    if param.is_meta:
        fresh = nn.Parameter(view, param.requires_grad) if isinstance(param, nn.Parameter) else view
        fresh.__dict__.update(param.__dict__)
        for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            setattr(fresh, hooks, getattr(param, hooks))
        torch.utils.swap_tensors(param, fresh)  # type: ignore[no-untyped-call]
        return
    if grad is not None and (grad.dtype != view.dtype or grad.device != view.device):
        param.grad = None
        param.data = view
        param.grad = grad.to(view.device, view.dtype)
    else:
        param.data = view
