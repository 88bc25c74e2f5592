"""Memory orders: of parameters, which keep theirs, and of gradients, which may have any other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from tests.support.models import Orders

from .pairs import MODES, NORM_TOLERANCE, Pair

NOT_DENSE = ("expanded", "sliced")
CHOSEN = ["sgd-dampening", "adam-decay", "adamw-amsgrad", "lion-decay"]

# torch lays a gradient like a dense parameter; where it did not, it says so once per process.
pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey:UserWarning")


def test_dense_parameters_keep_their_order_and_others_become_row_major() -> None:
    module = Orders()
    before = {name: (param.detach().clone(), param.stride()) for name, param in module.named_parameters()}
    fv.VarStore.from_module(module).check()
    for name, (value, stride) in before.items():
        param = module.get_parameter(name)
        assert torch.equal(param, value), name
        assert param.stride() == (torch.empty(value.shape).stride() if name in NOT_DENSE else stride), name


@pytest.mark.row("P-A-14")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", CHOSEN)
def test_every_order_follows_torch(optimizer: str, mode: str) -> None:
    pair = Pair.of(Orders(), optimizer, mode)
    pair.run(8, skip=lambda step: {"volume", "transposed"} if step % 2 else {"sliced"})
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("mode", MODES)
def test_state_and_gradients_are_shown_in_the_order_of_the_parameter(mode: str) -> None:
    pair = Pair.of(Orders(), "adamw", mode)
    pair.run(1)
    for name, param in pair.ours.named_parameters():
        state = pair.opt.state[param]
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == param.stride(), name
        assert pair.store[name].grad.stride() == param.stride(), name


def in_gaps(grad: Tensor) -> Tensor:
    """Every other element of a buffer of NaN, and not from its start."""
    buffer = torch.full((2 * grad.numel() + 3,), torch.nan, dtype=grad.dtype)
    view = buffer[3::2].view(grad.shape)
    return view.copy_(grad)


def backwards(grad: Tensor) -> Tensor:
    """The axes in the opposite order."""
    axes = tuple(reversed(range(grad.dim())))
    return grad.permute(axes).contiguous().permute(axes)


LAID: dict[str, Callable[[Tensor], Tensor]] = {
    "row-major": lambda grad: grad.contiguous(),
    "backwards": backwards,
    "in-gaps": in_gaps,
    "shifted": lambda grad: torch.cat([torch.full((1,), torch.nan), grad.flatten()])[1:].view(grad.shape),
    "expanded": lambda grad: grad.flatten()[0].expand(grad.shape),
    "sparse": lambda grad: grad.to_sparse(),
    "requires-grad": lambda grad: grad.clone().requires_grad_(),
}


def assign(module: nn.Module, lay: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
    for param in module.parameters():
        param.grad = lay(torch.randn(param.shape, generator=generator))


def as_the_parameter(lay: Callable[[Tensor], Tensor], param: Tensor, grad: Tensor) -> Tensor:
    """The same numbers in the parameter's own order: torch's fused operators read memory, not strides."""
    laid = lay(grad).detach()
    return torch.empty_like(param).copy_(laid.to_dense() if laid.is_sparse else laid)


@pytest.mark.parametrize("lay", LAID.values(), ids=LAID)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
def test_assigned_gradients_may_have_any_order(optimizer: str, mode: str, lay: Callable[[Tensor], Tensor]) -> None:
    pair = Pair.of(Orders(), optimizer, mode)
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for _ in range(3):
        pair.zero_grad()
        assign(pair.ours, lay, ours)
        for param in pair.theirs.parameters():
            param.grad = as_the_parameter(lay, param, torch.randn(param.shape, generator=theirs))
        pair.step()
    pair.assert_values_close()
    pair.assert_states_close()


def dense(grad: Tensor) -> Tensor:
    grad = grad.detach()
    return grad.to_dense() if grad.is_sparse else grad.clone()


def assert_norm(actual: Tensor, grads: list[Tensor]) -> None:
    """Equal numbers round to one side in a float32 sum, so that torch's own norm of them is off by more."""
    exact = torch.cat([grad.flatten() for grad in grads]).double().norm()
    allowed = max(NORM_TOLERANCE, abs(torch.nn.utils.get_total_norm(grads) / exact - 1))
    assert abs(actual / exact - 1) <= allowed


@pytest.mark.parametrize("lay", LAID.values(), ids=LAID)
@pytest.mark.parametrize("mode", MODES)
def test_norms_and_accumulation_of_any_order(mode: str, lay: Callable[[Tensor], Tensor]) -> None:
    pair = Pair.of(Orders(), mode=mode)
    assign(pair.ours, lay, torch.Generator().manual_seed(1))
    given = {name: dense(param.grad) for name, param in pair.ours.named_parameters()}
    assert_norm(pair.store.grad_norm(), list(given.values()))
    pair.store.accumulate()
    for name, grad in given.items():
        assert torch.equal(pair.store[name].grad, grad), name
    assert_norm(pair.store.grad_norm(), list(given.values()))


def test_a_step_leaves_an_assigned_gradient_alone() -> None:
    pair = Pair.of(Orders(), "adamw")
    assign(pair.ours, backwards, torch.Generator().manual_seed(1))
    before = {param: (param.grad, param.grad.clone()) for param in pair.ours.parameters()}
    pair.opt.step()
    for param, (grad, values) in before.items():
        assert param.grad is grad
        assert torch.equal(grad, values)


@pytest.mark.parametrize("mode", MODES)
def test_convolutions_with_channels_last_weights(mode: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    pair = Pair.of(module, "adamw", mode)
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    for _ in range(5):
        pair.zero_grad()
        pair.both(lambda net: net(images).square().mean())
        pair.step()
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pair.opt.state[module[0].weight]["step"], torch.tensor(5.0))
    pair.assert_values_close()
