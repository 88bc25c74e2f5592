"""What an optimizer does about an average of its values: numbers of param groups, and the rule that keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..backend import SCHEDULES, UPDATES, Rule, averaged
from ..errors import FlatvarsError
from .checks import check_at_least, check_number


def check_average(schedule: str | None, numbers: Mapping[str, Any]) -> None:
    """Raises ValueError for a schedule that there is not, or for numbers of it that are out of range."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: give one of {', '.join(map(repr, SCHEDULES))}")
    for name in SCHEDULES[schedule][1]:
        if name not in numbers:
            raise ValueError(f"a param group has no {name!r}, which the average of its values needs; set it")
        plain = name.removeprefix("ema_")
        check_number(plain, numbers[name])
        if name in ("ema_decay", "ema_min_decay") and not 0.0 <= float(numbers[name]) <= 1.0:
            raise ValueError(f"Invalid {plain} value: {numbers[name]}; it must be between 0 and 1")
        if name == "ema_gamma" and schedule == "warmup" and not float(numbers[name]) > 0.0:
            raise ValueError(f"Invalid gamma value: {numbers[name]}; it must be above 0")
        check_at_least(0.0, **{plain: numbers[name]})


class Averaging:
    """The part of an optimizer that knows of an average.

    Attributes:
        average: Schedule of the average that the steps keep; None without one.
        average_numbers: Of it, for param groups that are added.
        ema: Who asked for it.
        swapped: Whether the averages are in the place of the values.
    """

    average: str | None = None
    average_numbers: dict[str, Any]
    ema: Any = None
    swapped = False

    average_scalars = (UPDATES,)

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """Numbers of its own, however it is made: by a call, a copy or pickle."""
        made = super().__new__(cls)
        made.average_numbers = {}
        return made

    param_groups: list[dict[str, Any]]

    def keep_average(self, ema: Any, schedule: str, numbers: dict[str, Any]) -> None:
        """From the next step on."""
        self.ema, self.average, self.average_numbers = ema, schedule, numbers
        for group in self.param_groups:
            group.update(numbers)

    def with_average(self, rule: Rule) -> Rule:
        """A rule of this optimizer as it is stepped."""
        return rule if self.average is None else averaged(rule, self.average)

    def refuse_swapped(self, what: str) -> None:
        """Raises FlatvarsError where averages are in the place of the values."""
        if self.swapped:
            raise FlatvarsError(
                f"the values are averages inside `with ema.swapped():`, and {what}; leave the block first"
            )
