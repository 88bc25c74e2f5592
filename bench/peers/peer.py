"""What a peer is: its name, version and formats, and how it does each case."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from bench.cases.cell import FORMATS, CannotRunError, Cell, Contender
from bench.cases.optimizing import Trainer, contender
from bench.cases.train_step import train

Builder = Callable[[Cell, str], Contender]
Make = Callable[[Cell, list[nn.Parameter]], Trainer]


@dataclass(frozen=True)
class Storage:
    """How a peer keeps a cell's values and state, where that is not the cell's format.

    Attributes:
        text: What rows of like formats have in common.
        state_bytes: Of one parameter's whole state.
    """

    text: str
    state_bytes: float | None = None


def as_asked(cell: Cell) -> Storage:
    """The cell's own format."""
    return Storage(FORMATS[cell.format].text)


@dataclass(frozen=True)
class Peer:
    """One contender of the benchmark.

    Attributes:
        name: In tables.
        package: Distribution whose version is printed.
        module: What has to be importable.
        formats: Its memory formats and its accuracy, in a sentence: only like is compared with like.
        cases: How it does each case it has; raises `CannotRunError` for a cell it cannot do.
        storage: How it keeps a cell.
        views: Its gradients are views of one buffer, into which autograd adds: that is paid for in the backward pass.
        gpu_only: It has no way to run elsewhere.
        most_tensors: It is not asked for longer lists, with `most_reason`.
        most_on_cpu: Nor for longer ones than this on a CPU, where it is a loop that takes seconds.
    """

    name: str
    package: str
    module: str
    formats: str
    cases: Mapping[str, Builder]
    storage: Callable[[Cell], Storage] = as_asked
    views: bool = False
    gpu_only: bool = False
    most_tensors: int | None = None
    most_reason: str = ""
    most_on_cpu: int | None = None

    def version(self) -> str:
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "checkout"

    def why_not(self, cell: Cell, device: str) -> str | None:
        """Why this peer cannot run a cell, as far as is known without trying."""
        if importlib.util.find_spec(self.module) is None:
            return f"not installed: pip install {self.package}"
        if self.gpu_only and device == "cpu":
            return "runs on GPUs alone"
        if cell.case not in self.cases:
            return "has no such operation"
        tensors = len(cell.workload.shapes)
        if self.most_tensors is not None and tensors > self.most_tensors:
            return self.most_reason
        if device == "cpu" and self.most_on_cpu is not None and tensors > self.most_on_cpu:
            return f"a loop on a CPU: seconds for more than {self.most_on_cpu} tensors"
        return None


def optimizer_cases(make: Make) -> dict[str, Builder]:
    """The cases of everything that is an optimizer."""

    def stepping(cell: Cell, device: str) -> Contender:
        return contender(cell, device, make)

    return {
        "step": stepping,
        "cold": stepping,
        "tail": stepping,
        "train": lambda cell, device: train(cell, device, make),
    }


def need_formats(cell: Cell, names: tuple[str, ...], why: str) -> None:
    """Raises CannotRunError unless the cell's format is one of `names`."""
    if cell.format not in names:
        raise CannotRunError(why)
