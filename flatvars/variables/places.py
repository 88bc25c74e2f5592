"""Where modules hold a variable: what stands there now, and whether a tensor, or a module on the way, was replaced."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

ModuleRef = weakref.ref[nn.Module]

_children = operator.attrgetter("_modules")
_living: Callable[[ModuleRef], nn.Module | None] = weakref.ref.__call__
_NOBODY: ModuleRef = weakref.ref(nn.Module())  # gone at once, so that it stands for None


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
    """What modules hold at some places now: two loops in C tell whether it is still so, 0.1 us a tensor and a module.

    Args:
        held: Places, each with the tensor that it holds if all is well. Those that hold another are not looked at, but
            the modules on the way to them are.
    """

    def __init__(self, held: Iterable[tuple[Place, Tensor]]) -> None:
        self._homes: list[dict[str, Any]] = []
        self._attributes: list[str] = []
        self._tensors: list[Tensor] = []
        # Weak, all of them: the dict of a module's children would keep them alive.
        self._parents: list[ModuleRef] = []
        self._names: list[str] = []
        self._children: list[ModuleRef] = []
        walked: set[tuple[int, str]] = set()
        for place, tensor in held:
            self._watch_home(place, tensor)
            root = place.root()
            if root is not None:
                self._watch_path(root, place.path, walked)

    def _watch_home(self, place: Place, tensor: Tensor) -> None:
        module = place.module()
        for home in (module._parameters, module._buffers) if module is not None else ():
            # Scripted modules have no dict, and let nobody replace what they hold.
            if isinstance(home, dict) and home.get(place.attribute) is tensor:
                self._homes.append(home)
                self._attributes.append(place.attribute)
                self._tensors.append(tensor)

    def _watch_path(self, root: nn.Module, path: tuple[str, ...], walked: set[tuple[int, str]]) -> None:
        module = root
        for name in path:
            if not isinstance(module._modules, dict):
                return
            child = module._modules.get(name)
            if (id(module), name) not in walked:
                walked.add((id(module), name))
                self._parents.append(weakref.ref(module))
                self._names.append(name)
                self._children.append(_NOBODY if child is None else weakref.ref(child))
            if child is None:
                return
            module = child

    def intact(self) -> bool:
        """Whether everything stands where it stood."""
        if not all(map(operator.is_, map(dict.get, self._homes, self._attributes), self._tensors)):
            return False
        try:
            now = map(dict.get, map(_children, map(_living, self._parents)), self._names)
            return all(map(operator.is_, now, map(_living, self._children)))
        except AttributeError:  # a parent is gone
            return False
