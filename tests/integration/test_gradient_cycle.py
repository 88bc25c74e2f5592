"""The cycle of each variable: empty, open, spent. What one optimizer's step does to gradients, and what it leaves."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.checkpoint.training import Training
from flatvars.gradients.attached import gradients_of
from flatvars.gradients.cycle import State
from tests.parity.pairs import MODES, assert_close

TAKE: dict[str, Callable[[fv.VarStore], Any]] = {
    "accumulate": lambda store: store.accumulate(),
    "clip_grad_value_": lambda store: store.clip_grad_value_(1e6),
    "clip_grad_norm_": lambda store: store.clip_grad_norm_(1e6),
    "grads": lambda store: store.grads,
}
SHAPES = {"a": (3, 4), "b": (70,), "c": (), "d": (2, 2, 2)}


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator)))


class Twins:
    """A bag in a store under two optimizers, one over `a` and `b`, one over `c` and `d`; and a plain one."""

    def __init__(self, mode: str = "gather", **options: Any) -> None:
        self.ours, self.theirs = Bag(), Bag()
        self.store = fv.VarStore.from_module(self.ours, grads=mode)
        parts = (["a", "b"], ["c", "d"])
        self.opts = [fv.optim.AdamW([self.ours.get_parameter(n) for n in part], lr=0.1, **options) for part in parts]
        self.refs = [torch.optim.AdamW([self.theirs.get_parameter(n) for n in part], lr=0.1) for part in parts]
        self.generator = torch.Generator().manual_seed(1)

    def backward(self, names: str = "abcd") -> None:
        """Adds one gradient to each, as autograd does."""
        for name in names:
            grad = torch.randn(SHAPES[name], generator=self.generator)
            for module in (self.ours, self.theirs):
                torch.autograd.backward([module.get_parameter(name)], [grad.clone()])

    def assert_close(self) -> None:
        for name, param in self.ours.named_parameters():
            assert_close(param.detach(), self.theirs.get_parameter(name).detach(), name)


@pytest.mark.parametrize("take", TAKE)
@pytest.mark.parametrize("mode", MODES)
def test_a_step_spends_its_own_gradients(mode: str, take: str) -> None:
    """The second optimizer steps every other time, with the sum of what came in between."""
    twins = Twins(mode)
    for step in range(4):
        twins.backward()
        TAKE[take](twins.store)
        for opt, ref in list(zip(twins.opts, twins.refs, strict=True))[: 1 + step % 2]:
            opt.step()
            ref.step()
            ref.zero_grad()
            if mode == "views":  # in the other mode, the step ends the cycle
                opt.zero_grad()
    twins.assert_close()


def test_states_of_variables() -> None:
    twins = Twins()
    gradients, variables = gradients_of(twins.store.registry), twins.store.variables()

    def states() -> list[State]:
        return [gradients.state(variable) for variable in variables.values()]

    assert states() == [State.EMPTY] * 4
    twins.backward("abd")
    twins.store.accumulate()
    assert states() == [State.OPEN, State.OPEN, State.EMPTY, State.OPEN]
    twins.opts[0].step()
    assert states() == [State.SPENT, State.SPENT, State.EMPTY, State.OPEN]
    twins.backward("bc")
    twins.store.accumulate()
    assert states() == [State.EMPTY, State.OPEN, State.OPEN, State.OPEN]
    twins.opts[1].zero_grad()
    assert states() == [State.EMPTY, State.OPEN, State.EMPTY, State.EMPTY]


def test_open_spent_and_empty_ones_in_one_accumulation() -> None:
    """Spent ones start anew or become None, open ones add, empty ones begin."""
    twins = Twins()
    twins.backward("abd")
    twins.store.accumulate()
    twins.opts[0].step()
    twins.refs[0].step()
    twins.refs[0].zero_grad()
    twins.backward("bcd")
    twins.store.accumulate()
    for name, param in twins.theirs.named_parameters():
        mine = twins.store[name].grad
        assert (mine is None) == (param.grad is None), name
        assert param.grad is None or torch.equal(mine, param.grad)
    norm = nn.utils.get_total_norm([p.grad for p in twins.theirs.parameters() if p.grad is not None])
    torch.testing.assert_close(twins.store.grad_norm(), norm, rtol=2e-6, atol=0.0)
    assert not twins.store.grads[twins.store["a"].span.offset :][:12].any()


def test_a_step_reads_a_mix_where_it_lies() -> None:
    """`a` lies in the stream, `b` in `.grad`, and `a` gets more there: that is added first."""
    twins = Twins(max_norm=0.5)
    twins.backward("ac")
    twins.store.accumulate()
    twins.backward("ab")
    kept = twins.ours.b.grad
    nn.utils.clip_grad_norm_([twins.theirs.a, twins.theirs.b], 0.5)
    twins.opts[0].step()
    twins.refs[0].step()
    twins.assert_close()
    assert twins.ours.b.grad is kept  # read where it is
    assert twins.ours.a.grad is None
    assert torch.equal(twins.store["c"].grad, twins.theirs.c.grad)  # nobody's business


def test_a_pending_gradient_of_another_optimizer_stays() -> None:
    twins = Twins()
    twins.backward()
    twins.store.accumulate()
    twins.backward()
    kept = twins.ours.d.grad
    twins.opts[0].step()
    twins.refs[0].step()
    assert twins.ours.d.grad is kept
    twins.opts[1].step()
    twins.refs[1].step()
    twins.assert_close()


@pytest.mark.parametrize("mode", MODES)
def test_each_clips_by_the_norm_of_its_own(mode: str) -> None:
    twins = Twins(mode, max_norm=0.5)
    twins.backward()
    twins.store.accumulate()
    for opt, ref, names in zip(twins.opts, twins.refs, ("ab", "cd"), strict=True):
        norm = nn.utils.clip_grad_norm_([twins.theirs.get_parameter(name) for name in names], 0.5)
        opt.step()
        ref.step()
        torch.testing.assert_close(opt.grad_norm, norm, rtol=2e-6, atol=0.0)
    twins.assert_close()


def test_the_norm_of_an_accumulation_holds_for_whoever_uses_all_of_it() -> None:
    """Here only variables of the first optimizer had a gradient; and it does not hold any more once one is gone."""
    twins = Twins(max_norm=0.5)
    gradients, opt = gradients_of(twins.store.registry), twins.opts[0]
    twins.backward("ab")
    twins.store.accumulate()
    plans = opt._current_plans()
    assert gradients.collect(plans).norm is not None
    twins.store["a"].accumulate_grad(torch.ones(3, 4))
    assert gradients.collect(plans).norm is None
    twins.backward("ab")
    twins.store.accumulate()
    assert gradients.collect(plans).norm is not None
    twins.store["b"].clear_grad()
    assert gradients.collect(plans).norm is None
    twins.backward("c")
    twins.store.accumulate()
    assert gradients.collect(plans).norm is None


@pytest.mark.parametrize("event", ["watch", "rename", "mask", "add"])
def test_a_norm_does_not_outlive_the_plans_it_was_taken_with(event: str) -> None:
    twins = Twins()
    opt = fv.optim.SGD(twins.store, lr=0.1, max_norm=0.5)
    twins.backward()
    twins.store.accumulate()
    mask = torch.arange(70) % 2 == 0
    {
        "watch": lambda: twins.store.watch(twins.ours),
        "rename": lambda: twins.store.rename("a", "z"),
        "mask": lambda: twins.store.set_trainable_mask("b", mask),
        "add": lambda: twins.store.add("e", torch.ones(3)),
    }[event]()
    if event == "mask":
        twins.theirs.b.grad[~mask] = 0.0
    norm = nn.utils.get_total_norm([param.grad for param in twins.theirs.parameters()])
    opt.step()
    torch.testing.assert_close(opt.grad_norm, norm, rtol=2e-6, atol=0.0)


def test_what_froze_with_a_gradient_does_not_come_back_in_another() -> None:
    """Its span was never overwritten while it was frozen, and is when the next cycle adds to it."""
    twins = Twins()
    twins.backward()
    twins.store.accumulate()
    twins.store.freeze("b", clear_grad=False)
    twins.store.zero_grad()
    twins.backward("a")
    twins.store.accumulate()
    twins.store.unfreeze("b")
    torch.autograd.backward([twins.ours.b], [torch.ones(70)])
    twins.store.accumulate()
    assert torch.equal(twins.store["b"].grad, torch.ones(70))


def test_nan_in_a_clipped_stream_stays_with_its_variable() -> None:
    """The stream is scaled as a whole; a variable without a gradient gets one in the same cycle."""
    twins = Twins()
    twins.backward("a")
    twins.ours.a.grad.fill_(torch.nan)
    twins.store.clip_grad_norm_(1.0)
    torch.autograd.backward([twins.ours.b], [torch.ones(70)])
    twins.store.accumulate()
    assert torch.equal(twins.store["b"].grad, torch.ones(70))


@pytest.mark.parametrize("sparse", [False, True])
def test_memory_that_an_accumulation_reads_is_kept_for_its_stream(sparse: bool) -> None:
    """A GPU's allocator gives memory of one stream away while a launch on another one still reads it."""
    recorded: list[tuple[str, Any]] = []

    def part(name: str) -> Any:
        return SimpleNamespace(record_stream=lambda stream: recorded.append((name, stream)))

    grad = part("dense")
    grad.is_cuda, grad.is_sparse, grad.device = True, sparse, "cuda:0"
    grad._indices, grad._values = (lambda: part("indices")), (lambda: part("values"))
    twins = Twins()
    plans = gradients_of(twins.store.registry).plans()
    plans.params = [SimpleNamespace(grad=grad), SimpleNamespace(grad="left alone")]
    with patch.object(torch.cuda, "current_stream", lambda device: f"stream of {device}"):
        plans.drop([grad, None])
    names = ["indices", "values"] if sparse else ["dense"]
    assert recorded == [(name, "stream of cuda:0") for name in names]
    assert [param.grad for param in plans.params] == [None, "left alone"]


