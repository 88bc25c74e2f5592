"""turboadam: moments in 2 and 4 bits, packed; one Triton launch per tensor on a GPU, a loop elsewhere."""

from __future__ import annotations

from torch import nn

from bench.cases.cell import CannotRunError, Cell
from bench.cases.optimizing import HYPER, Trainer, param_groups, usual_trainer
from bench.peers.peer import Peer, Storage, need_formats, optimizer_cases

# 2-bit codes and a bfloat16 for each 64, 4-bit codes and two float16 for each 128.
STATE_BYTES = (2 + 16 / 64 + 4 + 32 / 128) / 8


def trainer(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    from turboadam import TurboAdam

    if cell.optimizer != "adamw":
        raise CannotRunError("has AdamW alone")
    need_formats(cell, ("float32",), "asked for float32 values alone here")
    optimizer = TurboAdam(param_groups(cell.workload, params, HYPER["adamw"]["lr"]), **HYPER["adamw"])
    return usual_trainer(cell, params, optimizer, tolerance=1.0)


TURBOADAM = Peer(
    "turboadam",
    "turboadam",
    "turboadam",
    "state in 2 and 4 bits, tensors below 4,096 elements in float32; error is the mean, not the worst",
    optimizer_cases(trainer),
    storage=lambda cell: Storage("float32 values, 2- and 4-bit state", STATE_BYTES),
    most_on_cpu=400,
)
