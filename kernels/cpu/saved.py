"""Machine code on disk: what one process has compiled, the next ones load.

A launch takes LLVM some tenths of a second, a loaded one milliseconds. Its name is a digest of all it was made of: the
function with everything it refers to, a user's rule as well as ours, its signature, and the generation: the source of
this package, the versions of Python, Numba and LLVM, and the processor. So nothing is ever stale, and a file that is
damaged, in the middle of being written or not ours is as good as none.

Files lie in `$FLATVARS_CACHE_DIR`, or in `flatvars` below `$XDG_CACHE_HOME` or `~/.cache`, in a folder
`code-GENERATION`; an empty `FLATVARS_CACHE_DIR` means none are kept. They may be deleted at any time; a new generation
leaves the `KEPT` latest, and touches nothing else that lies beside them. Where the folder cannot be written, or others
may write it or a file, each process compiles for itself.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import types
from numba.core.registry import cpu_target
from numba.core.types import Type
from numba.core.typing import Signature

KEPT = 4
"""Generations whose files stay: several environments may share a home."""
_FOLDER = re.compile("code-[0-9a-f]{32}")
_DIGEST = hashlib.sha256
_PLAIN = (str, bytes, int, float, bool, type(None), np.generic, np.dtype, Type, Signature, range)


class UnkeyedError(Exception):
    """A function refers to something that no key can be made of."""


def key_of(function: Callable[..., Any], signature: Any) -> str:
    """A digest of a function, of all it refers to, and of the signature it is compiled for.

    Raises:
        UnkeyedError: it refers to something that may change without a sign.
    """
    digest = _DIGEST(repr(signature).encode())
    for part in _parts(function, {}):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _parts(value: Any, seen: dict[int, int]) -> Iterator[str]:
    """What tells a value from others, as text; `seen` numbers what was gone through, by id."""
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}"
        if isinstance(value, types.BaseTuple):  # of a named one, its text tells the class alone
            yield repr(getattr(value, "fields", ()))
            for each in value.types:
                yield from _parts(each, seen)
    elif isinstance(value, ModuleType):
        yield f"module {value.__name__}"
        if value.__spec__ is None:  # made at run time
            yield from _members(vars(value), seen)
    elif id(value) in seen:
        yield f"again {seen[id(value)]}"
    else:
        seen[id(value)] = len(seen)
        yield from _inner_parts(value, seen)


def _inner_parts(value: Any, seen: dict[int, int]) -> Iterator[str]:
    if isinstance(value, FunctionType):
        yield from _function(value, seen)
        return
    inner = getattr(value, "py_func", None) or getattr(value, "__wrapped__", None)
    if isinstance(inner, FunctionType):  # of Numba's function or intrinsic, or of a cache
        yield f"{type(value).__name__} {sorted(getattr(value, 'targetoptions', {}).items())}"
        yield from _function(inner, seen)
    elif isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        yield f"{value.__module__}.{value.__qualname__} {getattr(value, '_fields', ())}"
    elif isinstance(value, (tuple, list)):
        yield f"{type(value).__name__} {len(value)}"
        for each in value:
            yield from _parts(each, seen)
    elif isinstance(value, (set, frozenset)):
        yield type(value).__name__
        yield from sorted(" ".join(_parts(each, {})) for each in value)
    elif isinstance(value, dict):
        yield "dict"
        yield from _members(value, seen)
    elif type(value).__module__.startswith("llvmlite.ir"):
        yield f"{type(value).__name__} {value}"
    elif type(value).__module__.startswith(__package__.rpartition(".")[0]) and hasattr(value, "__dict__"):
        yield type(value).__qualname__
        yield from _members(vars(value), seen)
    else:
        raise UnkeyedError(f"a {type(value).__module__}.{type(value).__qualname__}: {value!r}")


def _members(members: dict[Any, Any], seen: dict[int, int]) -> Iterator[str]:
    for name, value in members.items():
        if not str(name).startswith("__"):
            yield str(name)
            yield from _parts(value, seen)


def _function(function: FunctionType, seen: dict[int, int]) -> Iterator[str]:
    yield function.__qualname__
    yield from _code(function.__code__)
    for default in function.__defaults__ or ():
        yield from _parts(default, seen)
    for cell in function.__closure__ or ():
        yield from _parts(cell.cell_contents, seen)
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name
            yield from _parts(function.__globals__[name], seen)


def _code(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


# Files ----------------------------------------------------------------------------------------------------------------


def _base() -> Path | None:
    """The folder of all generations; None where nothing is to be kept."""
    named = os.environ.get("FLATVARS_CACHE_DIR")
    if named is not None:
        return Path(named) if named else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flatvars"
    except RuntimeError:  # nobody's home
        return None


@functools.cache
def _generation() -> str:
    digest = _DIGEST()
    told = (sys.version, numba.__version__, llvmlite.__version__, cpu_target.target_context.codegen().magic_tuple())
    settings = (numba.config.OPT, numba.config.LOOP_VECTORIZE, numba.config.SLP_VECTORIZE, numba.config.DEBUG)
    digest.update(repr((told, settings)).encode())
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _is_ours(found: os.stat_result) -> bool:
    """Whether nobody else may write there: what is loaded from it is run."""
    if not hasattr(os, "getuid"):
        return True
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _folder(base: Path) -> Path:
    return base / f"code-{_generation()}"


def _is_our_folder(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and _is_ours(found)


def _read(path: Path) -> bytes | None:
    """The bytes of a file that is ours: the very file is asked, as its name may be given to another one meanwhile."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        return file.read() if _is_ours(os.fstat(file.fileno())) else None


def _digest(key: str, data: bytes) -> bytes:
    """Of a file's content: what lies under another key is not sound."""
    return _DIGEST(key.encode() + data).digest()


def load(key: str) -> tuple[str, bytes] | None:
    """The name of a symbol and the object file that defines it; None if there is no sound file of this key."""
    base = _base()
    if base is None:
        return None
    try:
        folder = _folder(base)
        data = _read(folder / key) if _is_our_folder(folder) else None
    except OSError:
        return None
    size = _DIGEST().digest_size
    if data is None or _digest(key, data[size:]) != data[:size]:
        return None
    name, _, code = data[size:].partition(b"\0")
    return name.decode(), code


def save(key: str, name: str, code: bytes) -> None:
    """Keeps an object file for later processes, if that can be."""
    base = _base()
    if base is None:
        return
    data = name.encode() + b"\0" + code
    try:
        folder = _folder(base)
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _drop_old(base)
        if not _is_our_folder(folder):
            return
        number, draft = tempfile.mkstemp(prefix=".", dir=folder)  # which nobody else may write, whatever the umask
        try:
            with os.fdopen(number, "wb") as file:
                file.write(_digest(key, data) + data)
            Path(draft).replace(folder / key)
        finally:
            Path(draft).unlink(missing_ok=True)
    except OSError:
        return


def _drop_old(base: Path) -> None:
    """Deletes all but the latest generations. The folder may be one in which somebody keeps other things."""
    ours = [path for path in base.iterdir() if _FOLDER.fullmatch(path.name) and _is_our_folder(path)]
    for path in sorted(ours, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)
