"""A store lives as long as any module that uses it: an optimizer then finds it by the parameters alone."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..variables.registry import Registry

ATTRIBUTE = "_store_anchor"


class Anchor:
    """Keeps a registry for one module, from within the module's own dict.

    Hooks and attributes of a Parameter may lead back to its module. Through a table of this library such a cycle would
    live for ever; through the module, it is collected. Copies and pickles of the module hold an empty set in its place:
    they belong to no store, and load without this library, with `weights_only` too.
    """

    __slots__ = ("__weakref__", "registry")

    def __init__(self, registry: Registry) -> None:
        self.registry: Registry | None = registry

    def __reduce__(self) -> Any:
        return set, ()


_anchors: weakref.WeakKeyDictionary[Registry, weakref.WeakSet[Anchor]] = weakref.WeakKeyDictionary()


def keep_for(registry: Registry, modules: Iterable[nn.Module | None]) -> None:
    """Keeps the registry alive as long as any of the modules."""
    with registry.lock:
        mine = _anchors.setdefault(registry, weakref.WeakSet())
        for module in {id(module): module for module in modules if module is not None}.values():
            module.__dict__[ATTRIBUTE] = anchor = Anchor(registry)
            mine.add(anchor)


def hand_over(registry: Registry, former: Iterable[Registry]) -> None:
    """Makes modules that kept one of some other registries alive keep this one."""
    mine = _anchors.setdefault(registry, weakref.WeakSet())
    for other in former:
        for anchor in list(_anchors.pop(other, ())):
            anchor.registry = registry
            mine.add(anchor)


def let_go(registry: Registry) -> None:
    """No module keeps the registry alive any more."""
    for anchor in list(_anchors.pop(registry, ())):
        anchor.registry = None
