"""torchao: 8-bit state as tensor subclasses, one compiled call per tensor."""

from __future__ import annotations

from torch import nn

from bench.cases.cell import CannotRunError, Cell
from bench.cases.hyper import HYPER
from bench.cases.optimizing import Trainer, param_groups, usual_trainer
from bench.peers.bitsandbytes import storage8
from bench.peers.peer import Peer, need_formats, optimizer_cases


def trainer(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    from torchao.optim import AdamW8bit

    if cell.optimizer != "adamw":
        raise CannotRunError("has Adam and AdamW alone")
    need_formats(cell, ("float32",), "asked for float32 values alone here")
    optimizer = AdamW8bit(param_groups(cell.workload, params, HYPER["adamw"]["lr"]), **HYPER["adamw"])
    return usual_trainer(cell, params, optimizer, tolerance=0.3)


TORCHAO = Peer(
    "torchao 8",
    "torchao",
    "torchao",
    "state in 8 bits by blocks of 256, tensors below 4,096 elements in float32; error is the mean, not the worst",
    optimizer_cases(trainer),
    storage=storage8,
    most_on_cpu=400,
    most_tensors=2000,
    most_reason="a compiled call per tensor: minutes for more than 2,000",
)
