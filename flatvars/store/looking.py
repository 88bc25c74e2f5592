"""What a store answers: its buffers, its variables, and whether all is well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..errors import FlatvarsError, UnknownNameError
from ..memory.layout import Region
from ..variables.selectors import Selector
from ..variables.variable import Variable
from .core import Core


class Looking(Core):
    """Buffers, variables, invariants."""

    # Buffers ----------------------------------------------------------------------------------------------------------

    @property
    def regions(self) -> tuple[Region, ...]:
        """One per dtype: which lengths the streams have."""
        return self._registry.layout.regions

    @property
    def values(self) -> Tensor:
        """The flat values of a uniform store, [numel with padding]; padding is zero."""
        return self._registry.streams.values(self._only_region())

    @property
    def grads(self) -> Tensor:
        """The flat gradients of a uniform store, [trainable numel with padding]; gathers what is pending.

        Float32 for bfloat16 and float16 variables in "gather" mode. Variables without a gradient hold zeros.
        """
        return self._gradients.read_stream(self._only_region())

    def values_of(self, dtype: torch.dtype) -> Tensor:
        """The flat values of the region of a dtype."""
        return self._registry.streams.values(dtype)

    def grads_of(self, dtype: torch.dtype) -> Tensor:
        """The flat gradients of the region of a dtype."""
        return self._gradients.read_stream(dtype)

    def _only_region(self) -> torch.dtype:
        if len(self.regions) != 1:
            raise FlatvarsError(
                f"this store has {len(self.regions)} regions ({', '.join(str(r.dtype) for r in self.regions)}), so it "
                "has no single buffer; use values_of(dtype) and grads_of(dtype)"
            )
        return self.regions[0].dtype

    # Variables --------------------------------------------------------------------------------------------------------

    def variables(self) -> dict[str, Variable]:
        """All variables by name, in creation order; tied ones once, under their first name."""
        return {v.name: v for v in self._registry.variables}

    def trainable_variables(self) -> list[Variable]:
        """The variables that are trained, and those that `freeze` keeps from it, in creation order."""
        return self._registry.declared_trainable()

    def select(self, selector: Selector) -> list[Variable]:
        """The selected variables in creation order; see `flatvars.select`.

        Raises:
            UnknownNameError: a name or pattern that fits nothing.
        """
        return self._registry.matching(selector)

    def get(self, name: str, shape: Sequence[int] | None = None) -> Variable | None:
        """A variable by name, or None; None as well if it has another shape than asked for."""
        variable = self._registry.by_name.get(name)
        return variable if variable is not None and (shape is None or variable.has_shape(shape)) else None

    def __getitem__(self, name: str) -> Variable:
        try:
            return self._registry.by_name[name]
        except KeyError:
            raise UnknownNameError(f"the store has no variable {name!r}; store.variables() lists them") from None

    def __contains__(self, name: object) -> bool:
        return name in self._registry.by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables())

    def __len__(self) -> int:
        return len(self._registry.variables)

    @property
    def is_empty(self) -> bool:
        return not self._registry.variables

    @property
    def numel(self) -> int:
        """Elements of all variables, without padding."""
        return sum(v.spec.numel for v in self._registry.variables)

    def gradient_names(self) -> list[str]:
        """Names of the variables that have a gradient now, in creation order."""
        return [v.name for v in self._registry.variables if v.grad is not None]

    def rename(self, name: str, new_name: str) -> None:
        """Gives a variable another name; id, values, gradient, optimizer state and module attribute stay.

        Raises:
            UnknownNameError, NameTakenError, SpecError: nothing has changed then.
        """
        self._registry.rename(self[name], new_name)

    def summary(self) -> str:
        """Variables with their shapes and state, and the bytes of every stream, as a table."""
        rows = [f"{v.name:<48} {tuple(v.shape)!s:<20} {v.dtype!s:<16} {_state(v)}" for v in self._registry.variables]
        streams = self._registry.streams
        return "\n".join([*rows, f"{len(rows)} variables, {streams.nbytes:,} bytes in {', '.join(streams.names())}"])

    def __repr__(self) -> str:
        dtypes = ", ".join(str(region.dtype) for region in self.regions) or "empty"
        return f"VarStore({len(self)} variables, {self.device}, {dtypes})"

    # Invariants -------------------------------------------------------------------------------------------------------

    def check_aliases(self) -> None:
        """Raises AliasError when a Parameter no longer lies in the store, or its module holds another one.

        A buffer that its module replaced by another of the same shape and dtype is taken in again.
        """
        self._registry.check_aliases()

    def check(self) -> None:
        """Raises if an invariant is broken: aliases, overlaps, padding that is not zero. Reads every byte."""
        self.check_aliases()
        for region in self.regions:
            end = 0
            values = self.values_of(region.dtype)
            spans = [v.span for v in self._registry.variables if v.dtype == region.dtype]
            for span in sorted(spans, key=lambda span: (span.offset, span.stop)):
                if span.offset < end or bool(torch.any(values[end : span.offset] != 0)):
                    raise FlatvarsError(
                        f"variable {span.spec.name!r} overlaps another, or the padding before it is not 0"
                    )
                end = span.offset + span.numel
            if bool(torch.any(values[end:] != 0)):
                raise FlatvarsError(f"the padding at the end of the {region.dtype} region is not 0")
        self._registry.masks.check()


def _state(variable: Variable) -> str:
    if not isinstance(variable.param, nn.Parameter):
        return "buffer"
    return "trainable" if variable.requires_grad else "frozen"
