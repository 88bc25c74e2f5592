"""Real text found wherever Python is: the source files of its own standard library, as bytes.

The files are read in sorted order, so one Python version always gives the same text. Whole files are held out for
validation: no byte of them is ever trained on.
"""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PACKAGES = ("asyncio", "concurrent", "email", "http", "json", "logging", "unittest")
HELD_OUT = ("argparse.py",)
SKIPPED_FOLDERS = {"test", "tests", "site-packages", "__pycache__"}


@dataclass(frozen=True)
class Text:
    """Training and validation bytes (uint8, one dimension, on one device) and how many files each came from."""

    train: Tensor
    valid: Tensor
    train_files: int
    valid_files: int

    def describe(self) -> str:
        """One line saying what was read."""
        return (
            f"standard library of Python {platform.python_version()}: "
            f"{self.train_files} files, {self.train.numel():,} bytes to train on; "
            f"held out: {', '.join(HELD_OUT)}, {self.valid.numel():,} bytes"
        )


def source_files(root: Path) -> list[Path]:
    """The modules in ``root`` itself and in the chosen packages, sorted by their path below ``root``."""
    found = list(root.glob("*.py"))
    for package in PACKAGES:
        found += (root / package).rglob("*.py")
    relative = (path.relative_to(root) for path in found)
    kept = (path for path in relative if not SKIPPED_FOLDERS.intersection(path.parts))
    # as_posix: the same order with either path separator.
    return [root / path for path in sorted(kept, key=Path.as_posix)]


def read_text(device: torch.device) -> Text:
    """Read the standard library's sources and split them into training and held-out bytes.

    Raises:
        FileNotFoundError: this Python keeps no source files (some embedded builds ship only compiled ones).
    """
    root = Path(sysconfig.get_path("stdlib"))
    train, valid = [], []
    for path in source_files(root):
        is_held_out = path.relative_to(root).as_posix() in HELD_OUT
        (valid if is_held_out else train).append(path.read_bytes())
    if not train or not valid:
        raise FileNotFoundError(
            f"no standard-library source files in {root}: this job trains on them; "
            "run it with a Python that ships its .py files"
        )
    return Text(_to_tensor(train, device), _to_tensor(valid, device), len(train), len(valid))


def _to_tensor(parts: list[bytes], device: torch.device) -> Tensor:
    # A bytearray is writable, which torch.frombuffer wants; a bytes object would draw a warning.
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8).to(device)


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    places = starts[:, None] + torch.arange(context + 1)
    tokens = text[places.to(text.device)].long()
    return tokens[:, :-1], tokens[:, 1:]


def draw_batch(text: Tensor, batch: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets [batch, context] from random places of ``text``; ``generator`` is a CPU generator."""
    starts = torch.randint(text.numel() - context, (batch,), generator=generator)
    return _windows(text, starts, context)


def sweep(text: Tensor, batch: int, context: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets that cover ``text`` once, window after window, in order; a short tail is left out."""
    starts = torch.arange(0, text.numel() - context, context)
    for chunk in starts.split(batch):
        yield _windows(text, chunk, context)
