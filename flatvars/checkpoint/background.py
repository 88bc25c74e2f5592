"""Writing in the background: one save of a store at a time, and no error is lost."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import CheckpointError
from ..variables.registry import Registry

logger = logging.getLogger("flatvars")

_writers: weakref.WeakKeyDictionary[Registry, Writer] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Job:
    """A save that was begun: where to, and whose memory it reads."""

    future: Future[None]
    what: str
    owner: object


class Writer:
    """A thread that saves. Python waits for it at exit, so that a save that was begun is finished."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flatvars-save")
        self._job: Job | None = None

    def submit(self, save: Callable[[], None], what: str, owner: object) -> None:
        """Starts a save; waits for the one before it.

        Raises:
            CheckpointError: that one failed; this one is not started.
        """
        self.wait()

        def run() -> None:
            try:
                save()
            except BaseException:
                # Raised at the next call, too; but there may be none.
                logger.exception("saving %s in the background failed", what)
                raise

        self._job = Job(self._thread.submit(run), what, owner)

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            CheckpointError: what was written failed. It is raised once.
        """
        job, self._job = self._job, None
        if job is not None:
            try:
                job.future.result()
            except Exception as error:
                raise CheckpointError(f"saving {job.what} in the background failed: {error}") from error

    def wait_for(self, owner: object) -> None:
        """Until nobody reads this snapshot's memory."""
        if self._job is not None and self._job.owner is owner:
            self.wait()

    def raise_failure(self) -> None:
        """Raises CheckpointError if the last save has failed already; does not wait."""
        if self._job is not None and self._job.future.done():
            self.wait()


def writer_of(registry: Registry) -> Writer:
    """The writer of a store, made when first asked for."""
    return _writers.setdefault(registry, Writer())
