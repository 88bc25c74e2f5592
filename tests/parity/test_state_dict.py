"""State dicts: into torch.optim and back in the middle of a run, and into stores whose layout has changed."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

import flatvars as fv
from tests.support.models import Bag

from .pairs import FLAVOR, MODES, OPTIMIZERS, Pair, assert_close

SHAPES = {"a": (2,), "b": (3, 3), "c": (), "d": (66_000,), "e": (0,)}
EXCHANGED = [name for name in OPTIMIZERS if name not in ("sgd", "sgd-decay", "sgd-maximize")]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def late_c(step: int) -> tuple[str, ...]:
    """`c` has its first gradient after the exchange."""
    return ("c",)


@pytest.mark.row("P-O-02")
@pytest.mark.parametrize("optimizer", EXCHANGED)
def test_ours_goes_on_from_torch(optimizer: str) -> None:
    pair = Pair.of(Bag(SHAPES), optimizer)
    pair.run(5, skip=late_c)
    pair.opt = OPTIMIZERS[optimizer][0](pair.store, lr=1.0)
    pair.opt.load_state_dict(through_a_file(pair.ref.state_dict()))
    pair.run(5, seed=2)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.row("P-O-02")
@pytest.mark.parametrize("optimizer", EXCHANGED)
def test_torch_goes_on_from_ours(optimizer: str) -> None:
    pair = Pair.of(Bag(SHAPES), optimizer)
    pair.run(5, skip=late_c)
    their_class = OPTIMIZERS[optimizer][1]
    pair.ref = their_class(pair.theirs.parameters(), lr=1.0)
    pair.ref.load_state_dict(through_a_file(pair.opt.state_dict()))
    for group in pair.ref.param_groups:
        group.update(FLAVOR[their_class])
    pair.run(5, seed=2)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.row("P-O-03")
@pytest.mark.parametrize("mode", MODES)
def test_a_loaded_state_is_a_copy(mode: str) -> None:
    pair = Pair.of(Bag(SHAPES), "adamw", mode)
    pair.run(2)
    saved = pair.ref.state_dict()
    kept = copy.deepcopy(saved)
    pair.opt.load_state_dict(saved)
    pair.opt.step()
    for index, state in kept["state"].items():
        assert all(torch.equal(value, saved["state"][index][key]) for key, value in state.items())


@pytest.mark.parametrize("mode", MODES)
def test_state_follows_when_a_variable_is_unfrozen(mode: str) -> None:
    """Unfreezing moves spans: state read or loaded before the next step must use the new ones."""
    module = Bag(SHAPES)
    module.a.requires_grad_(False)
    pair = Pair.of(module, "adamw", mode)
    pair.run(3)
    before = copy.deepcopy(pair.opt.state_dict())
    pair.store.unfreeze("a")
    pair.theirs.a.requires_grad_(True)
    pair.assert_states_close()
    pair.opt.load_state_dict(before)
    pair.run(3, seed=2)
    pair.assert_values_close()
    pair.assert_states_close()


def test_state_follows_when_a_variable_is_added() -> None:
    pair = Pair.of(Bag(SHAPES), "adamw")
    pair.run(3)
    before = copy.deepcopy(pair.opt.state_dict())
    pair.store.add("later", torch.ones(7), trainable=False)
    pair.assert_states_close()
    pair.opt.load_state_dict(before)
    pair.run(3, seed=2)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_state_follows_when_the_store_is_converted(dtype: torch.dtype) -> None:
    pair = Pair.of(Bag(SHAPES), "adamw")
    pair.run(3)
    before = copy.deepcopy(pair.opt.state_dict())
    pair.store.set_dtype(dtype)
    for index, state in pair.opt.state_dict()["state"].items():
        assert torch.equal(state["exp_avg"], before["state"][index]["exp_avg"].to(dtype))
        assert state["step"] == before["state"][index]["step"]


def test_wider_state_survives_conversion_of_the_values() -> None:
    """`state_dtype` is a promise: half-precision values come and go, the float32 moments keep every bit."""
    pair = Pair.of(Bag(SHAPES), "adamw", state_dtype=torch.float32)
    pair.run(3)
    before = copy.deepcopy(pair.opt.state_dict()["state"])
    pair.store.bfloat16()
    for index, state in pair.opt.state_dict()["state"].items():
        assert state["exp_avg"].dtype == torch.float32
        assert torch.equal(state["exp_avg"], before[index]["exp_avg"])


@pytest.mark.row("P-O-03")
def test_float32_state_of_bfloat16_variables_round_trips() -> None:
    module = Bag(SHAPES, [torch.bfloat16])
    pair = Pair.of(module, "adamw", state_dtype=torch.float32)
    pair.run(4)
    saved = through_a_file(pair.opt.state_dict())
    twin = copy.deepcopy(module)
    store = fv.VarStore.from_module(twin)
    opt = fv.optim.AdamW(store, lr=1.0, state_dtype=torch.float32)
    opt.load_state_dict(saved)
    for index, state in opt.state_dict()["state"].items():
        assert all(torch.equal(value, saved["state"][index][key]) for key, value in state.items())
        assert state["exp_avg"].dtype == torch.float32
    for left, right in zip(module.parameters(), twin.parameters(), strict=True):
        left.grad = torch.ones_like(left)
        right.grad = torch.ones_like(right)
    pair.opt.step()
    opt.step()
    assert all(torch.equal(left, right) for left, right in zip(module.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("ours", [fv.optim.SGD, fv.optim.Adam], ids=["sgd", "adam"])
def test_hyperparameters_come_from_the_loaded_groups(ours: type) -> None:
    """An optimizer made with defaults takes the saved momentum or amsgrad, and the state that goes with it."""
    row = "sgd-dampening" if ours is fv.optim.SGD else "adam-amsgrad"
    pair = Pair.of(Bag(SHAPES), row)
    pair.run(4)
    pair.opt = ours(pair.store)
    pair.opt.load_state_dict(pair.ref.state_dict())
    pair.assert_states_close()
    pair.run(3, seed=2)
    pair.assert_values_close()


def test_compact_forgets_the_count_with_the_state() -> None:
    pair = Pair.of(Bag(SHAPES), "sgd-dampening")
    pair.run(4)
    pair.zero_grad()
    pair.store.freeze("b")
    pair.store.compact()
    pair.store.unfreeze("b")
    assert pair.opt.state[pair.ours.b] == {}
    pair.ref.state.pop(pair.theirs.b)
    pair.run(2, seed=2)
    pair.assert_values_close()


@pytest.mark.row("P-O-03")
def test_group_and_parameter_counts_must_match() -> None:
    pair = Pair.of(Bag(SHAPES), "adamw")
    state = pair.opt.state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        pair.opt.load_state_dict({**state, "param_groups": state["param_groups"] * 2})
    short = {**state["param_groups"][0], "params": [0]}
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        pair.opt.load_state_dict({**state, "param_groups": [short]})


def test_state_is_shown_per_parameter() -> None:
    pair = Pair.of(Bag(SHAPES), "adamw")
    pair.run(2, skip=late_c)
    assert len(pair.opt.state) == len(pair.ref.state) == len(SHAPES) - 1
    for name, param in pair.ours.named_parameters():
        expected = pair.ref.state[pair.theirs.get_parameter(name)]
        for key, value in pair.opt.state[param].items():
            assert_close(value, expected[key], f"{name}.{key}")
