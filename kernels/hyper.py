"""The hyper-parameter table: a row of numbers for each param group, copied to the device when one changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite
from operator import is_
from typing import Any

import torch
from torch import Tensor

from .addresses import is_capturing, upload
from .errors import FlatvarsError
from .rules import Rule

Group = Mapping[str, Any]
Numbers = tuple[Any, ...]
Check = Callable[[Group], None]


def anything(group: Group) -> None:
    """No check."""


# What cannot change in place: a group that holds the very same of these gives the same numbers.
_FIXED = (int, float, bool, str, type(None))


def _is_fixed(value: object) -> bool:
    return isinstance(value, _FIXED) or (isinstance(value, tuple) and all(map(_is_fixed, value)))


# What rules read no number from.
_NO_NUMBERS = ("params", "param_names")


def is_fixed_group(group: Group) -> bool:
    """Whether a group that holds the very same objects gives the same numbers: none of them can change in place."""
    return all(name in _NO_NUMBERS or _is_fixed(value) for name, value in group.items())


class _Row:
    """The numbers of a group, and what the group held when they were made of it.

    Args:
        before: Of the same group, as it was: what is checked is not checked again for another learning rate.
    """

    def __init__(self, rule: Rule, limit: float, group: Group, check: Check, before: _Row | None = None) -> None:
        if before is None or not before._turned(rule, group):
            check(group)
        self.rule, self.limit = rule, limit
        self._keys, self._values = list(group), list(group.values())
        self._fixed = is_fixed_group(group)
        self.numbers: Numbers = (limit, *rule.row(group))

    def turned(self, group: Group) -> _Row:
        """That of the same group when a schedule has turned its learning rate, and nothing else changed."""
        made = _Row.__new__(_Row)
        made.rule, made.limit, made._fixed, made._keys = self.rule, self.limit, self._fixed, self._keys
        made._values, made.numbers = list(group.values()), (self.limit, *self.rule.row(group))
        return made

    def holds(self, rule: Rule, limit: float, group: Group) -> bool:
        """Whether the numbers would be the same, by identity alone: no number is compared, and no tensor read."""
        return (
            self._fixed
            and rule is self.rule
            and limit == self.limit
            and list(group) == self._keys
            and all(map(is_, group.values(), self._values))
        )

    def _turned(self, rule: Rule, group: Group) -> bool:
        """Whether a schedule turned the learning rate, of which any number will do, and nothing else changed."""
        rate = group.get("lr")
        return (
            self._fixed
            and rule is self.rule
            and type(rate) is float
            and isfinite(rate)
            and list(group) == self._keys
            and all(key == "lr" or group[key] is was for key, was in zip(self._keys, self._values, strict=True))
        )


class HyperTable:
    """See above; float32 (float64) [groups, 1 + columns of the rule], max_norm first; float64 of rules with stages.

    The table stays where it is while its shape does, so that a captured graph reads what is uploaded later.

    Attributes:
        version: Grows when other numbers are written.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._table: Tensor | None = None
        self._outgrown: list[Tensor] = []  # a graph may have been captured with it
        self._rows: list[_Row] = []
        self._uploaded: list[Numbers] = []
        self.version = 0

    def upload(self, rule: Rule, groups: Sequence[Group], max_norm: float | None, check: Check = anything) -> Tensor:
        """The table, after what changed was copied over; `check` sees every group that may have changed, and raises.

        A number that is a tensor on the device is copied there on the device, every time: its value is not known here.

        Raises:
            FlatvarsError: numbers changed, or there were none yet, while a CUDA graph is captured.
        """
        limit = inf if max_norm is None else max_norm
        rows = self._rows
        if self._table is not None and len(rows) == len(groups):
            pairs = zip(rows, groups, strict=True)
            rows = [
                row if row.holds(rule, limit, group) else _Row(rule, limit, group, check, row) for row, group in pairs
            ]
            if all(map(is_, rows, self._rows)):
                return self._table
        else:
            rows = [_Row(rule, limit, group, check) for group in groups]
        table = self._write([row.numbers for row in rows], torch.float64 if rule.wide else self.dtype)
        self._rows = rows  # not before: what could not be written is written by the next call
        return table

    def turn(self, groups: Sequence[Group]) -> None:
        """Copies the numbers of the groups over, in which nothing but learning rates, each a number, changed.

        Raises:
            FlatvarsError: while a CUDA graph is captured.
        """
        assert self._table is not None
        rows = [row.turned(group) for row, group in zip(self._rows, groups, strict=True)]
        self.version += 1
        self._send(self._table, [tuple(map(float, row.numbers)) for row in rows])
        self._rows = rows

    def _write(self, rows: list[Numbers], dtype: torch.dtype) -> Tensor:
        self.version += 1
        shape = (len(rows), len(rows[0]))
        if self._table is None or self._table.shape != shape or self._table.dtype != dtype:
            self._outgrown += [] if self._table is None else [self._table]
            self._table, self._uploaded = torch.zeros(shape, dtype=dtype, device=self.device), []
        on_device = [(i, j, x) for i, row in enumerate(rows) for j, x in enumerate(row) if isinstance(x, Tensor)]
        numbers = [tuple(0.0 if _lies_there(x) else float(x) for x in row) for row in rows]
        self._send(self._table, numbers)
        for i, j, x in on_device:
            if _lies_there(x):
                self._table[i, j].copy_(x.squeeze(), non_blocking=True)
        return self._table

    def _send(self, table: Tensor, numbers: list[Numbers]) -> None:
        if numbers == self._uploaded:
            return
        if is_capturing(table):
            # A captured copy would put today's numbers back at every replay.
            raise FlatvarsError(
                "param_groups changed since the last step, or no step was taken yet, while a CUDA graph is being "
                "captured; call optimizer.upload_hyperparameters() before the capture and before each replay"
            )
        upload(table, torch.tensor(numbers, dtype=table.dtype))
        self._uploaded = numbers


def _lies_there(number: object) -> bool:
    """Whether it is a tensor on a device, which is not read here."""
    return isinstance(number, Tensor) and number.is_cuda
