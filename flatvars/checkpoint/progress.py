"""How far a thing is that takes long: one line on standard error, written over on a terminal, a few lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

PATIENCE = 1.0
"""Seconds before the first line: what is shorter shows nothing."""

LOG_LINES = 10
"""Lines in a log, where nothing can be written over."""

UNITS = ("B", "KB", "MB", "GB", "TB")


def size(count: int) -> str:
    """Bytes for people."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def of_bytes(done: int, total: int) -> str:
    return f"{100 * done // max(total, 1)}% of {size(total)}"


class Progress:
    """What is done of what there is to do.

    Args:
        label: What is going on.
        enabled: Whether anybody asked for it.
        describe: Done and total in words; bytes if not given.
    """

    def __init__(self, label: str, enabled: bool = True, describe: Callable[[int, int], str] = of_bytes) -> None:
        self.label, self.enabled, self.describe = label, enabled, describe
        self._terminal = sys.stderr.isatty()
        self._shown: object = None
        self.start(0)

    def start(self, total: int, done: int = 0) -> None:
        self._total, self._done, self._first, self._began = total, done, done, time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts; shows it once the wait is longer than the patience.

        Args:
            note: To be shown beside.
        """
        self._done += count
        elapsed = time.monotonic() - self._began
        if not self.enabled or elapsed < PATIENCE:
            return
        part = self._done * (100 if self._terminal else LOG_LINES) // max(self._total, 1)
        if self._shown == (now := (part, note if self._terminal else "")):
            return
        self._shown = now
        left = elapsed / max(self._done - self._first, 1) * (self._total - self._done)
        words = (self.label, self.describe(self._done, self._total), note, f"{left:.0f} s left")
        line = "  ".join(filter(None, words))
        before, behind = ("\r", "") if self._terminal else ("", "\n")
        print(f"{before}{line:<79}{behind}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None and self._terminal:
            print(file=sys.stderr)
