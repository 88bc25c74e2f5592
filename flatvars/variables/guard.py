"""The alias guard: whether tensors still lie in their store, and modules still use them.

One guard for all who ask: a step, `accumulate` and norms (of what is trained), saves, snapshots, loads and copies (of
everything), carves (of memory alone). What it finds in order costs a few loops in C, 0.1 to 0.2 us a variable.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import NoReturn, Protocol

import torch
from torch import Tensor, nn

from ..backend import Looks
from ..errors import AliasError
from .claims import owner_of
from .following import Mover
from .places import Place, Watch, follow_path, places_below
from .renewal import moved_along, renew
from .variable import Variable

_address = torch.Tensor.data_ptr
_stride = torch.Tensor.stride


class Carver(Mover, Protocol):
    """What a guard asks of the registry."""

    def addresses(self, variables: Sequence[Variable]) -> list[int]: ...

    def follow_shards(self) -> None: ...

    def take_back(self, moved: Mapping[Variable, Tensor], buffers: Mapping[Variable, Tensor]) -> None: ...


class AliasGuard:
    """Watches over some carved variables until spans move or the variables change.

    Args:
        often: It is asked at every step.

    Attributes:
        variables: Which.
    """

    def __init__(self, registry: Carver, variables: Sequence[Variable], often: bool = False) -> None:
        # Weak: the registry keeps guards, and buffers must go with the last handle.
        self._reference = weakref.ref(registry)
        self.variables = list(variables)
        self._often = often
        self._watch: Watch | None = None  # none before the first look
        self._note()

    @property
    def _registry(self) -> Carver:
        registry = self._reference()
        assert registry is not None
        return registry

    def _note(self) -> None:
        self._params = [v.param for v in self.variables]
        self._matrices = [p for p in self._params if p.dim() > 1]
        self._strides = [v.spec.stride for v in self.variables if len(v.spec.shape) > 1]
        self._addresses = self._registry.addresses(self.variables)
        self._looks: Looks | None = None  # of Parameters that were in place

    # What is asked --------------------------------------------------------------------------------------------------

    def check_memory(self) -> None:
        """Takes back in what left its span, of which carving would drop what it holds; so may every other check.

        Buffers are taken in as they are; what no store can hold stays, until values are wanted.

        Raises:
            AliasError: the registry's `on_moved` says so, or something would be lost.
        """
        self._registry.follow_shards()
        if self._in_place():
            return
        params = [v for v in self.variables if not v.is_buffer]
        strays = {v: v.param for v in params if not self._registry.is_bound(v, v.param)}
        if strays:
            self._registry.take_back(strays, moved_along(self._registry, self._buffers()))
        else:
            self.renew_buffers()
        self._note()

    def check(self, stepping: bool = False) -> None:
        """The same, and that modules use the parameters: else they would be trained for nothing.

        Args:
            stepping: A step is next, whose gradients are there: Parameters of a module that is gone must have some.

        Raises:
            AliasError: a parameter left the store, or another one took its place in a module.
        """
        self.check_memory()
        if self._watch is None or not self._watch.intact():
            self._follow(reads=False)
            if stepping:
                self._check_orphans()

    def check_values(self) -> None:
        """The same for who reads the values of all variables: one that modules do not use any more has stale values.

        A buffer that was replaced is taken in again: its values are copied, and it lies in the store from now on.
        """
        self._registry.follow_shards()
        in_place = self._in_place()
        if not in_place:
            self.check_memory()
        if not in_place or self._watch is None or not self._watch.intact():
            self._follow(reads=True)

    def renew_buffers(self) -> None:
        """Takes in the buffers that were replaced, as far as that can be; raises nothing."""
        renew(self._registry, self._buffers())

    # What is done about it ------------------------------------------------------------------------------------------

    def _in_place(self) -> bool:
        if self._looks is not None and self._looks.unchanged():
            return True
        found = self._are_in_place()
        if found and self._often and (self._looks is None or self._looks.can_tell):
            self._looks = self._looks or Looks(self._params)
            self._looks.note()
        return found

    def _are_in_place(self) -> bool:
        addresses = list(map(_address, self._params))
        if addresses != self._addresses:
            # share_memory_() moves a whole buffer with everything in it: that is no parameter gone astray.
            self._addresses = self._registry.addresses(self.variables)
        return addresses == self._addresses and list(map(_stride, self._matrices)) == self._strides

    def _buffers(self) -> list[Variable]:
        """All of the registry's: they move with the parameters, whichever are watched."""
        return [variable for variable in self._registry.variables if variable.is_buffer]

    def _check_orphans(self) -> None:
        """Raises where an adopted module is gone, all of it, and nothing that is stepped has a gradient.

        Its Parameters train for nobody, then: without a module they may be used all the same, but that shows.
        """
        for variable in self.variables:
            gone = [place.root() is None and place.owner() is None for place in variable.places]
            if gone and all(gone) and variable.trains and variable.requires_grad:
                if all(self._registry.gradients.of(each) is None for each in self.variables):
                    self._watch = None  # look again next time
                    _explain_orphan(variable)
                return

    def _follow(self, reads: bool) -> None:
        """Goes after variables that modules hold elsewhere now (pruning, wrappers); raises where one is lost."""
        below: dict[int, dict[int, list[Place]]] = {}
        for variable in self.variables:
            if variable.is_buffer:
                continue
            missing = [place for place in variable.places if place.tensor() is not variable.param]
            if not missing:
                continue
            used = [place for place in variable.places if place not in missing]
            used += [place for place in _search(variable.param, missing, below) if place not in used]
            for place in missing:
                _check_place(variable, place, bool(used), reads)
            variable.places = used or variable.places
        if reads:
            for variable, tensor in renew(self._registry, self._buffers()).items():
                _explain_refused(self._registry, variable, tensor)
        self._note()
        self._watch = Watch((place, v.param) for v in self.variables for place in v.places)


