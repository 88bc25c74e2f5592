"""Registry: the variables of a store by name and by Parameter, and what was made for them: memory, gradients, masks."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import NameTakenError
from ..memory.spec import VarSpec
from .binding import bind
from .carving import Carving
from .claims import owner_of
from .lazy import Late, put_in_place, ready
from .selectors import Selector, selected
from .variable import GradientAccess, MaskAccess, Variable


def variable_of(param: Tensor) -> tuple[Registry, Variable] | None:
    """The registry and variable a parameter belongs to, or None."""
    found = owner_of(param)
    return None if found is None or not isinstance(found[0], Registry) else (found[0], found[1])


class Adopted(NamedTuple):
    """How a module was adopted.

    Attributes:
        prefix: Of its names in the store.
        buffers: Whether its persistent buffers were wanted.
    """

    prefix: str
    buffers: bool


class Registry(Carving):
    """The variables of a store, with names.

    Args:
        device: Of all streams.
        gradients, masks: Make what looks after these, over the registry. `flatvars.gradients` has both; a registry
            knows only what its variables ask of them.
        seed: Of initializers that are not given another.

    Attributes:
        adopted: Modules whose tensors became variables.
        late: Lazy tensors of those, which become variables when they have shapes.
        told_left_out: Names of buffers that the store does not hold, of which it has warned.
        made_for_optimizer: Whether no one adopted the parameters by hand: it takes in what its optimizers are given.
    """

    store_of: ClassVar[Callable[[Registry], Any]]
    """The handle that users have of a registry, whose class stands above; set there."""

    def __init__(
        self,
        device: torch.device,
        gradients: Callable[[Registry], GradientAccess],
        masks: Callable[[Registry], MaskAccess],
        seed: int = 0,
    ) -> None:
        super().__init__(device)
        self.by_name: dict[str, Variable] = {}
        self.late: list[Late] = []
        self.seed = seed
        self.adopted: weakref.WeakKeyDictionary[nn.Module, Adopted] = weakref.WeakKeyDictionary()
        self.told_left_out: set[str] = set()
        self.made_for_optimizer = False
        self._next_id = 0  # of the variable declared next; ids are never used again
        self._optimizers = 0
        self.gradients = gradients(self)
        self.masks = masks(self)

    # Declaring --------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        if self._carved == len(self.variables) and not self.late and self._retired is None:
            return  # as nearly always
        if self.late and self._announcing is None:
            self.take_late()
        super().settle()

    def take_late(self) -> None:
        """Makes variables of lazy tensors that have a shape by now."""
        with self.lock:
            waiting = self.late
            found, self.late = ready(waiting)
            if not found:
                return
            try:
                specs = [late.spec(tensor) for late, tensor in found]
                added = self.extend(specs, [tensor for _, tensor in found], [late.names for late, _ in found])
            except BaseException:
                self.late = waiting
                raise
            for variable, (late, _) in zip(added, found, strict=True):
                variable.places = late.places
            came = {variable: late for variable, (late, _) in zip(added, found, strict=True)}
            self.reorder(put_in_place(self.variables, came))

    def declare(self, spec: VarSpec, param: Tensor, names: list[str], group: int = 0) -> Variable:
        """Adds a variable; its parameter keeps its own memory until the streams are asked for.

        Raises:
            NameTakenError: a name is in use; nothing has changed then.
        """
        with self.lock:
            self.check_usable()
            self.check_names(names)
            (variable,) = self._enter([Variable(self._next_id, len(self.variables), spec, param, names, self, group)])
            self.await_carve(variable)
            return variable

    def _enter(self, variables: list[Variable]) -> list[Variable]:
        """Adds variables whose names are free; returns them."""
        self._next_id += len(variables)
        self.variables += variables
        self.by_name.update({name: variable for variable in variables for name in variable.names})
        self.claims.add(variables)
        return variables

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
            self.check_usable()
            self.check_names([name for group in names for name in group])
            self.guard.check_memory()
            first, count = self._next_id, len(self.variables)
            each = enumerate(zip(specs, params, names, strict=True))
            added = self._enter([Variable(first + k, count + k, *one, self) for k, one in each])
            try:
                self.settle()
            except BaseException:
                if len(self._layout.spans) <= count:  # nothing was laid out
                    self.retract(count)
                raise
            return added

    def clone(self, variable: Variable, name: str | None) -> Variable:
        """See `Variable.clone`."""
        with self.lock:
            self.check_aliases()
            name = self.free_name(variable.name) if name is None else name
            value = variable.value.clone()
            param = nn.Parameter(value, variable.requires_grad) if not variable.is_buffer else value
            copy = self.declare(dataclasses.replace(variable.spec, name=name), param, [name], variable.group)
            copy.frozen, copy.initializer = variable.frozen, variable.initializer
            self.masks.take(copy, self.masks.of(variable))
            if self.is_encoded(variable):
                self.settle()
                self.write(copy, self.read(variable))
            return copy

    def remove(self, variables: Sequence[Variable]) -> None:
        """Takes variables out of the store: names, memory, gradients, masks; see `VarStore.remove`."""
        with self.lock:
            self.check_usable()
            self.settle()
            self.check_leaving(f"removing {variables[0].name!r}" if variables else "this")
            self.guard.check_memory()
            self.gradients.release(variables)
            for variable in variables:
                for name in variable.names:
                    del self.by_name[name]
            self.give_away(variables)

    def absorb(self, variable: Variable, twin: Variable) -> None:
        """Makes one variable of two that a module has tied: the twin, which gets the names and places of the other."""
        with self.lock:
            names = list(variable.names)
            self.remove([variable])
            twin.names += names
            self.by_name.update(dict.fromkeys(names, twin))
            twin.places += [place for place in variable.places if place not in twin.places]

    def release(self, reason: str) -> None:
        """Gives all variables away, each Parameter with memory of its own; who still uses this gets `reason`."""
        with self.lock:
            self.settle()
            self.check_leaving("releasing the variables")
            self.gradients.release(self.variables)
            for variable in self.variables:
                bind(variable, variable.param.detach().clone(memory_format=torch.preserve_format))
            self.retire(reason)

    def retire(self, reason: str) -> None:
        """Gives all variables away; whatever still uses this registry gets `reason` as an error."""
        with self.lock:
            super().retire(reason)
            self.by_name, self.late = {}, []

    # Names ------------------------------------------------------------------------------------------------------------

    def check_names(self, names: Iterable[str]) -> None:
        """Raises NameTakenError where a name is in use or comes twice."""
        seen: set[str] = set()
        awaited = {name for late in self.late for name in late.names}
        for name in names:
            if name in self.by_name or name in seen or name in awaited:
                raise NameTakenError(
                    f"a variable named {name!r} exists already; pass another name, or adopt the module with prefix="
                )
            seen.add(name)

    def free_name(self, name: str) -> str:
        """The name itself, or where it is taken `name__N`, N being the number of variables: tch's rule, until free."""
        number = len(self.variables)
        free = name
        while free in self.by_name or any(free in late.names for late in self.late):
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
            self._place(self._plan([spec if v is variable else v.spec for v in self.variables]))
            self.generation += 1

    def rename_all(self, names: Mapping[Variable, list[str]]) -> None:
        """Gives variables other names, all of them; ids, values, gradients and state stay.

        Raises:
            NameTakenError: nothing has changed then.
        """
        with self.lock:
            former = {name for variable in names for name in variable.names}
            new = [name for each in names.values() for name in each]
            self.check_names([name for name in new if name not in former])
            self.settle()
            for name in former:
                del self.by_name[name]
            for variable, given in names.items():
                variable.names[:] = given
                self.by_name.update(dict.fromkeys(given, variable))
            self._place(self._plan([dataclasses.replace(v.spec, name=v.name) for v in self.variables]))
            self.generation += 1

    def handle(self) -> Any:
        """The store that users hold of this registry."""
        return type(self).store_of(self)

    # Looking up -------------------------------------------------------------------------------------------------------

    def trained(self) -> list[Variable]:
        """The variables that train, in creation order."""
        return [v for v in self.variables if v.trains]

    def declared_trainable(self) -> list[Variable]:
        """Parameters that are trained, or that `freeze` keeps from it, in creation order."""
        return [v for v in self.variables if v.requires_grad or v.frozen]

    def matching(self, selector: Selector) -> list[Variable]:
        """The selected variables, all for None; see `flatvars.select`.

        Raises:
            UnknownNameError: a pattern matches nothing.
        """
        return selected(self.variables, self.by_name, selector, [name for late in self.late for name in late.names])

    # Optimizers -------------------------------------------------------------------------------------------------------

    def register_optimizer(self) -> str:
        """A prefix for the state streams of one more optimizer."""
        self._optimizers += 1
        return f"optimizer{self._optimizers}"

    def release_optimizer(self, key: str) -> None:
        """Frees the state streams of an optimizer that is gone."""
        for name in self._streams.names():
            if name.startswith(f"{key}."):
                self._streams.drop(name)


@runtime_checkable
class HasRegistry(Protocol):
    """A store, for who needs no more of it than its variables: optimizers, initializers."""

    @property
    def registry(self) -> Registry:
        """Of the store's variables."""
