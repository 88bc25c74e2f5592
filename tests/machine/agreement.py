"""What must hold after every action."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.machine.twins import Twins

# Rounding of one step: both are compared after every one, and start from the same bits.
RTOL, ATOL = 2e-5, 2e-6


def same(actual: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(
        actual.detach(), expected.detach(), rtol=RTOL, atol=ATOL, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )


def assert_agree(twins: Twins) -> None:
    """Values, gradients, optimizer state, state dicts and masks agree, and the store's invariants hold."""
    plain = twins.plain.state_dict()
    mine = twins.module.state_dict()
    assert list(mine) == list(plain)
    for name, value in mine.items():
        assert value.dtype == plain[name].dtype, name
        same(value, plain[name], name)
    for name, ours, theirs in twins.pairs():
        assert ours.requires_grad == theirs.requires_grad, name
        assert_gradients(twins, name)
        assert_state(twins, name, ours, theirs)
        mask = twins.store.trainable_mask(name)
        expected = twins.masks.get(name)
        assert (mask is None) == (expected is None or bool(expected.all())), name
        if mask is not None:
            assert torch.equal(mask, expected)  # type: ignore[arg-type]
    twins.store.check()


def assert_gradients(twins: Twins, name: str) -> None:
    grad = twins.store[name].grad
    pending = dict(twins.plain.named_parameters())[name].grad
    gathered = twins.cycle.sums.get(name)
    expected = gathered if gathered is not None and pending is None else pending
    if gathered is not None and pending is not None and not twins.cycle.spent:
        expected = gathered + twins.masked(name, pending)
    if expected is None:
        assert grad is None, f"{name} has a gradient where the reference has None"
    else:
        assert grad is not None, f"{name} has no gradient"
        same(grad.to(expected.dtype), expected, f"gradient of {name}")


def assert_state(twins: Twins, name: str, ours: Tensor, theirs: Tensor) -> None:
    mine = twins.opt.state[ours]
    state = {key: value for key, value in twins.ref.state.get(theirs, {}).items() if value is not None}
    assert set(mine) == set(state), f"state of {name}"
    for key, value in state.items():
        same(mine[key].to(value.dtype), value, f"{key} of {name}")
