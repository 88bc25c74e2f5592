"""flatvars, in its three ways: gradients where autograd leaves them, gathered first, or views of one buffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import flatvars as fv
from bench.cases import checkpoint, gradients, init
from bench.cases.adopt import adopt
from bench.cases.cell import FORMATS, PRODUCTS, CannotRunError, Cell, Contender
from bench.cases.hyper import EMA_DECAY, HYPER, OUR_NAMES, TORCH_NAMES
from bench.cases.optimizing import MAX_NORM, PRODUCTS_TOLERANCE, Trainer, give_grads, param_groups, twin_of
from bench.peers.peer import Builder, Peer, optimizer_cases
from bench.peers.torch_optim import NO_FUSED, SAME_DTYPE

Params = list[nn.Parameter]
TOLERANCES = dict.fromkeys(PRODUCTS, PRODUCTS_TOLERANCE)


def store_of(cell: Cell, params: Params, **options: Any) -> fv.VarStore:
    values = FORMATS[cell.format].values
    how = {"values": values, "dtype": FORMATS[cell.format].param} if values else {}
    return fv.VarStore.from_module(nn.ParameterList(params), **how, **options)


def optimizer_of(cell: Cell, params: Params, **options: Any) -> fv.optim.Optimizer:
    """The fv.optim optimizer of a cell over parameters that a store holds."""
    form = FORMATS[cell.format]
    groups = param_groups(cell.workload, params, HYPER[cell.optimizer]["lr"])
    name, extra = {**OUR_NAMES, **TORCH_NAMES}[cell.optimizer]
    if isinstance(form.kept, tuple):
        options["state_format"] = dict(zip(("exp_avg", "exp_avg_sq"), form.kept, strict=True))
    elif form.kept:
        options["state_format"] = form.kept
    elif form.state != form.param and not form.is_wide:
        options["state_dtype"] = form.state
    made: fv.optim.Optimizer = getattr(fv.optim, name)(groups, **HYPER[cell.optimizer], **extra, **options)
    if cell.optimizer == "adamw-ema":
        fv.EMA(made, decay=EMA_DECAY)
    return made


def _shown(
    cell: Cell, store: fv.VarStore, optimizer: fv.optim.Optimizer, params: Params
) -> Callable[[], list[Tensor]] | None:
    """What the gate looks at in the place of the Parameters: averages, values to evaluate with, split ones whole."""

    def averages() -> list[Tensor]:
        with optimizer.ema.swapped():
            return [param.detach().clone() for param in params]

    def evaluated() -> list[Tensor]:
        optimizer.eval()
        found = [param.detach().clone() for param in params]
        optimizer.train()
        return found

    if cell.optimizer == "adamw-ema":
        return averages
    if cell.optimizer.startswith("schedule-free"):
        return evaluated
    if FORMATS[cell.format].is_wide:
        return lambda: [store.float32(variable.name) for variable in store.trainable_variables()]
    return None


def trainer(mode: str, cell: Cell, params: Params) -> Trainer:
    """A step or a tail; `mode` is "gather", "accumulate" or "views"."""
    store = store_of(cell, params, grads="views" if mode == "views" else "gather")
    trained = [params[i] for i in cell.workload.trained]
    clip = {"max_norm": MAX_NORM} if cell.case == "tail" else {}
    optimizer = optimizer_of(cell, params, **clip)

    def finish() -> None:
        if mode == "accumulate":
            store.accumulate()
        optimizer.step(zero_grad=cell.case == "tail")

    def write_views(grads: list[Tensor]) -> None:
        # As autograd does: in place, which is what says that there is a gradient.
        torch._foreach_copy_([param.grad for param in trained], grads)

    give = write_views if mode == "views" else partial(give_grads, trained)
    norm = (lambda: float(optimizer.grad_norm)) if cell.case == "tail" else None
    shown = _shown(cell, store, optimizer, trained)
    # What is shown in the place of values, no formula says.
    twin = twin_of(cell) if shown is None else None
    return Trainer(
        trained,
        finish,
        give,
        norm,
        tolerance=TOLERANCES.get(cell.optimizer, 0.3 if FORMATS[cell.format].kept else None),
        scaffold=mode == "views",
        twin=twin or partial(trainer, mode, as_exact(cell)),
        shown=shown,
    )


def as_exact(cell: Cell) -> Cell:
    """The same cell in float64, which its numbers are held against: other code of the same rule on a GPU and a CPU.

    For what has no formula of its own in `bench/cases/references.py`.
    """
    return replace(cell, format="float64")


def _gatherer(params: Params) -> gradients.Gatherer:
    store = fv.VarStore.from_module(nn.ParameterList(params))

    def overwrite(grads: list[Tensor]) -> Tensor:
        store.zero_grad()
        return add(grads)

    def add(grads: list[Tensor]) -> Tensor:
        store.accumulate(grads)
        return store.grad_norm()

    def sums() -> list[Tensor]:
        found = [variable.grad for variable in store.trainable_variables()]
        return [grad for grad in found if grad is not None]

    return gradients.Gatherer(overwrite, add, sums)


def _norm(params: Params) -> Any:
    return fv.VarStore.from_module(nn.ParameterList(params)).grad_norm


def _norms(params: Params) -> Any:
    store = fv.VarStore.from_module(nn.ParameterList(params))

    def run() -> tuple[Tensor, Tensor]:
        found = store.norms()
        return found.value_norm, found.grad_norm

    return run


def _init(params: Params) -> Any:
    model = nn.ParameterList(params)
    store = fv.VarStore.from_module(model)
    rules = {"*": fv.init.normal(0.0, init.STD)}
    return lambda: fv.init.apply_(store, rules, seed=1)


def _saver(params: Params, cell: Cell) -> checkpoint.Saver:
    store = fv.VarStore.from_module(nn.ParameterList(params))
    optimizer = optimizer_of(cell, params)

    def named(path: Path) -> Path:
        return path.with_suffix(".safetensors")

    return checkpoint.Saver(
        lambda path: store.save(named(path), optimizer), lambda path: store.load(named(path)), optimizer.step
    )


def _cases() -> dict[str, Builder]:
    def gather(cell: Cell, device: str) -> Contender:
        return gradients.accumulate(cell, device, _gatherer)

    def save(cell: Cell, device: str) -> Contender:
        return checkpoint.checkpoint(cell, device, _saver)

    return {
        **optimizer_cases(partial(trainer, "gather")),
        "accumulate": gather,
        "accumulate-add": gather,
        "norm": lambda cell, device: gradients.norm(cell, device, _norm),
        "norms": lambda cell, device: gradients.norms(cell, device, _norms),
        "init": lambda cell, device: init.init(cell, device, _init),
        "adopt": lambda cell, device: adopt(cell, device, fv.VarStore.from_module),
        "save": save,
        "load": save,
    }


def _views_cases() -> dict[str, Builder]:
    """A step alone only beside a peer whose gradients are views too: every other row would be one that says nothing."""
    cases = optimizer_cases(partial(trainer, "views"))

    def step(cell: Cell, device: str) -> Contender:
        if cell.format not in SAME_DTYPE or cell.optimizer not in TORCH_NAMES or cell.optimizer in NO_FUSED:
            raise CannotRunError("no peer steps it with gradients that are views")
        return cases["step"](cell, device)

    return {**cases, "step": step}


FLATVARS = Peer(
    "flatvars",
    "flatvars",
    "flatvars",
    "any mix of float32, bfloat16, float16, float64 for values and state; float32 inside; norm deterministic",
    _cases(),
)
ACCUMULATE = Peer(
    "flatvars accumulate",
    "flatvars",
    "flatvars",
    "as flatvars; gradients are first gathered in one float32 buffer, as for micro-batches",
    {name: optimizer_cases(partial(trainer, "accumulate"))[name] for name in ("tail", "train")},
)
VIEWS = Peer(
    "flatvars views",
    "flatvars",
    "flatvars",
    "as flatvars; autograd adds into one buffer, which is what backward pays for and not shown here",
    _views_cases(),
    views=True,
)