def _only(variable: Variable) -> Tensor | None:
    """The one tensor that modules hold now where the variable was, its own if none; None where they hold several."""
    now = {id(tensor): tensor for tensor in (place.tensor() for place in variable.places) if tensor is not None}
    found = list(now.values()) or [variable.param]
    return found[0] if len(found) == 1 else None


def holds(tensor: Tensor) -> bool:
    """Whether a tensor is a variable's, of any store."""
    return owner_of(tensor) is not None


def twin_of(variable: Variable) -> Variable | None:
    """Another variable of the same store that modules hold wherever this one was: the two were tied."""
    missing = [place for place in variable.places if place.tensor() is not variable.param]
    if not missing or len(missing) < len(variable.places) or _search(variable.param, missing, {}):
        return None
    owner, mine = (owner_of(tensor) if (tensor := _only(variable)) is not None else None), owner_of(variable.param)
    return None if owner is None or mine is None or owner[0] is not mine[0] else owner[1]


def current_param(variable: Variable) -> Tensor:
    """What modules hold now: another tensor only if they agree on it, none holds the old one, and no store this one."""
    missing = [place for place in variable.places if place.tensor() is not variable.param]
    if len(missing) < len(variable.places) or _search(variable.param, missing, {}):
        return variable.param
    found = [place.tensor() for place in missing]
    first = found[0] if found else None
    if first is None or not all(tensor is first for tensor in found) or holds(first):
        return variable.param
    return first if isinstance(first, nn.Parameter) == isinstance(variable.param, nn.Parameter) else variable.param


def _search(tensor: Tensor, missing: Sequence[Place], below: dict[int, dict[int, list[Place]]]) -> list[Place]:
    """Where the modules of some places hold a tensor now.

    Args:
        below: All places in each module that was gone through already.
    """
    found: list[Place] = []
    for place in missing:
        root = place.root() or place.owner()
        if root is not None:
            if id(root) not in below:
                below[id(root)] = places_below(root)
            found += [place for place in below[id(root)].get(id(tensor), []) if place not in found]
    return found


