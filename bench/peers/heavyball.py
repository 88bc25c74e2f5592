"""HeavyBall: lists of tensors through functions that torch.compile made."""

from __future__ import annotations

from torch import nn

from bench.cases.cell import CannotRunError, Cell
from bench.cases.hyper import HYPER
from bench.cases.optimizing import Trainer, param_groups, usual_trainer
from bench.peers.peer import Peer, need_formats, optimizer_cases

NAMES = {"adamw": "AdamW", "adopt": "ADOPT", "schedule-free-adamw": "SFAdamW", "muon": "Muon"}
OTHERS = ("decoupled_weight_decay", "clip_exponent")  # it has one form


def trainer(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    import heavyball

    if cell.optimizer not in NAMES:
        raise CannotRunError(f"asked for {', '.join(NAMES)} alone here")
    need_formats(cell, ("float32", "bfloat16+float32"), "keeps float32 state here")
    hyper = {name: number for name, number in HYPER[cell.optimizer].items() if name not in OTHERS}
    if cell.optimizer == "muon":
        hyper["betas"] = (0.95, 0.95)
    groups = param_groups(cell.workload, params, hyper["lr"])
    optimizer = getattr(heavyball, NAMES[cell.optimizer])(groups, **hyper)
    if cell.optimizer.startswith("schedule-free"):
        optimizer.train()
    return usual_trainer(cell, params, optimizer, tolerance=3e-2 if cell.optimizer == "muon" else 1e-2)


HEAVYBALL = Peer(
    "heavyball",
    "heavyball",
    "heavyball",
    "float32 state; divides by max(root, eps), so error is the mean; compiling is not timed",
    optimizer_cases(trainer),
    most_tensors=400,
    most_reason="compiling takes minutes for more than 400 tensors",
)
