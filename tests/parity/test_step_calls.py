"""What a training loop may pass and attach: tensor learning rates, closures, hooks, a gradient scaler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import flatvars as fv
from tests.support.models import Bag, Chain

from .pairs import MODES, OPTIMIZERS, Pair

SHAPES = {"a": (2,), "b": (3, 3), "c": (), "d": (66_000,)}


@pytest.mark.row("P-O-01")
@pytest.mark.parametrize("change", ["none", "in-place", "scheduler", "replaced"])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam-decay", "adamw", "lion"])
def test_a_tensor_learning_rate(optimizer: str, change: str) -> None:
    pair = Pair.of(Bag(SHAPES), optimizer)
    number = OPTIMIZERS[optimizer][2]["lr"]
    pair.opt = OPTIMIZERS[optimizer][0](pair.store, **{**OPTIMIZERS[optimizer][2], "lr": torch.tensor(number)})
    schedulers = [lr_scheduler.ExponentialLR(opt, 0.5) for opt in (pair.opt, pair.ref)]
    for step in range(4):
        pair.run(1, seed=step)
        if change == "in-place":
            pair.opt.param_groups[0]["lr"].mul_(0.5)
            pair.ref.param_groups[0]["lr"] *= 0.5
        elif change == "scheduler":
            for scheduler in schedulers:
                scheduler.step()
        elif change == "replaced":
            pair.opt.param_groups[0]["lr"] = torch.tensor(0.01 * step)
            pair.ref.param_groups[0]["lr"] = 0.01 * step
    assert isinstance(pair.opt.param_groups[0]["lr"], Tensor)
    pair.assert_values_close()


def closure(module: Chain, optimizer: Any, seen: list[float]) -> Any:
    def call() -> Tensor:
        optimizer.zero_grad()
        loss = module(torch.ones(2, 4)).square().sum()
        loss.backward()
        seen.append(loss.item())
        return loss

    return call


@pytest.mark.row("P-O-05")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
def test_closures(optimizer: str, mode: str) -> None:
    """The closure runs with gradients on, even inside no_grad, and its value is returned."""
    pair = Pair.of(Chain(), optimizer, mode)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(4):
        with torch.no_grad():
            loss = pair.opt.step(closure(pair.ours, pair.opt, ours))
        assert loss.item() == ours[-1]
        pair.ref.step(closure(pair.theirs, pair.ref, theirs))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < 0.9 * ours[0]
    pair.assert_values_close()


def test_a_step_without_a_closure_returns_nothing() -> None:
    pair = Pair.of(Chain(), "adamw")
    assert pair.opt.step() is None


def log_calls(optimizer: Any, log: list[tuple[Any, ...]]) -> list[Any]:
    """Attaches every hook that torch.optim has; returns the handles."""

    def step_pre(opt: Any, args: Any, kwargs: Any) -> None:
        log.append(("step-pre", opt is optimizer, len(args), dict(kwargs)))

    def step_post(opt: Any, args: Any, kwargs: Any) -> None:
        log.append(("step-post", opt is optimizer, len(args), dict(kwargs)))

    def saved(opt: Any, state: dict[str, Any]) -> dict[str, Any]:
        log.append(("state-post", sorted(state)))
        return {**state, "note": "from a hook"}

    def loading(opt: Any, state: dict[str, Any]) -> dict[str, Any]:
        log.append(("load-pre", state["note"]))
        return {key: value for key, value in state.items() if key != "note"}

    return [
        optimizer.register_step_pre_hook(step_pre),
        optimizer.register_step_post_hook(step_post),
        optimizer.register_state_dict_pre_hook(lambda opt: log.append(("state-pre", opt is optimizer))),
        optimizer.register_state_dict_post_hook(saved),
        optimizer.register_load_state_dict_pre_hook(loading),
        optimizer.register_load_state_dict_post_hook(lambda opt: log.append(("load-post", opt is optimizer))),
    ]


@pytest.mark.row("P-O-05")
def test_hooks_are_called_as_by_torch() -> None:
    pair = Pair.of(Bag(SHAPES), "adamw")
    ours: list[tuple[Any, ...]] = []
    theirs: list[tuple[Any, ...]] = []
    handles = log_calls(pair.opt, ours) + log_calls(pair.ref, theirs)
    pair.run(2)
    for opt in (pair.opt, pair.ref):
        opt.load_state_dict(opt.state_dict())
    assert [entry[0] for entry in ours] == ["step-pre", "step-post"] * 2 + [
        "state-pre",
        "state-post",
        "load-pre",
        "load-post",
    ]
    assert ours == theirs
    for handle in handles:
        handle.remove()
    pair.run(1)
    assert len(ours) == 8
    pair.assert_values_close()


@contextmanager
def everywhere(log: list[Any]) -> Iterator[None]:
    """Hooks on every optimizer of the process."""
    handles = [
        register_optimizer_step_pre_hook(lambda opt, args, kwargs: log.append(("pre", opt))),
        register_optimizer_step_post_hook(lambda opt, args, kwargs: log.append(("post", opt))),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_global_hooks_see_each_step_once() -> None:
    pair = Pair.of(Bag(SHAPES), "adamw")
    log: list[Any] = []
    with everywhere(log):
        pair.run(1)
    assert log == [("pre", pair.opt), ("post", pair.opt), ("pre", pair.ref), ("post", pair.ref)]


def test_a_hook_may_change_gradients_before_the_step() -> None:
    pair = Pair.of(Bag(SHAPES), "sgd-momentum")

    def double(opt: Any, args: Any, kwargs: Any) -> None:
        for group in opt.param_groups:
            for param in group["params"]:
                param.grad.mul_(2)

    for opt in (pair.opt, pair.ref):
        opt.register_step_pre_hook(double)
    pair.run(3)
    pair.assert_values_close()


@pytest.mark.parametrize("overflow", [False, True], ids=["finite", "overflow"])
@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_scaler(mode: str, overflow: bool) -> None:
    """It divides `.grad` in place, and leaves a step out when one of them is not finite."""
    pair = Pair.of(Chain(), "adamw", mode)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    for step in range(3):
        for scaler, module, opt in zip(scalers, (pair.ours, pair.theirs), (pair.opt, pair.ref), strict=True):
            opt.zero_grad()
            scaler.scale(module(torch.ones(2, 4)).square().sum()).backward()
            if overflow and step == 1:
                module.layers[1].bias.grad[0] = torch.inf
            scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert pair.opt.state[pair.ours.layers[0].weight]["step"] == (2 if overflow else 3)
    pair.assert_values_close()
    pair.assert_states_close()


def test_a_profiler_sees_the_step_and_a_subclass_calls_hooks_once() -> None:
    class Own(fv.optim.SGD):
        def step(self, *arguments: Any, **options: Any) -> Any:
            return super().step(*arguments, **options)

    calls: list[str] = []
    for kind in (fv.optim.SGD, Own):
        param = torch.nn.Parameter(torch.ones(3))
        optimizer = kind([param], lr=1.0)
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: calls.append(type(opt).__name__))
        param.grad = torch.ones(3)
        with torch.autograd.profiler.profile() as profile:
            optimizer.step()
        assert [e.name for e in profile.function_events].count(f"Optimizer.step#{kind.__name__}.step") == 1
    assert calls == ["SGD", "Own"]
