"""turboadam: AdamW with an average in 2 bits and one of squares in 4, packed between steps."""

from __future__ import annotations

from torch import nn

from bench.cases.cell import CannotRunError, Cell
from bench.cases.hyper import HYPER
from bench.cases.optimizing import Trainer, param_groups, usual_trainer
from bench.peers.peer import Peer, Storage, need_formats, optimizer_cases


def trainer(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    from turboadam import TurboAdam

    if cell.optimizer != "adamw":
        raise CannotRunError("has AdamW alone")
    need_formats(cell, ("float32",), "asked for float32 values alone here")
    optimizer = TurboAdam(param_groups(cell.workload, params, HYPER["adamw"]["lr"]), **HYPER["adamw"])
    return usual_trainer(cell, params, optimizer, tolerance=0.3)


def storage(_: Cell) -> Storage:
    return Storage("float32 values, 2- and 4-bit state", 6.5 / 8)


TURBOADAM = Peer(
    "turboadam",
    "turboadam",
    "turboadam",
    "state in 2 and 4 bits, tensors below 4,096 elements in float32; error is the mean, not the worst",
    optimizer_cases(trainer),
    storage=storage,
    most_on_cpu=400,
)
