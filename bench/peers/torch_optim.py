"""torch.optim as it is: a loop, foreach, fused and compiled; with torch's own norms, initialization and checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bench.cases import checkpoint, gradients, init
from bench.cases.adopt import adopt
from bench.cases.cell import FAMILY, CannotRunError, Cell
from bench.cases.hyper import EMA_DECAY, HYPER, TORCH_NAMES
from bench.cases.optimizing import Trainer, param_groups, torch_optimizer, usual_trainer
from bench.peers.peer import Builder, Peer, need_formats, optimizer_cases

Params = list[nn.Parameter]
SAME_DTYPE = ("float32", "bfloat16", "float64")
NO_FUSED = ("rmsprop", "adafactor", "muon", *(name for name in FAMILY if name not in ("adagrad", "adam-amsgrad")))


def optimizer_of(cell: Cell, params: Params, **options: Any) -> torch.optim.Optimizer:
    need_formats(cell, SAME_DTYPE, "torch.optim keeps state in the dtype of the parameter")
    if cell.optimizer not in TORCH_NAMES:
        raise CannotRunError(f"torch.optim has no such step: {cell.optimizer}")
    if options.get("fused") and cell.optimizer in NO_FUSED:
        raise CannotRunError(f"torch.optim.{TORCH_NAMES[cell.optimizer][0]} has no fused form")
    if cell.optimizer == "muon":
        options = {}  # it has one form
    return torch_optimizer(cell.optimizer, param_groups(cell.workload, params, HYPER[cell.optimizer]["lr"]), **options)


def trainer(options: dict[str, bool], foreach: bool | None, cell: Cell, params: Params) -> Trainer:
    if cell.optimizer not in BESIDE:
        return usual_trainer(cell, params, optimizer_of(cell, params, **options), foreach=foreach)
    plain = replace(cell, optimizer="adamw")
    made = usual_trainer(plain, params, optimizer_of(plain, params, **options), foreach=foreach)
    made.step, made.shown = BESIDE[cell.optimizer]([param.detach() for param in made.params], made)
    made.twin = partial(trainer, options, foreach, cell)
    return made


Steps = tuple[Callable[[], object], Callable[[], list[Tensor]] | None]


def averaged(values: list[Tensor], made: Trainer) -> Steps:
    """A step, and an average of the values, as `AveragedModel` keeps it; and that average, which is looked at."""
    average, update, step = [value.clone() for value in values], get_ema_multi_avg_fn(EMA_DECAY), made.step
    count = 0

    def averaging() -> None:
        nonlocal count
        step()
        torch._foreach_copy_(average, values) if count == 0 else update(average, values, count)
        count += 1

    return averaging, lambda: average


def told(values: list[Tensor], made: Trainer) -> Steps:
    """A step, and norms of values, gradients and moves of every tensor."""
    moves, step = [value.clone() for value in values], made.step

    def telling() -> list[tuple[Tensor, ...]]:
        torch._foreach_copy_(moves, values)
        step()
        torch._foreach_sub_(moves, values)
        return [torch._foreach_norm(some) for some in (values, [p.grad for p in made.params], moves)]

    return telling, None


BESIDE = {"adamw-ema": averaged, "adamw-stats": told}


def compiled_trainer(cell: Cell, params: Params) -> Trainer:
    """The step compiled as torch's recipe has it, and capturable where torch can: its counts stay on the device."""
    if (cell.optimizer, cell.format) != ("adamw", "float32"):
        raise CannotRunError("compiles for a while: asked for AdamW in float32 alone here")
    optimizer = optimizer_of(cell, params, foreach=True)
    for group in optimizer.param_groups:
        if "capturable" in group and params[0].is_cuda:
            # A number would be compiled in, and every turn of a schedule would compile again.
            group["capturable"], group["lr"] = True, torch.tensor(group["lr"], device=params[0].device)
    optimizer.step = torch.compile(optimizer.step)  # type: ignore[method-assign]
    return usual_trainer(cell, params, optimizer)


def _gatherer(foreach: bool, params: Params) -> gradients.Gatherer:
    sums = [torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32)) for param in params]

    def overwrite(grads: list[Tensor]) -> Tensor:
        if foreach:
            torch._foreach_copy_(sums, grads)
        else:
            for total, grad in zip(sums, grads, strict=True):
                total.copy_(grad)
        return torch.nn.utils.get_total_norm(sums, foreach=foreach)

    def add(grads: list[Tensor]) -> Tensor:
        if foreach:
            torch._foreach_add_(sums, grads)
        else:
            for total, grad in zip(sums, grads, strict=True):
                total.add_(grad)
        return torch.nn.utils.get_total_norm(sums, foreach=foreach)

    return gradients.Gatherer(overwrite, add, lambda: sums)


def _norm(foreach: bool, params: Params) -> Any:
    return lambda: torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None], foreach=foreach)


def _norms(params: Params) -> Any:
    values = [param.detach() for param in params]
    return lambda: (torch._foreach_norm(values), torch._foreach_norm([param.grad for param in params]))


def _init(params: Params) -> Any:
    def run() -> None:
        for param in params:
            nn.init.normal_(param, 0.0, init.STD)

    return run


def _saver(params: Params, cell: Cell) -> checkpoint.Saver:
    model = nn.ParameterList(params)
    optimizer = optimizer_of(cell, params)

    def save(path: Path) -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)

    def load(path: Path) -> None:
        # Mapped, so that the optimizer's part, which nobody asks for, is not read.
        model.load_state_dict(torch.load(path, mmap=True, weights_only=True)["model"])

    return checkpoint.Saver(save, load, optimizer.step)


def _operations(foreach: bool) -> dict[str, Builder]:
    def gather(cell: Cell, device: str) -> Any:
        return gradients.accumulate(cell, device, partial(_gatherer, foreach))

    return {
        "accumulate": gather,
        "accumulate-add": gather,
        "norm": lambda cell, device: gradients.norm(cell, device, partial(_norm, foreach)),
    }


def _loop_cases() -> dict[str, Builder]:
    def save(cell: Cell, device: str) -> Any:
        return checkpoint.checkpoint(cell, device, _saver)

    return {
        **optimizer_cases(partial(trainer, {"foreach": False}, False)),
        **_operations(False),
        "init": lambda cell, device: init.init(cell, device, _init),
        "adopt": lambda cell, device: adopt(cell, device, copy.deepcopy),
        "save": save,
        "load": save,
    }


LOOP = Peer(
    "torch loop",
    "torch",
    "torch",
    "state in the dtype of the parameter; bfloat16 is rounded after every operation. adopt: a deep copy, per tensor",
    _loop_cases(),
)
FOREACH = Peer(
    "torch foreach",
    "torch",
    "torch",
    "as torch loop",
    {
        **optimizer_cases(partial(trainer, {"foreach": True}, True)),
        **_operations(True),
        "norms": lambda cell, device: gradients.norms(cell, device, _norms),
    },
)
FUSED = Peer(
    "torch fused",
    "torch",
    "torch",
    "state in the dtype of the parameter, float32 inside",
    optimizer_cases(partial(trainer, {"fused": True}, None)),
)
COMPILED = Peer(
    "torch compiled",
    "torch",
    "torch",
    "state in the dtype of the parameter, float32 inside; the norm is not compiled; compiling is not timed",
    optimizer_cases(compiled_trainer),
    most_tensors=400,
    most_reason="compiling takes minutes for more than 400 tensors",
)
