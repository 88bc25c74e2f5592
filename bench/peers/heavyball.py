"""HeavyBall: lists of tensors through functions that torch.compile made."""

from __future__ import annotations

from torch import nn

from bench.cases.cell import CannotRunError, Cell
from bench.cases.hyper import HYPER
from bench.cases.optimizing import Trainer, param_groups, usual_trainer
from bench.peers.peer import Peer, need_formats, optimizer_cases


def trainer(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    import heavyball

    if cell.optimizer != "adamw":
        raise CannotRunError("asked for AdamW alone here")
    need_formats(cell, ("float32", "bfloat16+float32"), "keeps float32 state here")
    groups = param_groups(cell.workload, params, HYPER["adamw"]["lr"])
    optimizer = heavyball.AdamW(groups, **HYPER["adamw"])
    return usual_trainer(cell, params, optimizer, tolerance=1e-2)


HEAVYBALL = Peer(
    "heavyball",
    "heavyball",
    "heavyball",
    "float32 state; divides by max(root, eps), so error is the mean; compiling is not timed",
    optimizer_cases(trainer),
    most_tensors=400,
    most_reason="compiling takes minutes for more than 400 tensors",
)
