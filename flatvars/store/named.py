"""The variables of a store by name: what all that a store offers begins with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..errors import UnknownNameError
from ..gradients.attached import gradients_of
from ..gradients.cycle import Gradients
from ..modules.declare import Declarations
from ..variables.registry import Registry
from ..variables.selectors import Selector, explain_unknown
from ..variables.variable import Variable


class ByName:
    """A part of `VarStore`."""

    _registry: Registry
    _declarations: Declarations

    @property
    def registry(self) -> Registry:
        """The variables and all that was made for them: what optimizers, initializers and layers work with."""
        if self._registry.late:
            self._registry.take_late()
        return self._registry

    @property
    def device(self) -> torch.device:
        return self.registry.device

    @property
    def _gradients(self) -> Gradients:
        return gradients_of(self.registry)

    def variables(self) -> dict[str, Variable]:
        """All variables by name, in creation order; tied ones once, under their first name."""
        return {v.name: v for v in self.registry.variables}

    def trainable_variables(self) -> list[Variable]:
        """The variables that are trained, and those that `freeze` keeps from it, in creation order."""
        return self.registry.declared_trainable()

    def select(self, selector: Selector) -> list[Variable]:
        """The selected variables in creation order; see `flatvars.select`.

        Raises:
            UnknownNameError: a name or pattern that fits nothing.
        """
        return self.registry.matching(selector)

    def get(self, name: str, shape: Sequence[int] | None = None) -> Variable | None:
        """A variable by name, or None; None as well if it has another shape than asked for."""
        variable = self.registry.by_name.get(name)
        return variable if variable is not None and (shape is None or variable.has_shape(shape)) else None

    def __getitem__(self, name: str) -> Variable:
        try:
            return self.registry.by_name[name]
        except KeyError:
            raise UnknownNameError(explain_unknown(name, self.registry.by_name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self.registry.by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables())

    def __len__(self) -> int:
        return len(self.registry.variables)

    @property
    def is_empty(self) -> bool:
        return not self.registry.variables

    @property
    def numel(self) -> int:
        """Elements of all variables, without padding."""
        return sum(v.spec.numel for v in self.registry.variables)

    def gradient_names(self) -> list[str]:
        """Names of the variables that have a gradient now, in creation order."""
        return [v.name for v in self.registry.variables if v.grad is not None]

    def rename(self, name: str, new_name: str) -> None:
        """Gives a variable another name; id, values, gradient, optimizer state and module attribute stay.

        Raises:
            UnknownNameError, NameTakenError, SpecError: nothing has changed then.
        """
        self.registry.rename(self[name], new_name)
