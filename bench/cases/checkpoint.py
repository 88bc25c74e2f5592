"""Saving values and optimizer state to a file, and reading the values back."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench.cases.cell import FORMATS, Cell, Checked, Contender
from bench.cases.material import gradients, parameters
from bench.cases.optimizing import give_grads


@dataclass
class Saver:
    """A peer's way to write and read a model of its own, after one step of its optimizer."""

    save: Callable[[Path], object]
    load: Callable[[Path], object]
    step: Callable[[], object]


def checkpoint(cell: Cell, device: str, make: Callable[[list[nn.Parameter], Cell], Saver]) -> Contender:
    """Times the save, or the load if the case says so; the file system's cache is warm in both."""
    form = FORMATS[cell.format]
    params = parameters(cell.workload, device, form.param)
    trained = [params[i] for i in cell.workload.trained]
    saver = make(params, cell)
    give_grads(trained, gradients(cell.workload, device, form.param))
    saver.step()
    folder = Path(tempfile.mkdtemp(prefix="flatvars-bench-"))
    path = folder / "checkpoint.pt"

    def check() -> Checked:
        values = [param.detach().clone() for param in params]
        saver.save(path)
        with torch.no_grad():
            for param in params:
                param.zero_()
        saver.load(path)
        same = all(torch.equal(a, b) for a, b in zip(values, params, strict=True))
        return Checked(float(not same), 0.0, note="values bit-equal")

    run = saver.save if cell.case == "save" else saver.load
    return Contender(
        lambda: run(path), check, close=lambda: shutil.rmtree(folder, ignore_errors=True), keep=[params, saver]
    )
