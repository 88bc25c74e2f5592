"""bitsandbytes: CUDA kernels, one launch and one synchronization per tensor; 32 or 8 bits of state."""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.cases.cell import CannotRunError, Cell
from bench.cases.hyper import HYPER
from bench.cases.optimizing import Trainer, param_groups, usual_trainer
from bench.peers.peer import Peer, Storage, need_formats, optimizer_cases

# Two bytes of quantized state, and a float32 scale for each block of 256 of both.
EIGHT_BITS = 2.0 + 2 * 4 / 256


def trainer(bits: int, cell: Cell, params: list[nn.Parameter]) -> Trainer:
    import bitsandbytes

    if cell.optimizer not in ("adamw", "lion"):
        raise CannotRunError("asked for AdamW and Lion alone here")
    need_formats(cell, ("float32", "bfloat16+float32"), "keeps float32 or 8-bit state")
    groups = param_groups(cell.workload, params, HYPER[cell.optimizer]["lr"])
    kind = {"adamw": "AdamW", "lion": "Lion"}[cell.optimizer]
    optimizer = getattr(bitsandbytes.optim, kind)(groups, **HYPER[cell.optimizer], optim_bits=bits)
    return usual_trainer(cell, params, optimizer, tolerance=None if bits == 32 else 0.3)


def storage8(cell: Cell) -> Storage:
    share = 1.0 if cell.optimizer != "lion" else 0.5
    return Storage("float32 values, 8-bit blockwise state", EIGHT_BITS * share)


BNB32 = Peer(
    "bitsandbytes 32",
    "bitsandbytes",
    "bitsandbytes",
    "float32 state",
    optimizer_cases(partial(trainer, 32)),
    most_on_cpu=400,
)
BNB8 = Peer(
    "bitsandbytes 8",
    "bitsandbytes",
    "bitsandbytes",
    "state in 8 bits by blocks of 256, tensors below 4,096 elements in float32; error is the mean, not the worst",
    optimizer_cases(partial(trainer, 8)),
    storage=storage8,
    most_on_cpu=400,
)
