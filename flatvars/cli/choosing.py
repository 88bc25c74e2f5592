"""Which tensors a command is about: where they lie in a file, and which of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from ..errors import UnknownNameError
from ..variables.selectors import as_select, fits_name


def add_select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--select", action="append", metavar="GLOB", help="only these names; may be repeated")


def add_key(parser: argparse.ArgumentParser, option: str = "--key", of: str = "a torch file") -> None:
    words = f"where the state dict lies in {of}; repeated: one key within the other"
    parser.add_argument(option, action="append", metavar="KEY", help=words)


def chosen(names: Iterable[str], select: list[str] | None, where: str) -> list[str]:
    """The names that `--select` leaves; all if it was not given.

    Args:
        where: What holds them, for the error.

    Raises:
        UnknownNameError: it leaves none.
    """
    names, selector = list(names), as_select(select)
    found = [name for name in names if fits_name(name, selector)]
    if select and not found:
        shown = ", ".join(map(repr, names[:3]))
        raise UnknownNameError(f"--select {' '.join(select)} matches none of {len(names)} names in {where}: {shown}")
    return found
