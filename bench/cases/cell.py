"""A cell of the table: one case on one workload; what a peer makes of it; and bytes, modelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bench.workloads import Workload, workload


class CannotRunError(Exception):
    """A peer has no way to run a cell; the message is the reason that stands in the table."""


@dataclass(frozen=True)
class Format:
    """How values and optimizer state lie in memory."""

    param: torch.dtype
    state: torch.dtype

    @property
    def text(self) -> str:
        """What rows of like formats have in common."""
        return f"{_short(self.param)} values, {_short(self.state)} state"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


FORMATS = {
    "float32": Format(torch.float32, torch.float32),
    "bfloat16": Format(torch.bfloat16, torch.bfloat16),
    "bfloat16+float32": Format(torch.bfloat16, torch.float32),
    "float16+float32": Format(torch.float16, torch.float32),
    "float32+bfloat16": Format(torch.float32, torch.bfloat16),
    "float64": Format(torch.float64, torch.float64),
}

# Streams of state that each optimizer keeps, at its hyper-parameters in `optimizing.py`.
STATES = {"sgd": 0, "momentum": 1, "lion": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "amsgrad": 3}
# The rest of torch.optim's elementwise classes, in float32 alone.
FAMILY = {"adagrad": 1, "adadelta": 2, "adamax": 2, "nadam": 2, "radam": 2, "rprop": 2, "asgd": 1}
# What torch has not got, or not in one class: elementwise, with sums over a variable, or over all.
BEYOND = {
    "adan": 4,
    "ademamix": 3,
    "adopt": 2,
    "grams": 2,
    "schedule-free-adamw": 2,
    "schedule-free-sgd": 1,
    "stable-adamw": 2,
    "lamb": 2,
    "lars": 1,
    "mars": 3,
    "prodigy": 4,
    "adamw+ema": 3,
    "adamw+stats": 2,
}
# Of matrices.
MATRIX = {"adafactor": 0, "muon": 1, "normuon": 1}
# Steps whose error is that of products in bfloat16.
PRODUCTS = ("muon", "normuon")
# Of which an element moves as the others of its variable say, so that a sample cannot be followed by itself.
COUPLED = ("stable-adamw", "lamb", "lars", "mars", "prodigy", *MATRIX)
# Bytes of the launches before the step: `README.md`, "Optimizers".
BEFORE = {"stable-adamw": 8, "lamb": 12, "lars": 8, "mars": 8, "prodigy": 12, "adafactor": 32, "muon": 6, "normuon": 12}
ALL_STATES = {**STATES, **FAMILY, **BEYOND, **MATRIX}


@dataclass(frozen=True)
class Cell:
    """What is measured: the same for every peer.

    Attributes:
        case: One of `CASES`.
        on: Name of the workload; for the case "train" that of a model.
        optimizer: One of `ALL_STATES`, where the case steps.
        format: One of `FORMATS`.
    """

    case: str
    on: str
    optimizer: str = ""
    format: str = "float32"

    @property
    def workload(self) -> Workload:
        return workload(self.on)

    @property
    def text(self) -> str:
        return " ".join(part for part in (self.case, self.optimizer, self.on, self.format) if part)

    @property
    def is_coupled(self) -> bool:
        """Whether an element moves as others of its variable say."""
        return self.optimizer in COUPLED

    def bytes_per_param(self, state_bytes: float | None = None) -> float | None:
        """Bytes a trained parameter has to cost at least, modelled: inputs read once, outputs written once.

        Args:
            state_bytes: Of one parameter's whole state, for a peer that stores it otherwise.
        """
        form = FORMATS[self.format]
        p, g = form.param.itemsize, form.param.itemsize
        gathered = max(4, g)
        s = ALL_STATES.get(self.optimizer, 0) * form.state.itemsize if state_bytes is None else state_bytes
        before = BEFORE.get(self.optimizer, 0)
        return {
            "copy": 2.0 * p,
            "norm": g,
            "norms": p + g,
            "accumulate": g + gathered,
            "accumulate-add": g + 2 * gathered,
            "step": 2 * p + g + 2 * s + before,
            "tail": 2 * p + 2 * g + 2 * s,
            "init": p,
            "adopt": 2 * p,
            "save": p + s,
            "load": p,
            "train": None,
        }[self.case]


@dataclass(frozen=True)
class Checked:
    """What the gate found; green if every error is within its limit.

    Attributes:
        error, limit: Largest difference from float64, in units of the largest change of a value, or relative.
        norm_error, norm_limit: Relative error of the gradient norm against float64, where one is taken.
        note: What the table shows beside, such as losses.
    """

    error: float
    limit: float
    norm_error: float = 0.0
    norm_limit: float = 0.0
    note: str = ""

    @property
    def green(self) -> bool:
        # A NaN is within no limit.
        return self.error <= self.limit and self.norm_error <= self.norm_limit

    @property
    def text(self) -> str:
        return (
            f"error {self.error:.1e} (limit {self.limit:.1e}), norm {self.norm_error:.1e} (limit {self.norm_limit:.1e})"
        )


def nothing() -> None:
    """Where a contender has nothing to prepare."""


@dataclass
class Contender:
    """One peer's way to do a cell.

    Attributes:
        run: What is timed.
        check: The gate; run before anything is timed.
        prepare: Called before each run, outside of what is timed.
        close: Called when all is measured.
        scaffold_bytes: Memory that only the benchmark needs, which counts as nobody's.
        keep: What has to stay alive.
    """

    run: Callable[[], object]
    check: Callable[[], Checked]
    prepare: Callable[[], object] = nothing
    close: Callable[[], object] = nothing
    scaffold_bytes: int = 0
    keep: list[object] = field(default_factory=list)
