"""Writing in the background: one save of a store at a time, and no error is lost."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ..errors import CheckpointError
from ..variables.registry import Registry

logger = logging.getLogger("flatvars")

_writers: weakref.WeakKeyDictionary[Registry, Writer] = weakref.WeakKeyDictionary()


class Writer:
    """A thread that saves. Python waits for it at exit, so that a save that was begun is finished."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flatvars-save")
        self._pending: Future[None] | None = None
        self._what = ""
        self._owner: object = None

    def submit(self, job: Callable[[], None], what: str, owner: object) -> None:
        """Starts a save; waits for the one before it.

        Raises:
            CheckpointError: that one failed; this one is not started.
        """
        self.wait()
        self._what, self._owner = what, owner
        self._pending = self._thread.submit(self._run, job, what)

    @staticmethod
    def _run(job: Callable[[], None], what: str) -> None:
        try:
            job()
        except BaseException:
            # Raised at the next call, too; but there may be none.
            logger.exception("saving %s in the background failed", what)
            raise

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            CheckpointError: what was written failed. It is raised once.
        """
        pending, self._pending, self._owner = self._pending, None, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise CheckpointError(f"saving {self._what} in the background failed: {error}") from error

    def raise_failure(self) -> None:
        """Raises CheckpointError if the last save has failed already; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def holds(self, owner: object) -> bool:
        """Whether the save in progress reads this snapshot's memory."""
        return self._owner is owner and self._pending is not None


def writer_of(registry: Registry) -> Writer:
    """The writer of a store, made when first asked for."""
    writer = _writers.get(registry)
    if writer is None:
        writer = _writers[registry] = Writer()
    return writer
