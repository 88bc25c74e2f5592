"""The norm that an accumulation left: of which variables it is, and whether it still holds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .plans import PlanSet


class KnownNorm:
    """Of one set of variables, or of none.

    Attributes:
        exposed: The stream was handed out: what it holds may change behind our back, and no norm of it is known.
    """

    def __init__(self) -> None:
        self.exposed = False
        self._noted: tuple[PlanSet, set[int], list[int]] | None = None

    def note(self, plans: PlanSet, variables: set[int], streams: Sequence[Tensor]) -> None:
        """The norm of these plans is that of what the streams hold of some variables now."""
        self._noted = plans, variables, [stream._version for stream in streams]

    def forget(self) -> None:
        self._noted = None

    def holds(self, variables: set[int], streams: Sequence[Tensor], generation: int) -> bool:
        """Whether the norm of just these variables is known, of streams that nobody has written since."""
        if self._noted is None or self.exposed:
            return False
        plans, of, versions = self._noted
        now = [stream._version for stream in streams]
        return of == variables and plans.generation == generation and versions == now
