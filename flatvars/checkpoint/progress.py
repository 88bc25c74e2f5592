"""A progress bar for saves and loads that take long, where one was asked for."""

from __future__ import annotations

import sys
import time
from typing import Any

PATIENCE = 1.0
"""Seconds before a bar appears: what is shorter shows nothing."""


class Progress:
    """Bytes done of bytes to do; drawn on standard error, by rich where it is installed.

    Args:
        label: What is going on.
        enabled: Whether the caller asked for it.
    """

    def __init__(self, label: str, enabled: bool) -> None:
        self.label = label
        self.enabled = enabled
        self._total = 0
        self._done = 0
        self._began = 0.0
        self._bar: Any = None
        self._drawn = -1

    def start(self, total: int) -> None:
        self._total, self._done, self._began = total, 0, time.monotonic()

    def advance(self, count: int) -> None:
        """Counts bytes; draws once the wait is longer than the patience."""
        self._done += count
        if self.enabled and (self._bar is not None or time.monotonic() - self._began >= PATIENCE):
            self._draw()

    def _draw(self) -> None:
        if self._bar is None:
            self._bar = _rich_bar(self.label, self._total) or _Plain(self.label, self._total)
        self._bar.update(self._done)

    def finish(self) -> None:
        """Leaves the last state of the bar on the screen."""
        if self._bar is not None:
            self._bar.update(self._done)
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()


class _Plain:
    """A line of text that is written over."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.percent = label, max(total, 1), -1

    def update(self, done: int) -> None:
        percent = 100 * done // self.total
        if percent != self.percent:
            self.percent = percent
            print(f"\r{self.label} {percent:3d}% of {self.total / 1e9:.2f} GB", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        print(file=sys.stderr)


class _Rich:
    def __init__(self, label: str, total: int, bars: Any) -> None:
        self.bars = bars
        self.bars.start()
        self.task = self.bars.add_task(label, total=total)

    def update(self, done: int) -> None:
        self.bars.update(self.task, completed=done)

    def close(self) -> None:
        self.bars.stop()


def _rich_bar(label: str, total: int) -> _Rich | None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars
    except ImportError:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return _Rich(label, total, Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)))
