"""What a store and its streams may ask of an optimizer, as long as there is one: none of them keeps it alive."""

from __future__ import annotations

import weakref
from typing import Any

from ..memory.streams import FormOf
from ..variables.registry import Registry
from ..variables.variable import Variable
from .formats import form_of


class NamesOf:
    """The states of a variable, as long as its optimizer is there; its states must not keep it."""

    def __init__(self, optimizer: weakref.ref[Any]) -> None:
        self._optimizer = optimizer

    def __call__(self, variable: Variable) -> tuple[str, ...]:
        optimizer = self._optimizer()
        return () if optimizer is None else optimizer.rule_for(variable).states


class FormOfStates:
    """How a state is stored, as long as its optimizer is there; its states must not keep it."""

    def __init__(self, optimizer: weakref.ref[Any]) -> None:
        self._optimizer = optimizer

    def __call__(self, name: str) -> FormOf:
        optimizer = self._optimizer()
        assert optimizer is not None  # it asks for its streams itself
        values = optimizer.registry.value_format
        return form_of(optimizer.state_format, optimizer.state_dtype, optimizer.rules(), name, values)


class CarveHook:
    """Tells an optimizer, as long as there is one, that its store carved."""

    def __init__(self, optimizer: weakref.ref[Any]) -> None:
        self.optimizer = optimizer

    def __call__(self) -> None:
        optimizer = self.optimizer()
        if optimizer is not None:
            optimizer.carved()


def unhook(reference: weakref.ref[Registry], hook: CarveHook) -> None:
    registry = reference()
    if registry is not None:
        registry.after_carve.remove(hook)
