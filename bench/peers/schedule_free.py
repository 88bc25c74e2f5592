"""schedulefree: its authors' Schedule-Free optimizers, over lists of tensors."""

from __future__ import annotations

from torch import nn

from bench.cases.cell import CannotRunError, Cell
from bench.cases.hyper import HYPER
from bench.cases.optimizing import Trainer, param_groups, usual_trainer
from bench.peers.peer import Peer, need_formats, optimizer_cases


def trainer(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    import schedulefree

    names = {"schedule-free-adamw": "AdamWScheduleFree", "schedule-free-sgd": "SGDScheduleFree"}
    if cell.optimizer not in names:
        raise CannotRunError("schedulefree has AdamW and SGD, Schedule-Free, alone")
    need_formats(cell, ("float32", "bfloat16"), "schedulefree keeps state in the dtype of the parameter")
    hyper = HYPER[cell.optimizer]
    optimizer = getattr(schedulefree, names[cell.optimizer])(param_groups(cell.workload, params, hyper["lr"]), **hyper)
    optimizer.train()
    return usual_trainer(cell, params, optimizer)


SCHEDULE_FREE = Peer(
    "schedulefree",
    "schedulefree",
    "schedulefree",
    "state in the dtype of the parameter; divides the gradients in place",
    optimizer_cases(trainer),
)