# Files and snapshots ------------------------------------------------------------------------------------------------


def saved_gradients(store: fv.VarStore, optimizers: Any) -> list[str]:
    """Of which variables a file holds the gradient: by its description, and by its bytes."""
    snapshot = store.snapshot(optimizers).image()
    assert snapshot.training is not None
    file = io.BytesIO()
    store.save(file, optimizers)
    content = snapshot.training.describe()["gradients"]
    assert content["spent"] is False
    names = sorted([*content["touched"], *content["pending"]])
    numel = sum(store[name].spec.numel for name in names)
    bare = io.BytesIO()
    twin, twin_optimizers = copy.deepcopy((store, optimizers))
    twin.save(bare, twin_optimizers)
    assert abs(len(file.getvalue()) - len(bare.getvalue()) - 4 * numel) < 1_500  # names and paddings
    return names


@pytest.mark.parametrize("take", [False, True], ids=["in .grad", "accumulated"])
def test_no_spent_gradient_is_in_a_file(take: bool) -> None:
    """`zero_grad()` at the top of the loop, and a save after the step."""
    twins = Twins()
    for _ in range(2):
        for opt in twins.opts:
            opt.zero_grad()
        twins.backward()
        if take:
            twins.store.accumulate()
        assert saved_gradients(twins.store, twins.opts) == ["a", "b", "c", "d"]
        twins.opts[0].step()
        assert saved_gradients(twins.store, twins.opts) == ["c", "d"]
        twins.opts[1].step()
        assert saved_gradients(twins.store, twins.opts) == []
    if not take:
        twins.backward("b")  # added to what was there, which makes all of it part of a sum
        assert "b" in saved_gradients(twins.store, twins.opts)


