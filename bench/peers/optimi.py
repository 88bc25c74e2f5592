"""torch-optimi: one Triton launch per tensor on a GPU, a loop elsewhere."""

from __future__ import annotations

from torch import nn

from bench.cases.cell import CannotRunError, Cell
from bench.cases.hyper import HYPER
from bench.cases.optimizing import Trainer, param_groups, usual_trainer
from bench.peers.peer import Peer, Storage, as_asked, optimizer_cases

NAMES = {
    "sgd": "SGD",
    "momentum": "SGD",
    "lion": "Lion",
    "adam": "Adam",
    "adamw": "AdamW",
    "radam": "RAdam",
    "adan": "Adan",
    "stable-adamw": "StableAdamW",
}


def trainer(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    import optimi

    if cell.optimizer not in NAMES:
        raise CannotRunError(f"torch-optimi has no {cell.optimizer}")
    if cell.format not in ("float32", "bfloat16"):
        raise CannotRunError("torch-optimi keeps state in the dtype of the parameter")
    hyper = dict(HYPER[cell.optimizer])
    hyper.pop("no_prox", None)
    if cell.optimizer in ("adam", "momentum", "sgd", "radam"):
        # optimi couples weight decay to the gradient unless told otherwise, as torch does.
        hyper["decouple_wd"] = False
    if cell.optimizer == "momentum":
        hyper["dampening"] = False
    groups = param_groups(cell.workload, params, hyper["lr"])
    optimizer = getattr(optimi, NAMES[cell.optimizer])(groups, **hyper, triton=params[0].is_cuda)
    return usual_trainer(cell, params, optimizer)


def storage(cell: Cell) -> Storage:
    if cell.format == "bfloat16":
        return Storage(
            "bfloat16 values, bfloat16 state, bfloat16 Kahan sum", 2.0 * (1 + 2 * (cell.optimizer != "lion"))
        )
    return as_asked(cell)


OPTIMI = Peer(
    "optimi",
    "torch-optimi",
    "optimi",
    "float32, or bfloat16 with a Kahan sum beside; float32 inside the kernel",
    optimizer_cases(trainer),
    storage=storage,
)
