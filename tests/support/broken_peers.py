"""Peers that go wrong, each in its own way, for tests of the benchmark's harness."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import torch
from torch import nn

from bench.cases.cell import CannotRunError, Cell, Contender
from bench.cases.hyper import HYPER
from bench.cases.optimizing import Trainer, usual_trainer
from bench.peers.peer import Builder, Peer, optimizer_cases


def _peer(name: str, build: Builder) -> Peer:
    return Peer(name, "torch", "torch", "for tests", {"tail": build, "step": build, "cold": build})


def _optimizer(lr_factor: float, cell: Cell, params: list[nn.Parameter]) -> Trainer:
    hyper = {**HYPER["adamw"], "lr": HYPER["adamw"]["lr"] * lr_factor}
    return usual_trainer(cell, params, torch.optim.AdamW(params, **hyper, foreach=True))


def _lazy(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    """Fast, because it does nothing: a gate that compares with zeros would let it pass."""
    trainer = usual_trainer(cell, params, torch.optim.AdamW(params))
    trainer.step, trainer.norm = (lambda: None), None
    return trainer


def _with_nan(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    trainer = _optimizer(1.0, cell, params)
    step = trainer.step

    def spoil() -> None:
        step()
        with torch.no_grad():
            params[-1].view(-1)[0] = torch.nan

    trainer.step = spoil
    return trainer


def _crash(cell: Cell, device: str) -> Contender:
    print("about to go", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def _raise(cell: Cell, device: str) -> Contender:
    raise RuntimeError("no kernel image\nis available")


def _hang(cell: Cell, device: str) -> Contender:
    time.sleep(60.0)
    raise AssertionError


def _refuse(cell: Cell, device: str) -> Contender:
    raise CannotRunError("not for this cell")


def _crash_in_rounds(cell: Cell, device: str) -> Contender:
    contender = RIGHT.cases[cell.case](cell, device)
    runs = 0
    run = contender.run

    def later() -> None:
        nonlocal runs
        runs += 1
        if runs > 6:
            os._exit(3)
        run()

    contender.run = later
    return contender


RIGHT = _peer("right", optimizer_cases(partial(_optimizer, 1.0))["tail"])
WRONG = _peer("wrong", optimizer_cases(partial(_optimizer, 1.02))["tail"])
LAZY = _peer("lazy", optimizer_cases(_lazy)["tail"])
NAN = _peer("nan", optimizer_cases(_with_nan)["tail"])
CRASHING = _peer("crashing", _crash)
CRASHING_LATER = _peer("crashing later", _crash_in_rounds)
RAISING = _peer("raising", _raise)
HANGING = _peer("hanging", _hang)
REFUSING = _peer("refusing", _refuse)
MISSING = Peer("missing", "no-such-package", "no_such_package", "for tests", {"tail": _raise})