@pytest.mark.parametrize("zero", ["module", "store", "optimizer"])
def test_whoever_zeroes(zero: str) -> None:
    twins = Twins()
    opt = fv.optim.SGD(twins.store, lr=0.1)
    caller = {"module": twins.ours, "store": twins.store, "optimizer": opt}[zero]
    for _ in range(2):
        caller.zero_grad()
        twins.backward("abc")
        opt.step()
    assert saved_gradients(twins.store, opt) == []
    caller.zero_grad()
    twins.backward("abd")
    assert saved_gradients(twins.store, opt) == ["a", "b", "d"]


def test_gradients_that_nobody_zeroes_add_up_and_are_saved() -> None:
    twins = Twins()
    opt = fv.optim.SGD(twins.store, lr=0.1)
    for _ in range(3):
        twins.backward()
        opt.step()
        assert saved_gradients(twins.store, opt) == ["a", "b", "c", "d"]


def test_a_gradient_put_in_its_place_is_open() -> None:
    twins = Twins()
    opt = fv.optim.SGD(twins.store, lr=0.1)
    opt.zero_grad()
    twins.backward()
    opt.step()
    for param in twins.ours.parameters():
        param.grad = None
        param.grad = torch.ones_like(param)
    assert saved_gradients(twins.store, opt) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("spent", [False, True])
