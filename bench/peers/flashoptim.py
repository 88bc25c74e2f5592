"""FlashOptim: one Triton launch per tensor; here with float32 state, and with its 8-bit state."""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.cases.cell import CannotRunError, Cell
from bench.cases.hyper import HYPER
from bench.cases.optimizing import Trainer, param_groups, usual_trainer
from bench.peers.peer import Peer, Storage, need_formats, optimizer_cases

# A byte each for momentum and variance, and a float16 scale for each group of 32 of both.
EIGHT_BITS = 2.0 + 2 * 2 / 32


def trainer(quantize: bool, cell: Cell, params: list[nn.Parameter]) -> Trainer:
    import flashoptim

    kinds = {"adamw": "FlashAdamW", "lion": "FlashLion", "adam": "FlashAdam"}
    if cell.optimizer not in kinds:
        raise CannotRunError("asked for Adam, AdamW and Lion alone here")
    need_formats(cell, ("float32",), "asked for float32 values alone here")
    groups = param_groups(cell.workload, params, HYPER[cell.optimizer]["lr"])
    kind = getattr(flashoptim, kinds[cell.optimizer])
    optimizer = kind(groups, **HYPER[cell.optimizer], quantize=quantize, master_weight_bits=None)
    return usual_trainer(cell, params, optimizer, tolerance=0.3 if quantize else None)


FLASH = Peer(
    "flashoptim",
    "flashoptim",
    "flashoptim",
    "float32 state (quantize=False)",
    optimizer_cases(partial(trainer, False)),
    gpu_only=True,
)
FLASH8 = Peer(
    "flashoptim 8",
    "flashoptim",
    "flashoptim",
    "companded 8-bit state by groups of 32; error is the mean, not the worst",
    optimizer_cases(partial(trainer, True)),
    storage=lambda cell: Storage(
        "float32 values, companded 8-bit state", EIGHT_BITS * (0.5 if cell.optimizer == "lion" else 1.0)
    ),
    gpu_only=True,
)
