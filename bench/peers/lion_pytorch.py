"""lion-pytorch: Lion alone, one Triton launch per tensor on a GPU, a loop elsewhere."""

from __future__ import annotations

from torch import nn

from bench.cases.cell import CannotRunError, Cell
from bench.cases.hyper import HYPER
from bench.cases.optimizing import Trainer, param_groups, usual_trainer
from bench.peers.peer import Peer, need_formats, optimizer_cases


def trainer(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    from lion_pytorch import Lion

    if cell.optimizer != "lion":
        raise CannotRunError("lion-pytorch has Lion alone")
    need_formats(cell, ("float32", "bfloat16"), "lion-pytorch keeps state in the dtype of the parameter")
    groups = param_groups(cell.workload, params, HYPER["lion"]["lr"])
    return usual_trainer(cell, params, Lion(groups, **HYPER["lion"], use_triton=params[0].is_cuda))


LION = Peer(
    "lion-pytorch",
    "lion-pytorch",
    "lion_pytorch",
    "state in the dtype of the parameter; its Triton kernel tunes itself in place on the first steps",
    optimizer_cases(trainer),
)
