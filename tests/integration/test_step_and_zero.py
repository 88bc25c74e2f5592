"""`step(zero_grad=True)` is `step()` with `zero_grad()` behind it, bit for bit, whoever clears the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from tests.parity.pairs import MODES
from tests.support.launches import count_launches
from tests.support.models import Bag
from tests.support.tolerances import assert_same_bits

# Of one tile and less, of many, of none; not all whole lines, so that there is padding.
SHAPES = {"a": (3, 40), "b": (70,), "c": (), "e": (0, 3), "d": (41, 130), "f": (2048,)}
UNWRITTEN = {"b"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

OPTIMIZERS: dict[str, tuple[type, dict[str, Any]]] = {
    "SGD": (fv.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}),
    "AdamW": (fv.optim.AdamW, {"lr": 0.02, "max_norm": 0.5}),
    "AdamW, 8 bits": (fv.optim.AdamW, {"lr": 0.02, "state_format": "root8"}),
    "AdamW, stats": (fv.optim.AdamW, {"lr": 0.02, "max_norm": 0.5, "stats": True}),
    "Lion": (fv.optim.Lion, {"lr": 0.01}),
    "LAMB": (fv.optim.LAMB, {"lr": 0.02}),
    "StableAdamW": (fv.optim.StableAdamW, {"lr": 0.02}),
    "MARS": (fv.optim.MARS, {"lr": 0.02}),
    "Prodigy": (fv.optim.Prodigy, {}),
    "ScheduleFreeAdamW": (fv.optim.ScheduleFreeAdamW, {"lr": 0.02}),
    "Adafactor": (fv.optim.Adafactor, {"lr": 0.02}),
    "Muon": (fv.optim.Muon, {"lr": 0.02}),
    "NorMuon": (fv.optim.NorMuon, {"lr": 0.02}),
}


def bits_of(tensor: Tensor) -> Tensor:
    return tensor.detach().view(_BITS[tensor.element_size()]) if tensor.dtype.is_floating_point else tensor


class Run:
    """A store with an optimizer, whose steps drop the gradients by themselves or by a call behind."""

    def __init__(
        self,
        fused: bool,
        mode: str,
        name: str = "AdamW",
        dtypes: list[torch.dtype] | None = None,
        store: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        kind, given = OPTIMIZERS[name]
        self.fused, self.module = fused, Bag(SHAPES, dtypes or [torch.float32])
        self.store = fv.VarStore.from_module(self.module, grads=mode, **(store or {}))  # type: ignore[arg-type]
        groups: Any = self.store
        if name in ("Muon", "NorMuon"):
            groups = [{"params": ["a", "d"]}, {"params": ["b", "c", "e", "f"], "rule": "AdamW"}]
            given = {**given, "store": self.store}
        self.optimizer = kind(groups, **{**given, **options})

    def backward(self, seed: int, skip: set[str] = UNWRITTEN) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chosen = [p for name, p in self.module.named_parameters() if name not in skip and p.requires_grad]
        grads = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in chosen]
        torch.autograd.backward(chosen, grads)
        return torch.zeros(())

    def finish(self, *arguments: Any, step: Callable[..., Any] | None = None, **options: Any) -> Any:
        call = self.optimizer.step if step is None else step
        found = call(*arguments, **options, **({"zero_grad": True} if self.fused else {}))
        if not self.fused:
            self.optimizer.zero_grad()
        return found

    def seen(self) -> dict[str, Any]:
        """Everything that may differ afterwards: tensors by their bits."""
        image = self.store.snapshot(self.optimizer).image()
        assert image.training is not None
        found: dict[str, Any] = {
            "open": image.training.describe()["gradients"],
            "names": self.store.gradient_names(),
            "skipped": int(self.optimizer.skipped),
            "there": {name: p.grad is not None for name, p in self.module.named_parameters()},
            "versions": {n: (p._version, -1 if p.grad is None else p.grad._version) for n, p in self.params()},
        }
        tensors = {f"value {name}": p for name, p in self.params()}
        tensors |= {f"grad {name}": p.grad for name, p in self.params() if p.grad is not None}
        for name, p in self.params():
            state = self.optimizer.state[p]
            tensors |= {f"{key} {name}": value for key, value in state.items() if isinstance(value, Tensor)}
        for dtype in dict.fromkeys(p.dtype for _, p in self.params()):
            stream = self.store.grads_of(dtype)
            # As numbers: behind a variable that nobody wrote there may be a zero of either sign.
            found[f"stream {dtype}"] = stream._version, stream.tolist()
        return {**found, **{key: bits_of(tensor).tolist() for key, tensor in tensors.items()}}

    def params(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.module.named_parameters())


def both(*arguments: Any, **options: Any) -> tuple[Run, Run]:
    return Run(True, *arguments, **options), Run(False, *arguments, **options)


def check_alike(fused: Run, plain: Run) -> None:
    ours, theirs = fused.seen(), plain.seen()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == value, key


def check_steps(runs: tuple[Run, Run], steps: int = 3, **options: Any) -> None:
    """After every one, and with nothing written in between."""
    for step in range(steps):
        for run in runs:
            run.backward(step, UNWRITTEN if step != 1 else {"a", "d"})
            run.finish(**options)
        check_alike(*runs)
    for run in runs:
        run.finish(**options)  # of no gradient
    check_alike(*runs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name: str, mode: str) -> None:
    check_steps(both(mode, name))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtypes", [[dtype] for dtype in DTYPES] + [DTYPES], ids=str)
def test_every_dtype(dtypes: list[torch.dtype], mode: str) -> None:
    check_steps(both(mode, "SGD", dtypes))


@pytest.mark.parametrize("values", ["split", "corrected", "stochastic"])
def test_stored_values(values: str) -> None:
    check_steps(both("views", store={"dtype": torch.bfloat16, "values": values}))


def masked(run: Run) -> None:
    run.store.set_trainable_mask("d", torch.arange(41 * 130).view(41, 130) % 3 > 0)


def frozen(run: Run) -> None:
    run.store.freeze("a")


def frozen_by_hand(run: Run) -> None:
    run.module.a.requires_grad_(False)


def accumulated(run: Run) -> None:
    run.backward(7)
    run.store.accumulate()


def assigned(run: Run) -> None:
    run.module.a.grad = torch.ones_like(run.module.a)


def to_zero(run: Run) -> None:
    run.backward(7)
    run.optimizer.zero_grad(set_to_none=False)


def written_whole(run: Run) -> None:
    """Padding too, as who adds noise to all gradients at once."""
    run.store.grads.fill_(3.0)


def declared_later(run: Run) -> None:
    run.store.add("later", torch.ones(5))
    run.optimizer.add_param_group({"params": "later"})


BEFORE = [masked, frozen, frozen_by_hand, accumulated, assigned, to_zero, written_whole, declared_later]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("before", BEFORE, ids=lambda before: before.__name__)
def test_whatever_was_before(before: Callable[[Run], None], mode: str) -> None:
    runs = both(mode)
    for step in range(2):
        for run in runs:
            if step:
                run.backward(step)
                run.finish()
            before(run) if not step or before is not declared_later else None
        check_alike(*runs)
    check_steps(runs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["AdamW", "LAMB", "Adafactor", "Muon", "Prodigy"])
def test_a_step_that_is_skipped_drops_its_gradients(name: str, mode: str) -> None:
    runs = both(mode, name, skip_nonfinite=True)
    for run in runs:
        run.backward(0)
        run.finish()
        run.backward(1)
        run.module.d.grad[3, 5] = torch.nan
        run.finish()
        assert run.optimizer.skipped.item() == 1
        assert run.store.gradient_names() == []
    check_alike(*runs)
    check_steps(runs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_a_grad_scaler(name: str, unscaled: bool, mode: str) -> None:
    runs = both(mode, name)
    for run in runs:
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        for step in range(4):
            scaler.scale(torch.ones(()))
            run.backward(step)
            if step == 1:
                run.module.d.grad[3, 5] = torch.inf
            if unscaled:
                scaler.unscale_(run.optimizer)
            run.finish(run.optimizer, step=scaler.step)
            scaler.update()
        assert run.optimizer.skipped.item() == 1
    check_alike(*runs)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_a_closure_are_dropped(mode: str) -> None:
    runs = both(mode)
    for run in runs:
        for step in range(2):
            assert run.finish(lambda run=run, step=step: run.backward(step)).item() == 0.0
        assert run.store.gradient_names() == []
    check_alike(*runs)


@pytest.mark.parametrize("mode", MODES)
def test_hooks_around_a_step_see_what_it_leaves(mode: str) -> None:
    run = Run(True, mode)
    seen: list[list[str]] = []
    run.optimizer.register_step_pre_hook(lambda *_: seen.append(run.store.gradient_names()))
    run.optimizer.register_step_post_hook(lambda *_: seen.append(run.store.gradient_names()))
    run.backward(0)
    run.finish()
    assert seen == [["a", "c", "e", "d", "f"], []]


@pytest.mark.parametrize("mode", MODES)
def test_a_schedule_wraps_the_step(mode: str) -> None:
    runs = both(mode)
    for run in runs:
        schedule = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.5)
        for step in range(3):
            run.backward(step)
            run.finish()
            schedule.step()
    check_alike(*runs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["strict", "number"])
@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_gradients_and_values_stay_where_a_step_raises(name: str, how: str, mode: str) -> None:
    """Those of another rule, too, whose launch would come before."""
    run = Run(True, mode, name)
    run.backward(0)
    before = {name: p.grad.clone() for name, p in run.params() if p.grad is not None}
    values = run.store.values.clone()
    if how == "number":
        run.optimizer.param_groups[-1]["betas"] = (1.5, 0.9)
    with pytest.raises((ValueError, fv.GradientError)):
        run.finish(strict=how == "strict")
    for name, grad in before.items():
        assert_same_bits(run.module.get_parameter(name).grad, grad)
    assert_same_bits(run.store.values, values)
    assert run.store.gradient_names() == ["a", "c", "e", "d", "f"]


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_another_optimizer_stay(mode: str) -> None:
    module = Bag(SHAPES)
    store = fv.VarStore.from_module(module, grads=mode)  # type: ignore[arg-type]
    first, second = fv.optim.AdamW([module.a, module.d]), fv.optim.SGD([module.b, module.c, module.e, module.f], lr=1)
    for _ in range(2):
        sum(p.sum() for p in module.parameters()).backward()
        first.step(zero_grad=True)
        assert store.gradient_names() == ["b", "c", "e", "f"]
        assert_same_bits(module.b.grad, torch.ones(70))
        second.step(zero_grad=True)
        assert store.gradient_names() == []


@pytest.mark.parametrize("mode", MODES)
def test_a_file_holds_no_gradient_and_training_goes_on(mode: str, tmp_path: Any) -> None:
    runs = both(mode)
    for run in runs:
        path = tmp_path / f"{run.fused}.safetensors"
        run.backward(0)
        run.finish()
        run.store.save(path, run.optimizer)
        run.backward(1)
        run.store.load(path, run.optimizer)
        assert run.store.gradient_names() == []
    check_steps(runs)


def test_nothing_is_written_behind_the_step() -> None:
    """Of views: the two launches are all that passes over a stream."""
    run = Run(True, "views")
    for step in range(2):
        run.backward(step)
        run.finish()
    run.backward(2)
    with count_launches() as launches:
        run.finish()
    assert "fill_" not in launches.operators
