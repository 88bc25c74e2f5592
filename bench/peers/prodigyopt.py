"""prodigyopt: its authors' Prodigy, tensor by tensor, with two numbers read back from the device for each."""

from __future__ import annotations

import contextlib
import os

from torch import nn

from bench.cases.cell import CannotRunError, Cell
from bench.cases.hyper import HYPER
from bench.cases.optimizing import Trainer, param_groups, usual_trainer
from bench.peers.peer import Peer, need_formats, optimizer_cases


def trainer(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    from prodigyopt import Prodigy

    if cell.optimizer != "prodigy":
        raise CannotRunError("prodigyopt has Prodigy alone")
    need_formats(cell, ("float32",), "asked for float32 alone here")
    hyper = HYPER["prodigy"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # it prints how it decays
        optimizer = Prodigy(param_groups(cell.workload, params, hyper["lr"]), **hyper)
    return usual_trainer(cell, params, optimizer)


PRODIGY = Peer(
    "prodigyopt",
    "prodigyopt",
    "prodigyopt",
    "state in the dtype of the parameter; reads two numbers of every tensor on the host",
    optimizer_cases(trainer),
)
