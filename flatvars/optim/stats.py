"""Numbers of every variable that a step tells by the way: norms, ratios, counts. They stay on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backend import OBSERVED
from ..memory.streams import normal_tensors
from ..variables.variable import Variable

COLUMNS = (
    "value_norm",
    "grad_norm",
    "update_norm",
    "update_ratio",
    "cosine",
    "nonfinite",
    "zeros",
    "stuck",
)
"""What `VariableStats` holds of every variable, in this order."""

COUNTS = ("nonfinite", "zeros", "stuck")
"""Those of them that are numbers of elements."""


@dataclass(frozen=True, eq=False)
class VariableStats(Mapping[str, dict[str, Tensor]]):
    """What the last step that was looked at tells of each variable: name to column to a tensor [].

    Nothing waits for the device until a number is read. NaN where a variable was in no such step.

    Attributes:
        names: Of the variables.
        value_norm: L2 norm of each value after the step, float64 [variables] on the device, as all others.
        grad_norm: Of its gradient, unscaled, before clipping.
        update_norm: Of what the step added, decay included.
        update_ratio: update_norm / value_norm.
        cosine: Of gradient and momentum: of the momentum before the step, where the step moves it (LAMB moves it in a
            launch before); 0 where one of them is 0 or there is none.
        nonfinite: Elements of the gradient that are NaN or infinite.
        zeros: Elements of the gradient that are 0.
        stuck: Elements that should have moved and are stored as they were: too small a step for their dtype.
    """

    names: tuple[str, ...]
    value_norm: Tensor
    grad_norm: Tensor
    update_norm: Tensor
    update_ratio: Tensor
    cosine: Tensor
    nonfinite: Tensor
    zeros: Tensor
    stuck: Tensor

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        if name not in self.names:
            raise KeyError(f"{name!r} is no variable of the optimizer that these numbers are of")
        row = self.names.index(name)
        return {column: getattr(self, column)[row] for column in COLUMNS}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"VariableStats({len(self)} variables: {', '.join(COLUMNS)})"


class Observations:
    """Tables of sums, one row for each variable's row of counts; the kernels write there.

    One is of launches that see the values, and the gradient, if no other one does; the other of launches that see the
    gradient where another one moves the value.
    """

    def __init__(self) -> None:
        self._tables: list[Tensor] = []
        self._owners: dict[int, int] = {}  # id of the variable whose numbers a row holds
        self._noted: object = None

    def tables(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Of values, and of gradients, with as many rows as there are counts."""
        if not self._tables or len(self._tables[0]) != len(steps) or self._tables[0].device != steps.device:
            with normal_tensors():
                shape = (len(steps), len(OBSERVED))
                made = [torch.full(shape, torch.nan, dtype=torch.float64, device=steps.device) for _ in range(2)]
            for old, new in zip(self._tables, made, strict=False):
                rows = min(len(old), len(new))
                new[:rows] = old[:rows].to(new.device)
            self._tables = made
        return self._tables[0], self._tables[1]

    def note(self, variables: Sequence[Variable], slots: Mapping[int, int], plans: object) -> None:
        """Whose rows a step writes."""
        if plans is not self._noted:
            self._noted = plans
            self._owners.update((slots[v.id], v.id) for v in variables)

    def read(
        self,
        variables: Iterable[Variable],
        slots: Mapping[int, int],
        steps: Tensor,
        together: Callable[[Tensor], Tensor],
    ) -> VariableStats:
        """What the tables hold of some variables.

        Args:
            together: Makes sums over whole variables of those over what this rank has of them.
        """
        variables = list(variables)
        values, gradients = self.tables(steps)
        rows = torch.tensor([slots[v.id] for v in variables], dtype=torch.int64).to(steps.device, non_blocking=True)
        known = torch.tensor([self._owners.get(slots[v.id]) == v.id for v in variables], dtype=torch.bool)
        found, apart = together(values[rows]), together(gradients[rows])
        seen = apart[:, OBSERVED.index("nonfinite")].isnan().logical_not()
        of_gradients = [name in ("gradient", "agreement", "momentum", "nonfinite", "zeros") for name in OBSERVED]
        chosen = seen[:, None] & torch.tensor(of_gradients).to(steps.device, non_blocking=True)
        found = torch.where(chosen, apart, found)
        found = torch.where(known.to(steps.device, non_blocking=True)[:, None], found, torch.nan)
        value, gradient, update, agreement, momentum, nonfinite, zeros, stuck = found.unbind(1)
        both = (gradient * momentum).sqrt()
        return VariableStats(
            tuple(v.name for v in variables),
            value.sqrt(),
            gradient.sqrt(),
            update.sqrt(),
            (update / value).sqrt(),
            torch.where(both == 0.0, 0.0, agreement / both),
            nonfinite,
            zeros,
            stuck,
        )
