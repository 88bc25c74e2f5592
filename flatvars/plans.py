"""Plans of all regions for some variables: what a gradient store or an optimizer launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NoReturn

import torch
from torch import Tensor

from .backend import make_plan
from .errors import AliasError
from .registry import Registry
from .variable import Variable

_address = torch.Tensor.data_ptr
_requires_grad = attrgetter("requires_grad")


@dataclass(frozen=True)
class Part:
    """One region's share: which of the variables it covers, in the order of its plan."""

    region: torch.dtype
    order: list[int]
    plan: Any
    in_order: bool

    def pick(self, items: Sequence[Any]) -> Sequence[Any]:
        """Items of all variables, reduced to this region's and put in its order."""
        return items if self.in_order else [items[i] for i in self.order]


class PlanSet:
    """Plans over some trainable variables, one per region, sharing one norm.

    Attributes:
        norm: Of the gradients, a device scalar; float64 where a region is.
    """

    def __init__(self, registry: Registry, variables: Sequence[Variable], groups: Sequence[int] | None = None) -> None:
        self.registry = registry
        self.generation = registry.generation
        self.variables = list(variables)
        self.params = [v.param for v in self.variables]
        self._addresses = list(map(_address, self.params))
        regions = list(dict.fromkeys(v.dtype for v in self.variables)) or [torch.float32]
        wide = torch.float64 if torch.float64 in regions else torch.float32
        self.norm = torch.zeros((), dtype=wide, device=registry.device)
        sums = torch.zeros(len(regions), dtype=wide, device=registry.device)
        self.parts: list[Part] = []
        for slot, region in enumerate(regions if self.variables else []):
            members = [k for k, v in enumerate(self.variables) if v.dtype == region]
            position = {self.variables[k].index: k for k in members}
            rows = None if groups is None else [groups[k] for k in members]
            indices, segments = registry.layout.segments([self.variables[k].index for k in members], rows)
            order = [position[i] for i in indices]
            plan = make_plan(segments, registry.device, self.norm, sums, slot)
            self.parts.append(Part(region, order, plan, order == list(range(len(self.variables)))))

    def check(self) -> None:
        """Raises AliasError when a parameter left the buffer: one address per variable, compared as a list."""
        if list(map(_address, self.params)) != self._addresses:
            for variable, expected in zip(self.variables, self._addresses, strict=True):
                if variable.param.data_ptr() != expected:
                    explain_alias(self.registry, variable)

    def all_require_grad(self) -> bool:
        """False when a variable was frozen by plain torch since the plans were made."""
        return all(map(_requires_grad, self.params))

    def pending(self) -> list[Tensor | None]:
        """What autograd left: `.grad` of every parameter."""
        return [param.grad for param in self.params]

    def scattered(self, grads: Sequence[Tensor | None]) -> list[Any]:
        return [part.plan.scattered(part.pick(grads)) for part in self.parts]

    def gathered(self, streams: Callable[[torch.dtype], Tensor], touched: Sequence[bool]) -> list[Any]:
        return [part.plan.gathered(streams(part.region), part.pick(touched)) for part in self.parts]

    def norm_(self, sources: Sequence[Any]) -> Tensor:
        """Takes the L2 norm over all regions: one launch each."""
        for part, source in zip(self.parts, sources, strict=True):
            part.plan.norm_(source)
        return self.norm

    def values(self, part: Part) -> Tensor:
        return self.registry.streams.values(part.region)

    def variable_norms(self, sources: Sequence[Any] | None, order: float, values: bool) -> tuple[Tensor, Tensor]:
        """Norms of every variable's value and gradient, [variables] each: one launch a region."""
        out = torch.zeros((len(self.variables), 2), dtype=self.norm.dtype, device=self.norm.device)
        for k, part in enumerate(self.parts):
            stream = self.values(part) if values else None
            norms = part.plan.variable_norms(stream, None if sources is None else sources[k], order)
            if part.in_order:
                out = norms.to(out.dtype)
            else:
                out[torch.tensor(part.order, device=out.device)] = norms.to(out.dtype)
        return out[:, 0], out[:, 1]


def explain_alias(registry: Registry, variable: Variable) -> NoReturn:
    """Raises the AliasError of a variable whose parameter lies elsewhere."""
    param = variable.param
    raise AliasError(
        f"variable {variable.name!r} no longer lies in its store: its Parameter now holds a {param.dtype} tensor of "
        f"shape {tuple(param.shape)} on {param.device} at another address (the store holds {variable.dtype}, "
        f"{tuple(variable.shape)}, {registry.device}). Something replaced its memory: module.to(), half(), double(), "
        "load_state_dict(assign=True), vector_to_parameters or `.data =`. Call store.rebind() to take the new values "
        "in, or store.restore_aliases() to go back to the store's"
    )
