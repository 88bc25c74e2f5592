"""Arguments and exit codes: 0 fine, 1 differs or damaged, 2 wrong usage (or no such file)."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata

import torch

from ..errors import DamagedFileError, FlatvarsError
from ..version import VERSION
from . import convert, diff, inspect, verify
from .show import printable

PROGRAM = "flatvars"
COMMANDS = (inspect, diff, convert, verify)


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Look into checkpoints (safetensors, torch files, Hugging Face folders).",
        epilog="Exit codes: 0 fine, 1 differs or damaged, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(module.NAME, help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        command.set_defaults(run=module.run)
    return parser


def versions() -> str:
    """Of this library and of what its results depend on."""
    found = [("flatvars", VERSION), ("torch", torch.__version__), ("Python", platform.python_version())]
    for name in ("triton", "numba", "numpy"):
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return "\n".join(f"{name} {version}" for name, version in found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: As on the command line; the process's own if not given.

    Returns:
        The exit code.
    """
    options = make_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough; without this, Python complains once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130  # as a shell says of what was interrupted
    except (FlatvarsError, OSError, ValueError) as error:
        return _explain(options.command, str(error), 1 if isinstance(error, DamagedFileError) else 2)
    except (MemoryError, RuntimeError) as error:  # torch's words for no memory
        words = f"{type(error).__name__}: {str(error) or 'out of memory'}. Nothing was written"
        return _explain(options.command, words, 2)
    return code


def _explain(command: str, words: str, code: int) -> int:
    lines = [printable(line) for line in words.splitlines()]
    print(f"{PROGRAM} {command}: " + "\n".join(lines), file=sys.stderr)
    return code