def test_old_files_that_hold_spent_gradients_are_read(
    spent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file once said of the whole stream that a step had used it, and held it all the same."""
    twins = Twins()
    opt = fv.optim.SGD(twins.store, lr=0.1)
    twins.backward("ab")
    twins.store.accumulate()
    twins.backward("c")
    snapshot = twins.store.snapshot(opt)
    describe = Training.describe

    def described(training: Training) -> dict[str, Any]:
        content = describe(training)
        content["gradients"]["spent"] = spent
        return content

    monkeypatch.setattr(Training, "describe", described)
    snapshot.save(tmp_path / "old.safetensors", wait=True)
    monkeypatch.undo()
    kept = twins.store["c"].grad.clone()
    twins.store.zero_grad()
    twins.store.load(tmp_path / "old.safetensors", opt)
    assert twins.store.gradient_names() == (["c"] if spent else ["a", "b", "c"])
    assert torch.equal(twins.store["c"].grad, kept)


@pytest.mark.parametrize("looked", [False, True], ids=["norm known", "norm not known"])
def test_a_cycle_is_restored_with_its_norm(looked: bool) -> None:
    """Rolled back to within a cycle, the next step has the same bits, whoever takes the norm."""
    twins = Twins()
    opt = fv.optim.AdamW(twins.store, lr=0.1, max_norm=0.5)
    opt.zero_grad()
    twins.backward("abd")
    twins.store.accumulate(scale=0.3)
    if looked:
        twins.store.grads.mul_(0.5)
    before = {name: variable.grad for name, variable in twins.store.variables().items()} if looked else {}
    before = {name: grad if grad is None else grad.clone() for name, grad in before.items()}
    snapshot = twins.store.snapshot(opt)
    results = []
    for _ in range(2):
        for name, grad in before.items():
            mine = twins.store[name].grad
            assert (grad is None and mine is None) or torch.equal(mine, grad)
        opt.step()
        results.append(twins.store.values.clone())
        twins.store.grads.fill_(7.0)
        twins.store.restore(snapshot)
        first = twins.store["b"].grad.clone()
        twins.store.accumulate({"b": torch.ones(70)})  # goes on with the cycle
        assert torch.equal(twins.store["b"].grad, first + 1.0)
        opt.step()
        results.append(twins.store.values.clone())
        twins.store.grads.fill_(7.0)
        twins.store.restore(snapshot)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


@pytest.mark.parametrize("each", [False, True], ids=["together", "each"])
def test_a_gradient_that_clipping_takes_to_zero_is_one(each: bool) -> None:
    """Whatever its sign: a step decays the variable and counts, as torch's. What has none has none after it."""
    twins = Twins("views", weight_decay=0.1)
    grads = {"b": torch.full((70,), 1.0 if each else torch.inf), "c": torch.tensor(-2.0)}
    for name, grad in grads.items():
        twins.ours.get_parameter(name).grad.copy_(grad)
    twins.store.clip_grad_norm_(0.0 if each else 1.0, per_tensor=each)
    c = twins.store["c"].grad
    assert c is not None
    assert c.item() == 0.0
    assert twins.store["a"].grad is None
    assert twins.store["d"].grad is None
    before = {name: param.detach().clone() for name, param in twins.ours.named_parameters()}
    twins.opts[1].step()
    assert twins.opts[1].state[twins.ours.c]["step"].item() == 1.0
    assert_close(twins.ours.c.detach(), before["c"] * (1 - 0.1 * 0.1), "c")
    assert torch.equal(twins.ours.d, before["d"])


def test_gradients_zeroed_in_place_after_a_step_are_zeros_in_a_file() -> None:
    """They are no longer those that the step used, and the next step decays by them, as torch's does."""
    twins = Twins("views")
    opt = fv.optim.SGD(twins.store, lr=0.1)
    opt.zero_grad()
    twins.backward("abc")
    opt.step()
    assert saved_gradients(twins.store, opt) == []
    opt.zero_grad(set_to_none=False)
    assert saved_gradients(twins.store, opt) == ["a", "b", "c"]
    assert not twins.store["b"].grad.any()


@torch.no_grad()
def test_the_unwritten_view_of_another_is_no_gradient() -> None:
    """As where `.grad`s are swapped, and one of the two has no room in the stream, and so no view."""
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    store = fv.VarStore.from_module(module, grads="views")
    first, second = module[0].weight, module[1].weight
    first.requires_grad_(False)
    store.compact()
    first.grad, second.grad = second.grad, first.grad
    assert store["0.weight"].grad is None
    assert store["1.weight"].grad is None


KEEP: dict[str, Callable[[torch.Tensor], Any]] = {
    "itself": lambda grad: grad,
    "data": lambda grad: grad.data,
    "array": lambda grad: grad.numpy(),
    "storage": lambda grad: grad.untyped_storage(),
}
WRITE: dict[str, Callable[[Any], Any]] = {
    "itself": lambda kept: kept.data.fill_(2.0),
    "data": lambda kept: kept.fill_(2.0),
    "array": lambda kept: kept.fill(2.0),
    "storage": lambda kept: kept.copy_(torch.full((kept.nbytes() // 4,), 2.0).untyped_storage()),
}


@pytest.mark.parametrize("keep", KEEP)
def test_a_norm_is_known_when_nobody_else_has_the_stream(keep: str) -> None:
    """What was handed out may be written without a trace as long as somebody has it, and no longer."""
    store = fv.VarStore.from_module(nn.ParameterList([nn.Parameter(torch.zeros(48))]))
    gradients, grad = gradients_of(store.registry), torch.ones(48)

    def accumulated() -> torch.Tensor:
        store.zero_grad()
        store.accumulate([grad])
        return store.grad_norm()

    accumulated()
    assert gradients.known_norm(gradients.plans()) is not None
    kept: Any = KEEP[keep](store["0"].grad)  # type: ignore[arg-type]
    assert gradients.known_norm(gradients.plans()) is None
    accumulated()
    assert gradients.known_norm(gradients.plans()) is None
    WRITE[keep](kept)
    torch.testing.assert_close(store.grad_norm(), torch.tensor(2.0 * 48**0.5))
    del kept
    assert gradients.known_norm(gradients.plans()) is None  # it may have been written since the norm was taken
    torch.testing.assert_close(accumulated(), torch.tensor(48**0.5))
    assert gradients.known_norm(gradients.plans()) is not None


def test_a_known_norm_tells_no_launch_anything() -> None:
    store = fv.VarStore.from_module(nn.ParameterList([nn.Parameter(torch.zeros(48)) for _ in range(3)]))
    grads = [torch.ones(48) for _ in range(3)]
    (part,) = gradients_of(store.registry).plans().parts
    counts = []
    for _ in range(3):
        store.zero_grad()
        store.accumulate(grads)
        store.grad_norm()
        counts.append(part.plan.addresses.uploads)
    assert counts == [1, 1, 1]
