"""What is the same in a part's launches, step after step; and whether the last one may simply be made once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..backend import Again, Rule, Stored, is_rounded
from ..memory.streams import Stream
from .states import origin_of

_address = Tensor.data_ptr


class Lasting:
    """The launches of one part, for as long as its rule is the same and no stream or count moves.

    Args:
        version: Of the states: when it grows, streams or counts have moved.
        values, states: As launches want them.
        counts: Of steps, of those that were skipped, and the scalars that the rule's variables keep.

    Attributes:
        arguments: Of `Plan.step_`.
        draws: Whether values or states are rounded at random, unless that is turned off.
        hyper_version: Of the numbers that the launch was given which was noted last.
    """

    def __init__(
        self, rule: Rule, version: int, values: Stored, states: Sequence[Stream], counts: Mapping[str, Any]
    ) -> None:
        self.rule, self.version = rule, version
        stored = [held.stored for held in states]
        self.arguments = {"rule": rule, "values": values, "states": stored, **origin_of(states), **counts}
        few = [is_rounded(held.buffer.dtype, held.format) for held in states]
        self.draws = values.at_random or max(rule.draws(few), default=-1) >= 0
        self._tensors = [tensor for one in (values, *stored) for tensor in (one.buffer, *one.beside)]
        self._tensors += [counts["steps"], counts["skipped"], *counts["own"]]
        self._tensors += [] if values.places is None else [values.places]
        self._again: Again | None = None
        self._switches: tuple[Any, ...] = ()
        self._addresses: list[int] = []
        self.hyper_version = 0

    def note(self, again: Again, switches: tuple[Any, ...], hyper_version: int) -> None:
        """A launch was made.

        Args:
            again: What makes it once more.
            switches: All that it was given beside this, the numbers of its groups and the norm, to be compared.
            hyper_version: Of these numbers.
        """
        self._again, self._switches, self.hyper_version = again, switches, hyper_version
        self._addresses = list(map(_address, self._tensors))

    def again(self, switches: tuple[Any, ...], hyper_version: int) -> Again | None:
        """What makes the launch that was noted once more, if it was given the same, and all of that lies where it lay.

        For numbers that were turned since, `hyper_version` is to be set when they are uploaded.
        """
        same = hyper_version == self.hyper_version and switches == self._switches
        return self._again if same and list(map(_address, self._tensors)) == self._addresses else None
