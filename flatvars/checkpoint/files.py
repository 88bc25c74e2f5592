"""Files that appear whole or not at all: written beside, synced, renamed; the folder is synced, too.

A draft is locked by its writer, so that the next save knows a dead process's draft from a living one's and removes it.
Publishing takes a lock on the folder. Where the file system has no locks, nothing of others is ever removed; names of
drafts and shards are unique, so that saves still never mix.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Takes an exclusive lock; False if another process has it, or there are no locks here."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (*NO_LOCKS, errno.EWOULDBLOCK):
            return False
        raise
    return True


@dataclass(frozen=True)
class Folder:
    """A folder that names are changed in.

    Attributes:
        locked: Whether no other process changes them meanwhile.
    """

    descriptor: int | None
    locked: bool

    def sync(self) -> None:
        """Makes renames last through a loss of power."""
        if self.descriptor is not None:
            os.fsync(self.descriptor)


@contextmanager
def _folder(path: Path) -> Iterator[Folder]:
    if fcntl is None:  # Windows cannot open folders, and syncs renames by itself
        yield Folder(None, False)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield Folder(descriptor, _lock(descriptor, wait=True))
    finally:
        os.close(descriptor)


_releases: list[threading.Thread] = []


def release(descriptors: list[int]) -> None:
    """Closes files that have no name any more, beside what comes next: giving back their blocks takes a while."""

    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    if not descriptors:
        return
    thread = threading.Thread(target=close, name="flatvars-release")
    try:
        thread.start()
    except RuntimeError:  # the interpreter is ending, and starts no more
        close()
    else:
        _releases.append(thread)


def wait_for_releases() -> None:
    """Until the room of what was replaced is free again."""
    with contextlib.suppress(IndexError):  # empty: another thread may take the last one
        while True:
            _releases.pop().join()


class Draft:
    """A file that is being written under a name that nobody reads; locked until it is published or dropped."""

    def __init__(self, final: Path, token: str, like: os.stat_result | None) -> None:
        self.final = final
        self.path = final.with_name(f".{final.name}.{token}.tmp")
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self.descriptor = os.open(self.path, flags, 0o666)
        _lock(self.descriptor, wait=False)
        if like is not None and fcntl is not None:
            with contextlib.suppress(PermissionError):  # a group that this user is not in
                os.fchown(self.descriptor, -1, like.st_gid)
            os.fchmod(self.descriptor, stat.S_IMODE(like.st_mode))

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Publication:
    """One save: its drafts, and how they take the place of what was there.

    Args:
        target: The file that readers open: a single file's name, whose index would be `<name>.index.json`.
    """

    def __init__(self, target: Path) -> None:
        self.target = Path(os.path.realpath(target))  # a link stays a link; what it points to is replaced
        self.token = secrets.token_hex(4)
        self.drafts: list[Draft] = []
        wait_for_releases()
        if not self.target.parent.is_dir():
            raise CheckpointError(f"folder {self.target.parent} does not exist; create it before saving {target}")

    @property
    def index(self) -> Path:
        return self.target.with_name(f"{self.target.name}.index.json")

    def shard(self, part: int, parts: int) -> Path:
        """As Hugging Face names them, with the token of this save, so that no save overwrites another's shard."""
        target = self.target
        return target.with_name(f"{target.stem}-{self.token}-{part:05d}-of-{parts:05d}{target.suffix}")

    def draft(self, final: Path) -> Draft:
        with _folder(self.target.parent) as folder:
            if folder.locked and not self.drafts:
                self._remove_dead_drafts()
            there = [path.stat() for path in (self.target, self.index) if path.is_file()]
            self.drafts.append(Draft(final, self.token, there[0] if there else None))
        return self.drafts[-1]

    def publish(self) -> None:
        """Renames all drafts, the last one last: readers see the old checkpoint until then, and this one after."""
        for draft in self.drafts:
            os.fsync(draft.descriptor)
        replaced: list[int] = []
        try:
            with _folder(self.target.parent) as folder:
                for draft in self.drafts:
                    if fcntl is None:
                        draft.close()  # Windows renames no open file
                    else:
                        replaced += _opened(draft.final)
                    os.replace(draft.path, draft.final)
                folder.sync()
                if folder.locked:
                    self._remove_replaced({draft.final for draft in self.drafts})
                    folder.sync()
        finally:
            release(replaced)
        self.drop()

    def drop(self) -> None:
        """Removes drafts that were not published."""
        for draft in self.drafts:
            draft.close()
            draft.path.unlink(missing_ok=True)
        self.drafts = []

    def _names(self) -> str:
        """A pattern of all names that saves to this target give."""
        stem, suffix = re.escape(self.target.stem), re.escape(self.target.suffix)
        return rf"{stem}(-[0-9a-f]{{8}}-\d{{5}}-of-\d{{5}})?{suffix}(\.index\.json)?"

    def _remove_dead_drafts(self) -> None:
        pattern = re.compile(rf"\.{self._names()}\.[0-9a-f]{{8}}\.tmp")
        for path in [path for path in self.target.parent.iterdir() if pattern.fullmatch(path.name)]:
            # Gone meanwhile, or another user's: it is in nobody's way.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if _lock(descriptor, wait=False):
                        path.unlink()
                finally:
                    os.close(descriptor)

    def _remove_replaced(self, mine: set[Path]) -> None:
        """Removes the shards of earlier saves, and the kind of checkpoint that this one is not."""
        pattern = re.compile(self._names())
        for path in self.target.parent.iterdir():
            if path not in mine and pattern.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _opened(path: Path) -> list[int]:
    """A descriptor of a file, if there is one that may be read."""
    try:
        return [os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)]
    except OSError:
        return []


@contextmanager
def publication(target: Path) -> Iterator[Publication]:
    """A save: published at the end of the block, dropped without a trace if it raises.

    Raises:
        CheckpointError: the disk is full, or a limit on file sizes was reached.
    """
    save = Publication(target)
    try:
        yield save
        save.publish()
    except (OSError, RuntimeError) as error:
        # torch.save turns the system's error into one of its own.
        reason = error if isinstance(error, OSError) else error.__context__
        raise_for_room(reason, target)
        raise
    finally:
        save.drop()


def raise_for_room(error: BaseException | None, target: object) -> None:
    """Raises CheckpointError if an error of the system says that there is no room."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        raise CheckpointError(
            f"no room to save {target}: {error.strerror}. What was there before is untouched; make room, or save to "
            "another disk"
        ) from error


def write_views(descriptor: int, views: Sequence[memoryview]) -> None:
    """Writes all of some buffers at the file's position, in as few calls as the system allows."""
    if not hasattr(os, "writev"):
        for view in views:
            while len(view):
                view = view[os.write(descriptor, view) :]
        return
    pending = [view for view in views if len(view)]
    limit = min(os.sysconf("SC_IOV_MAX"), 1024)
    start = 0
    while start < len(pending):
        batch: list[Any] = pending[start : start + limit]
        written = os.writev(descriptor, batch)
        while start < len(pending) and written >= len(pending[start]):
            written -= len(pending[start])
            start += 1
        if written:
            pending[start] = pending[start][written:]


def start_writeback(descriptor: int, count: int) -> None:
    """Has the system move the last `count` bytes written to the disk, beside what comes next: the sync waits less."""
    if hasattr(os, "posix_fadvise"):
        # Pages on their way to the disk are not dropped by this.
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.posix_fadvise(descriptor, position - count, count, os.POSIX_FADV_DONTNEED)
