"""Where modules hold a variable: what stands there now, and whether a tensor, or a module on the way, was replaced."""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from ..backend import FEWEST, are_same

ModuleRef = weakref.ref[nn.Module]

Getter = Callable[[dict[str, Any]], tuple[Any, ...]]
Item = TypeVar("Item")

_children = operator.attrgetter("_modules")
# The same calls; the one of 3.11 takes half the time.
_living: Callable[..., Any] = operator.call if sys.version_info >= (3, 11) else weakref.ref.__call__
_get: Callable[..., Any] = operator.call if sys.version_info >= (3, 11) else operator.itemgetter.__call__


class Place(NamedTuple):
    """An attribute of a module that holds a variable.

    Attributes:
        owner: The module.
        attribute: Its name for the tensor.
        root: The module that was adopted, in which the owner lies.
        path: Names of the children that lead from the root to the owner.
    """

    owner: ModuleRef
    attribute: str
    root: ModuleRef
    path: tuple[str, ...] = ()

    def module(self) -> nn.Module | None:
        """What stands at the place now: the end of the path; where the root is gone, the owner alone."""
        root = self.root()
        return self.owner() if root is None else follow_path(root, self.path)[1]

    def tensor(self) -> Tensor | None:
        """The tensor that the module there has under this name, if any."""
        module = self.module()
        return None if module is None else tensor_of(module, self.attribute)

    def cleared(self) -> bool:
        """`module.bias = None`: the tensor was taken out on purpose."""
        module = self.module()
        return module is not None and any(
            self.attribute in home and dict(home.items())[self.attribute] is None
            for home in (module._parameters, module._buffers)
        )

    def renewed(self) -> Place:
        """The same place with the module that stands there now."""
        module = self.module()
        return self if module is None else self._replace(owner=weakref.ref(module))


def follow_path(root: nn.Module, path: Iterable[str]) -> tuple[nn.Module, nn.Module | None]:
    """The last module on a path that there is; and the end of the path, None where it breaks off."""
    module = root
    for name in path:
        # No get(): scripted modules have none.
        if name not in module._modules or module._modules[name] is None:
            return module, None
        module = module._modules[name]  # type: ignore[assignment]
    return module, module


def tensor_of(module: nn.Module, attribute: str) -> Tensor | None:
    """A module's parameter or buffer."""
    for home in (module._parameters, module._buffers):
        if attribute in home:
            tensor: Tensor | None = home[attribute]
            return tensor
    return None


def places_below(root: nn.Module) -> dict[int, list[Place]]:
    """Every place in a module, by the identity of the tensor there."""
    found: dict[int, list[Place]] = {}
    reference = weakref.ref(root)
    for path, module in root.named_modules():
        for home in (module._parameters, module._buffers):
            for attribute, tensor in home.items():
                if tensor is not None:
                    place = Place(weakref.ref(module), attribute, reference, tuple(path.split(".")) if path else ())
                    found.setdefault(id(tensor), []).append(place)
    return found


class Watch:
    """What modules hold at some places now: loops in C tell whether it is still so, 0.1 us a tensor.

    Args:
        held: Places, each with the tensor that it holds if all is well. Those that hold another are not looked at, but
            the modules on the way to them are.
    """

    def __init__(self, held: Iterable[tuple[Place, Tensor]]) -> None:
        held = list(held)
        homes: dict[int, tuple[dict[str, Any], dict[str, Tensor]]] = {}
        children: dict[int, tuple[ModuleRef, dict[str, nn.Module | None]]] = {}
        for place, tensor in held:
            for home in _homes(place.module()):
                if home.get(place.attribute) is tensor:
                    homes.setdefault(id(home), (home, {}))[1][place.attribute] = tensor
            root = place.root()
            if root is not None:
                _note_path(root, place.path, children)
        self._homes = [home for home, _ in homes.values()]
        self._attributes = [_getter(tensors) for _, tensors in homes.values()]
        self._tensors = [tensor for _, tensors in homes.values() for tensor in _doubled(list(tensors.values()))]
        self._noted = self._content() if len(self._tensors) >= FEWEST else None
        # Weak, all of them: the dict of a module's children would keep them alive.
        there = [(ref, {n: c for n, c in names.items() if c is not None}) for ref, names in children.values()]
        there = [(ref, names) for ref, names in there if names]
        self._parents = [parent for parent, _ in there]
        self._names = [_getter(names) for _, names in there]
        self._children = [weakref.ref(child) for _, names in there for child in _doubled(list(names.values()))]
        # A module that nobody holds any more leaves its dicts behind. Its end is told, so that looking costs nothing.
        self._ended: list[ModuleRef] = []
        roots = {id(root): root for place, _ in held if (root := place.root()) is not None}
        self._roots = [weakref.ref(root, self._ended.append) for root in roots.values()]
        self._absent = [(ref, n) for ref, names in children.values() for n, child in names.items() if child is None]

    def intact(self) -> bool:
        """Whether everything stands where it stood."""
        if self._ended:
            return False
        try:
            if self._noted is None or not are_same(self._content(), self._noted):
                tensors = chain.from_iterable(map(_get, self._attributes, self._homes))
                if not all(map(operator.is_, tensors, self._tensors)):
                    return False
                if self._noted is not None:  # what changed there is nobody's variable
                    self._noted = self._content()
            modules = chain.from_iterable(map(_get, self._names, map(_children, map(_living, self._parents))))
            if not all(map(operator.is_, modules, map(_living, self._children))):
                return False
        except (KeyError, AttributeError):  # an attribute, a child or a parent is gone
            return False
        if not self._absent:
            return True
        parents = [(parent(), name) for parent, name in self._absent]
        return all(parent is not None and parent._modules.get(name) is None for parent, name in parents)

    def _content(self) -> list[Any]:
        """All names and tensors of all modules in one row: to list many takes less than to ask for each.

        A name that went from the end of one module to the beginning of the next leaves its tensor in use.
        """
        return [*chain.from_iterable(self._homes), *chain.from_iterable(map(dict.values, self._homes))]


def _homes(module: nn.Module | None) -> list[dict[str, Any]]:
    """Where a module keeps tensors. Scripted modules have no dict, and let nobody replace what they hold."""
    if module is None:
        return []
    return [home for home in (module._parameters, module._buffers) if isinstance(home, dict)]


def _note_path(
    root: nn.Module, path: tuple[str, ...], noted: dict[int, tuple[ModuleRef, dict[str, nn.Module | None]]]
) -> None:
    """Notes each module on a path with the child that leads on, None where there is none."""
    module = root
    for name in path:
        if not isinstance(module._modules, dict):
            return
        child = module._modules.get(name)
        noted.setdefault(id(module), (weakref.ref(module), {}))[1][name] = child
        if child is None:
            return
        module = child


def _getter(names: Iterable[str]) -> Getter:
    """Several items of a dict at once, as a tuple."""
    return operator.itemgetter(*_doubled(list(names)))


def _doubled(items: list[Item]) -> list[Item]:
    """Two of an only one: `itemgetter` makes no tuple of one."""
    return items * 2 if len(items) == 1 else items