# Faults ---------------------------------------------------------------------------------------------------------------


def _check_place(variable: Variable, place: Place, used: bool, reads: bool) -> None:
    """Raises AliasError if what stands at a place makes the variable useless.

    Args:
        used: Whether modules hold the variable elsewhere.
        reads: Whether its values are wanted.
    """
    tensor = place.tensor()
    if tensor is None:
        if not used and not variable.frozen and not place.cleared():
            _check_module(variable, place)
    elif holds(tensor):
        if reads and not used and not variable.frozen:
            _explain_tied(variable, place)
    elif isinstance(tensor, nn.Parameter) or (reads and not variable.frozen):
        _explain_replaced(variable, place, tensor)


def _check_module(variable: Variable, place: Place) -> None:
    """Raises where a module lost the parameter, or was replaced by one that trains others; removing one is no fault."""
    root, owner = place.root(), place.owner()
    last, end = (owner, owner) if root is None else follow_path(root, place.path)
    if end is not None and end is owner:
        _explain_gone(variable, place)
    if last is None or last is root or any(map(holds, (*last.parameters(), *last.buffers()))):
        return
    foreign = [name for name, param in last.named_parameters() if param.requires_grad]
    if foreign:
        raise AliasError(
            f"variable {variable.name!r} is no longer used: its module {'.'.join(place.path)!r} was replaced by a "
            f"{type(last).__name__}, whose parameters ({', '.join(foreign[:3])}) the store does not hold. Call "
            f"store.freeze({variable.name!r}) for what is gone, and store.add_module(module, prefix) for the new one"
        )


def _label(place: Place) -> str:
    return f"{type(place.module()).__name__}.{place.attribute}"


def _explain_replaced(variable: Variable, place: Place, tensor: Tensor) -> NoReturn:
    kind = "Parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    raise AliasError(
        f"variable {variable.name!r} is no longer used: {_label(place)} holds another {kind} of shape "
        f"{tuple(tensor.shape)} and dtype {tensor.dtype}, which the store does not hold. Call store.rebind() to "
        "take the new one in under the same name"
    )


def _explain_refused(registry: Mover, variable: Variable, tensor: Tensor) -> NoReturn:
    raise AliasError(
        f"buffer {variable.name!r} was replaced by a {type(tensor).__name__} of shape {tuple(tensor.shape)}, "
        f"{tensor.dtype} and {tensor.layout} on {tensor.device}; the store takes in plain dense tensors on "
        f"{registry.device} in the place of a buffer: assign one, or call store.rebind() if the whole module moved"
    )


def _explain_tied(variable: Variable, place: Place) -> NoReturn:
    raise AliasError(
        f"variable {variable.name!r} is no longer used, and its values are stale: {_label(place)} holds the tensor of "
        f"another variable, tied to it after adoption. Call store.rebind() to make them one variable with both names"
    )


def _explain_orphan(variable: Variable) -> NoReturn:
    raise AliasError(
        f"no variable has a gradient, {variable.name!r} among them, and the module it was adopted with is gone, so "
        "that nobody knows what took its place. Adopt the whole model, in which replaced modules are noticed; or call "
        f"store.remove({variable.name!r}) and store.add_module(module, prefix) for the new one, or "
        f"store.freeze({variable.name!r}) to keep it as it is"
    )


def _explain_gone(variable: Variable, place: Place) -> NoReturn:
    raise AliasError(
        f"variable {variable.name!r} is no longer used: {_label(place)} is not a parameter any more (weight_norm and "
        "other reparametrizations make new ones). Reparametrize first and adopt the module into a new VarStore; or "
        f"call store.freeze({variable.name!r}) and store.add(name, parameter) for the new ones"
    )
