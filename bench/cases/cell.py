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
    """How values and optimizer state lie in memory.

    Attributes:
        param, state: Dtypes.
        values: How the store keeps values, where that is not a plain buffer: "split", "corrected" or "stochastic".
        kept: How the optimizer keeps states, where that is not a plain buffer: a name, or one for each state of AdamW.
    """

    param: torch.dtype
    state: torch.dtype
    values: str = ""
    kept: str | tuple[str, ...] = ""

    @property
    def text(self) -> str:
        """What rows of like formats have in common."""
        kept = self.kept if isinstance(self.kept, str) else " and ".join(self.kept)
        return f"{_short(self.param)} {self.values} values, {kept or _short(self.state)} state".replace("  ", " ")

    @property
    def value_bytes(self) -> float:
        """Of one value: one with more bits beside it has a fingerprint of 32 bits, too, for each unit of 128."""
        return self.param.itemsize + (BESIDE_BYTES[self.values] + 4 / 128 if self.is_wide else 0.0)

    @property
    def is_wide(self) -> bool:
        """Whether a value is more than torch sees of it."""
        return self.values in BESIDE_BYTES

    @property
    def eps(self) -> float:
        """What storing a value rounds it by, relatively."""
        if self.is_wide:
            return 3.1e-5 if self.values == "corrected" else torch.finfo(torch.float32).eps
        return torch.finfo(self.param).eps

    @property
    def state_bytes(self) -> float:
        """Of one number of the state, the mean where states are kept in several ways."""
        kept = [self.kept] if isinstance(self.kept, str) else self.kept
        return sum(KEPT_BYTES[name] if name else self.state.itemsize for name in kept) / len(kept)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Beside a bfloat16.
BESIDE_BYTES = {"split": 2, "corrected": 1}
# Codes, and a scale of 32 bits for each unit of 128.
KEPT_BYTES = {"root8": 1 + 4 / 128, "log4": 0.5 + 4 / 128}
# Of every optimizer in `STATES`.
DTYPES = {
    "float32": Format(torch.float32, torch.float32),
    "bfloat16": Format(torch.bfloat16, torch.bfloat16),
    "bfloat16+float32": Format(torch.bfloat16, torch.float32),
    "float16+float32": Format(torch.float16, torch.float32),
    "float32+bfloat16": Format(torch.float32, torch.bfloat16),
    "float64": Format(torch.float64, torch.float64),
}
# What no torch dtype is: of AdamW alone.
STORED = {
    "float32+root8": Format(torch.float32, torch.float32, kept="root8"),
    "split": Format(torch.bfloat16, torch.float32, "split"),
    "corrected+root8": Format(torch.bfloat16, torch.float32, "corrected", "root8"),
    "split+root8+log4": Format(torch.bfloat16, torch.float32, "split", ("root8", "log4")),
    "stochastic": Format(torch.bfloat16, torch.bfloat16, "stochastic"),
    "stochastic+root8": Format(torch.bfloat16, torch.bfloat16, "stochastic", "root8"),
}
FORMATS = {**DTYPES, **STORED}

# Streams of state that each optimizer keeps, at its hyper-parameters in `optimizing.py`.
STATES = {"sgd": 0, "momentum": 1, "lion": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "amsgrad": 3}
# The rest of torch.optim's elementwise classes, in float32 alone.
FAMILY = {
    "adam-amsgrad": 3,
    "rmsprop-momentum": 2,
    "rmsprop-centered": 2,
    "rmsprop-centered-momentum": 3,
    "adagrad": 1,
    "adadelta": 2,
    "adamax": 2,
    "nadam": 2,
    "radam": 2,
    "rprop": 2,
    "asgd": 1,
}
# What is no elementwise class of torch.optim: streams of state, and bytes that launches before the step take.
BEYOND = {
    "adopt": (2, 0),
    "ademamix": (3, 0),
    "grams": (2, 0),
    "adan": (4, 0),
    "schedule-free-adamw": (2, 0),
    "schedule-free-sgd": (1, 0),
    "stable-adamw": (2, 8),
    "lamb": (2, 12),
    "lars": (1, 8),
    "mars": (3, 8),
    "prodigy": (4, 12),
    "adafactor": (0, 32),
    "muon": (1, 6),
    "normuon": (1, 12),
    "cautious-adamw": (2, 12),
    "adamw-ema": (3, 0),
    "adamw-stats": (2, 0.5),
}
# It matters to these where gradients lie.
STEPPING = ("tail", "step", "cold", "train")
# Of matrices, by products in bfloat16.
PRODUCTS = ("muon", "normuon")


@dataclass(frozen=True)
class Cell:
    """What is measured: the same for every peer.

    Attributes:
        case: One of `CASES`.
        on: Name of the workload; for the case "train" that of a model.
        optimizer: One of `STATES`, `FAMILY` or `BEYOND`, where the case steps.
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
    def is_stepping(self) -> bool:
        """Whether it steps, so that it matters where gradients lie."""
        return self.case in STEPPING

    @property
    def text(self) -> str:
        return " ".join(part for part in (self.case, self.optimizer, self.on, self.format) if part)

    def bytes_per_param(self, state_bytes: float | None = None) -> float | None:
        """Bytes a trained parameter has to cost at least, modelled: inputs read once, outputs written once.

        Args:
            state_bytes: Of one parameter's whole state, for a peer that stores it otherwise.
        """
        form = FORMATS[self.format]
        p, g = form.value_bytes, form.param.itemsize
        gathered = max(4, g)
        states, before = BEYOND.get(self.optimizer, ({**STATES, **FAMILY}.get(self.optimizer, 0), 0))
        s = states * form.state_bytes if state_bytes is None else state_bytes
        return {
            "copy": 2.0 * p,
            "norm": g,
            "norms": p + g,
            "accumulate": g + gathered,
            "accumulate-add": g + 2 * gathered,
            "step": 2 * p + g + 2 * s + before,
            "cold": 2 * p + g + 2 * s + before,
            "tail": 2 * p + 2 * g + 2 * s + before,
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
        pause: Seconds without work before each run, behind `prepare`; without one a CPU's threads are awake.
        close: Called when all is measured.
        scaffold_bytes: Memory that only the benchmark needs, which counts as nobody's.
        keep: What has to stay alive.
    """

    run: Callable[[], object]
    check: Callable[[], Checked]
    prepare: Callable[[], object] = nothing
    close: Callable[[], object] = nothing
    pause: float = 0.0
    scaffold_bytes: int = 0
    keep: list[object] = field(default_factory=list)
