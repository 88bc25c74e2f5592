"""A progress display on stderr: rich's bar in a terminal, one rewritten line without rich, a few lines in a log."""

from __future__ import annotations

import sys
import time

LOG_LINES = 10


class Progress:
    """Shows how far the run is; use as a context manager."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = total
        self.first = done
        self.start = time.perf_counter()
        self.is_terminal = sys.stderr.isatty()
        self.bar = _rich_bar() if self.is_terminal else None
        if self.bar is not None:
            self.task = self.bar.add_task("", total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.is_terminal:
            print(file=sys.stderr)

    def update(self, done: int, note: str) -> None:
        """Show that ``done`` of the steps are made, with a short note beside it."""
        if self.bar is not None:
            self.bar.update(self.task, completed=done, note=note)
            return
        elapsed = time.perf_counter() - self.start
        left = elapsed / (done - self.first) * (self.total - done)
        line = f"step {done}/{self.total}  {note}  {left:.0f} s left"
        if self.is_terminal:
            print(f"\r{line:<79}", end="", file=sys.stderr, flush=True)
        elif done * LOG_LINES // self.total > (done - 1) * LOG_LINES // self.total:
            print(line, file=sys.stderr, flush=True)


def _rich_bar():
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
    except ImportError:
        return None
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    return RichProgress(*columns, console=Console(stderr=True))
