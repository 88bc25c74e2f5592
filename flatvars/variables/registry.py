"""Registry: the variables of a store, their layout and the streams over it. The only place that carves."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import FlatvarsError, NameTakenError
from ..memory.layout import Layout, plan_layout
from ..memory.spec import VarSpec
from ..memory.streams import VALUES, Streams, piece_of, view_of
from .guard import AliasGuard, lies_in_span
from .selectors import Selector, find
from .variable import Variable

if TYPE_CHECKING:
    from ..gradients.grads import Gradients
    from ..gradients.masks import ElementMasks

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

    A declared variable has memory of its own until the streams are asked for: then all that were declared are carved at
    once, so that any number of declarations costs one carve.

    Attributes:
        generation: Grows whenever a plan made before must not be used again: spans moved, or a mask flipped.
        recarved: Called after spans moved, with no argument.
        seed: Of initializers that are not given another.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.variables: list[Variable] = []
        self.by_name: dict[str, Variable] = {}
        self.generation = 0
        self.seed = 0
        self.lock = threading.RLock()
        self.recarved: list[Callable[[], None]] = []
        self.gradients: Gradients  # set by the store that owns all three
        self.masks: ElementMasks
        self._layout: Layout = plan_layout([])
        self._streams = Streams(self._layout, device)
        self._carved = 0  # variables that lie in the streams; those behind are declared only
        self._retired: str | None = None
        self._next_id = 0
        self._guard: AliasGuard | None = None
        self._guard_for = (0, 0)
        self._claimed: list[int] = []
        weakref.finalize(self, _disown, self._claimed)
        self._optimizers = 0

    @property
    def layout(self) -> Layout:
        """Of all variables; carves what was declared since it was looked at last."""
        self.settle()
        return self._layout

    @property
    def streams(self) -> Streams:
        """Over the layout of all variables; carves what was declared since."""
        self.settle()
        return self._streams

    # Declaring and carving ------------------------------------------------------------------------------------------

    def declare(self, spec: VarSpec, param: Tensor, names: list[str], group: int = 0) -> Variable:
        """Adds a variable; its parameter keeps its own memory until the streams are asked for.

        Raises:
            NameTakenError: a name is in use; nothing has changed then.
        """
        with self.lock:
            self.check_usable()
            self.check_names(names)
            variable = Variable(self._next_id, len(self.variables), spec, param, names, self, group)
            self._next_id += 1
            self.variables.append(variable)
            self.by_name.update(dict.fromkeys(names, variable))
            self.claim(variable)
            return variable

    def retract(self, count: int) -> None:
        """Forgets the variables declared behind the first `count`, none of which is carved yet."""
        for variable in self.variables[count:]:
            for name in variable.names:
                del self.by_name[name]
        del self.variables[count:]

    def extend(self, specs: Sequence[VarSpec], params: Sequence[Tensor], names: Sequence[list[str]]) -> list[Variable]:
        """Declares several variables and carves at once; a parameter's memory is released as its values move.

        Raises:
            NameTakenError: a name is in use; nothing has changed then.
        """
        with self.lock:
            self.check_names([name for group in names for name in group])
            self.guard.check_memory()
            added = [self.declare(*each) for each in zip(specs, params, names, strict=True)]
            self.settle()
            return added

    def settle(self) -> None:
        """Carves the variables that were declared since the last time; older ones that strayed stay where they are."""
        if self._carved == len(self.variables) and self._retired is None:
            return
        with self.lock:
            self.check_usable()
            old = self._carved
            if old == len(self.variables):  # another thread did it meanwhile
                return
            aligned = [v for v in self.variables[:old] if lies_in_span(self, v, v.param)]
            specs = [v.spec for v in self.variables]
            self._carve(specs, self.device, {i: i for i in range(old)}, aligned)
            for variable in self.variables[old : len(specs)]:
                self.move_in(variable, variable.param)
            self._carved = len(specs)
            self._notify()

    def check_usable(self) -> None:
        """Raises FlatvarsError when another store has taken the variables over."""
        if self._retired is not None:
            raise FlatvarsError(self._retired)

    def retire(self, reason: str) -> None:
        """Gives all variables away; whatever still uses this registry gets `reason` as an error."""
        with self.lock:
            self._retired = reason
            self.variables, self.by_name, self._carved = [], {}, 0
            self._layout = plan_layout([])
            self._streams = Streams(self._layout, self.device)
            self.generation += 1

    def check_names(self, names: Iterable[str]) -> None:
        """Raises NameTakenError where a name is in use or comes twice."""
        seen: set[str] = set()
        for name in names:
            if name in self.by_name or name in seen:
                raise NameTakenError(
                    f"a variable named {name!r} exists already; pass another name, or adopt the module with prefix="
                )
            seen.add(name)

    def free_name(self, name: str) -> str:
        """The name itself, or where it is taken `name__N`, N being the number of variables: tch's rule, until free."""
        number = len(self.variables)
        free = name
        while free in self.by_name:
            free = f"{name}__{number}"
            number += 1
        return free

    def rename(self, variable: Variable, name: str) -> None:
        """Gives a variable another first name; id, values, gradient and state stay."""
        with self.lock:
            self.check_names([name])
            self.settle()
            spec = dataclasses.replace(variable.spec, name=name)
            del self.by_name[variable.name]
            self.by_name[name] = variable
            variable.names[0] = name
            self._place([spec if v is variable else v.spec for v in self.variables])
            self.generation += 1

    def clone(self, variable: Variable, name: str | None) -> Variable:
        """See `Variable.clone`."""
        with self.lock:
            name = self.free_name(variable.name) if name is None else name
            value = variable.value.clone()
            param = nn.Parameter(value, variable.requires_grad) if isinstance(variable.param, nn.Parameter) else value
            copy = self.declare(dataclasses.replace(variable.spec, name=name), param, [name], variable.group)
            copy.frozen, copy.initializer = variable.frozen, variable.initializer
            self.masks.take(copy, self.masks.of(variable))
            return copy

    def move_in(self, variable: Variable, param: Tensor) -> None:
        """Copies a parameter's values into the variable's span and binds it; its old memory is released."""
        view = self.piece(variable)
        if not param.is_meta and param.shape == view.shape:  # from meta there are no values, maybe not even a shape
            view.copy_(param.detach())
        variable.param = param
        bind(variable, view)
        self.claim(variable)

    def claim(self, variable: Variable) -> None:
        """Notes that the variable's parameter belongs to this registry."""
        _owners[id(variable.param)] = (weakref.ref(self), variable.index)
        self._claimed.append(id(variable.param))

    @property
    def guard(self) -> AliasGuard:
        """Over all variables that are carved."""
        made_for = self.generation, self._carved
        if self._guard is None or self._guard_for != made_for:
            self._guard, self._guard_for = AliasGuard(self, self.variables[: self._carved]), made_for
        return self._guard

    def check_aliases(self) -> None:
        """Raises AliasError where values are not what modules use; see `AliasGuard.check_values`."""
        self.guard.check_values()

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is a variable's, of this registry or of another."""
        return variable_of(tensor) is not None

    def recarve(self, specs: Sequence[VarSpec], device: torch.device | None = None, *, check: bool = True) -> None:
        """Lays the same variables out anew, with other dtypes, masks or device; every handle follows."""
        with self.lock:
            self.settle()
            if check:
                self.guard.check_memory()
            device = self.device if device is None else device
            self._carve(specs, device, {i: i for i in range(len(specs))}, self.variables)
            self._notify()

    def _carve(
        self, specs: Sequence[VarSpec], device: torch.device, source: dict[int, int], bound: Sequence[Variable]
    ) -> None:
        """Makes streams for the specs, copies what `source` maps into them, and binds the variables of `bound`."""
        self.gradients.before_carve()
        for variable, spec in zip(self.variables, specs, strict=False):
            # Without room for state, what an optimizer knew of the variable is gone: its step count is another's.
            variable.state_epoch += variable.spec.trainable and not spec.trainable
        streams = self._streams.recarve(plan_layout(specs), device, source)
        self._streams, self._layout, self.device = streams, streams.layout, device
        self._place(specs)
        for variable in bound:
            bind(variable, self.piece(variable))

    def _place(self, specs: Sequence[VarSpec]) -> None:
        """Writes down where the variables lie by the specs; nothing moves if only names changed."""
        self._layout = plan_layout(specs)
        self._streams.layout = self._layout
        for variable, span in zip(self.variables, self._layout.spans, strict=False):
            variable.spec, variable._span = span.spec, span

    def _notify(self) -> None:
        self.generation += 1
        for call in self.recarved:
            call()

    def view(self, stream: str, variable: Variable) -> Tensor:
        """The variable's shape over an existing stream; a tensor with a version counter of its own.

        Views share the counter of their base: an in-place write to one variable would then break the backward pass of
        every other.
        """
        region, span = variable.dtype, variable.span
        buffer = self._streams.values(region) if stream == VALUES else self._streams.get(stream, region)
        return view_of(buffer, span).data

    def addresses(self, variables: Sequence[Variable]) -> list[int]:
        """Where the values of carved variables begin in memory, as torch tells it: 0 for those without elements."""
        begins = {region.dtype: self._streams.values(region.dtype).data_ptr() for region in self._layout.regions}
        return [begins[v.dtype] + v.span.offset * v.dtype.itemsize if v.spec.numel else 0 for v in variables]

    def piece(self, variable: Variable) -> Tensor:
        """The variable's values as its Parameter holds them: in the buffer, with a storage of its own."""
        assert variable._span is not None
        return piece_of(self._streams.values(variable.dtype), variable._span)

    def share_memory(self) -> None:
        """See `VarStore.share_memory_`."""
        with self.lock:
            self.settle()
            self.guard.check_memory()
            for region in self.layout.regions:
                self._streams.values(region.dtype).share_memory_()  # type: ignore[no-untyped-call]
            for variable in self.variables:
                bind(variable, self.piece(variable))
            self._notify()

    def register_optimizer(self) -> str:
        """A prefix for the state streams of one more optimizer."""
        self._optimizers += 1
        return f"optimizer{self._optimizers}"

    def release_optimizer(self, key: str) -> None:
        """Frees the state streams of an optimizer that is gone."""
        for name in self._streams.names():
            if name.startswith(f"{key}."):
                self._streams.drop(name)

    # Masks --------------------------------------------------------------------------------------------------------

    def freeze(self, variables: Sequence[Variable], clear_grad: bool = True) -> None:
        """Stops training variables; see `VarStore.freeze`."""
        with self.lock:
            for variable in variables:
                if variable.requires_grad:
                    variable.param.requires_grad_(False)
                    variable.frozen = True
            if clear_grad:
                self.gradients.zero(True, variables)
                for variable in variables:
                    variable.param.grad = None
            self.sync_masks()

    def unfreeze(self, variables: Sequence[Variable], selected: bool) -> None:
        """Trains variables again: those that `freeze` froze, and if they were `selected` by name every Parameter."""
        with self.lock:
            for variable in variables:
                if variable.frozen or (selected and variable.is_parameter):
                    variable.param.requires_grad_(True)
            self.sync_masks()

    def sync_masks(self) -> None:
        """Follows `requires_grad` flags, flipped here or by plain torch; re-carves where a variable lacks room."""
        with self.lock:
            for variable in self.variables:
                variable.frozen = variable.frozen and not variable.requires_grad
            specs = [with_room(v.spec, v.spec.trainable or v.requires_grad) for v in self.variables]
            if any(spec is not v.spec for spec, v in zip(specs, self.variables, strict=True)):
                self.recarve(specs)
            else:
                self.generation += 1

    def compact(self) -> None:
        """Gives back the gradient and state memory of frozen variables; their state is forgotten."""
        with self.lock:
            self.recarve([with_room(v.spec, v.requires_grad) for v in self.variables])

    # Looking up ---------------------------------------------------------------------------------------------------

    def trainable(self) -> list[Variable]:
        """Variables with room for gradients and state that the store has not frozen, in creation order."""
        return [v for v in self.variables if v.spec.trainable and not v.frozen]

    def declared_trainable(self) -> list[Variable]:
        """Parameters that are trained, or that `freeze` keeps from it, in creation order."""
        return [v for v in self.variables if v.requires_grad or v.frozen]

    def masks_moved(self) -> bool:
        """Whether plain torch made a variable trainable that the store has frozen, or has no room for."""
        return any(v.requires_grad for v in self.variables if v.frozen or not v.spec.trainable)

    def matching(self, selector: Selector) -> list[Variable]:
        """The selected variables, all for None; see `flatvars.select`.

        Raises:
            UnknownNameError: a pattern matches nothing.
        """
        return find(self.variables, self.by_name, selector)


def with_room(spec: VarSpec, trainable: bool) -> VarSpec:
    """The spec with or without room for gradients and state; itself if nothing changes."""
    return spec if spec.trainable == trainable else dataclasses.replace(spec, trainable=trainable)


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
