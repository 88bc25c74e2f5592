"""What must hold after every word."""

from __future__ import annotations

import io
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tests.machine.twins import Lane, Twins

# Rounding of one step: both are compared after every one, and start from the same bits.
RTOL, ATOL = 2e-5, 2e-6


def assert_same(actual: Tensor, expected: Tensor, what: str) -> None:
    """To rounding. What is lost is lost: whether as NaN or as an infinity, torch's own variants do not agree."""
    actual, expected = (
        torch.where(tensor.isfinite(), tensor, torch.nan) if tensor.is_floating_point() else tensor
        for tensor in (actual.detach(), expected.detach())
    )
    torch.testing.assert_close(
        actual, expected, rtol=RTOL, atol=ATOL, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )


def assert_agree(twins: Twins) -> None:
    """Values, gradients, state of every optimizer, masks and files agree, and the store's invariants hold."""
    plain = twins.plain.state_dict()
    mine = twins.module.state_dict()
    assert list(mine) == list(plain)
    for name, value in mine.items():
        assert value.dtype == plain[name].dtype, name
        assert_same(value, plain[name], name)
    for name, ours, theirs in twins.pairs():
        assert twins.module.get_parameter(name) is ours, name
        assert ours.requires_grad == theirs.requires_grad, name
        assert_gradient(twins, name)
        for lane in twins.lanes:
            assert_state(lane, name, ours, theirs)
        assert_mask(twins, name)
    for lane in twins.lanes:
        assert_groups(twins, lane)
    assert_file(twins)
    twins.store.check()


def assert_gradient(twins: Twins, name: str) -> None:
    grad, expected = twins.store[name].grad, twins.cycle.seen(name)
    if expected is None:
        assert grad is None, f"{name} has a gradient where the reference has None"
    else:
        assert grad is not None, f"{name} has no gradient"
        assert_same(grad.to(expected.dtype), expected, f"gradient of {name}")


def assert_state(lane: Lane, name: str, ours: Tensor, theirs: Tensor) -> None:
    mine, state = (present(opt.state.get(param, {})) for opt, param in ((lane.ours, ours), (lane.theirs, theirs)))
    assert set(mine) == set(state), f"state of {name}"
    for key, value in state.items():
        if isinstance(value, Tensor):
            assert_same(mine[key].to(value.dtype), value, f"{key} of {name}")
        else:
            assert mine[key] == value, f"{key} of {name}"


def present(state: Any) -> dict[str, Any]:
    return {key: value for key, value in state.items() if value is not None}


def assert_mask(twins: Twins, name: str) -> None:
    mask, expected = twins.store.trainable_mask(name), twins.cycle.masks.get(name)
    assert (mask is None) == (expected is None), f"mask of {name}"
    if mask is not None and expected is not None:
        assert torch.equal(mask, expected), f"mask of {name}"


def assert_groups(twins: Twins, lane: Lane) -> None:
    """The same parameters in the same groups, with the same numbers."""
    twin_of = {id(ours): theirs for _, ours, theirs in twins.pairs()}
    assert len(lane.ours.param_groups) == len(lane.theirs.param_groups)
    for mine, group in zip(lane.ours.param_groups, lane.theirs.param_groups, strict=True):
        assert [id(twin_of[id(param)]) for param in mine["params"]] == [id(param) for param in group["params"]]
        for key in ("lr", "weight_decay"):
            assert mine[key] == group[key]


def assert_file(twins: Twins) -> None:
    """What others read of a file are the module's values; a save leaves all as it was."""
    file = io.BytesIO()
    twins.store.save(file, [lane.ours for lane in twins.lanes] if len(twins.lanes) > 1 else twins.lanes[0].ours)
    tensors = safetensors.torch.load(file.getvalue())
    expected = {name: theirs for name, _, theirs in twins.pairs()}
    if twins.buffers:
        expected["running"] = twins.plain.get_buffer("running")
    for name, value in expected.items():
        assert_same(tensors[name].to(value.dtype), value, f"{name} in a file")
    for kind in ("grads", "pending"):
        for name in [name for name in tensors if name.startswith(f"{kind}/")]:
            assert twins.cycle.seen(name.removeprefix(f"{kind}/")) is not None, f"{name} in a file"
