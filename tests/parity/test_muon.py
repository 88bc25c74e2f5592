"""Muon against torch.optim.Muon, which makes every matrix orthogonal by itself."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv

SHAPES = [(48, 16), (16, 16), (16, 48), (7, 13), (13, 7), (16, 16), (48, 16), (16, 48), (1, 5), (5, 1), (7, 13)]
STEPS = 6


class Matrices(nn.Module):
    """Parameters without a forward pass: their gradients are given."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(1)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(shape, generator=made, dtype=torch.float64).to(dtype)) for shape in SHAPES
        )


def adopted(module: nn.Module, grads: str = "gather") -> list[Tensor]:
    """Parameters of a module, in a store."""
    fv.VarStore.from_module(module, grads=grads)
    return list(module.parameters())


def gradients(step: int, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """Well-conditioned ones: of small singular values, bfloat16 makes of every order of additions another number."""
    made = torch.Generator().manual_seed(100 + step)
    for shape in SHAPES:
        yield torch.randn(shape, generator=made, dtype=torch.float64).to(dtype)


def give(module: Matrices, step: int, left_out: tuple[int, ...] = ()) -> None:
    for i, (param, grad) in enumerate(zip(module.parameters(), gradients(step), strict=True)):
        if i in left_out:
            param.grad = None
        elif param.grad is not None:  # a view: it is written
            param.grad.copy_(grad)
        else:
            param.grad = grad.to(param.dtype)


def assert_close(mine: nn.Module, theirs: nn.Module, start: nn.Module, error: float = 2e-2) -> None:
    """What steps have added agrees to 2e-2 of its size, and points the same way."""
    for one, other, first in zip(mine.parameters(), theirs.parameters(), start.parameters(), strict=True):
        moved, wanted = (x.detach().double() - first.detach().double() for x in (one, other))
        assert (moved - wanted).norm() <= error * wanted.norm()
        assert moved.flatten() @ wanted.flatten() > (1.0 - error / 200) * moved.norm() * wanted.norm()


def assert_buffers_close(mine: Any, theirs: Any, module: nn.Module, twin: nn.Module) -> None:
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        found, wanted = (opt.state[p]["momentum_buffer"] for opt, p in ((mine, one), (theirs, other)))
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grads", ["gather", "views"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False},
        {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0},
        {"momentum": 0.3, "ns_steps": 4},
        {"ns_coefficients": (3.0, -4.0, 1.8), "ns_steps": 3, "eps": 1e-3},
        {"momentum": 0.0, "adjust_lr_fn": "original"},
    ],
    ids=str,
)
def test_steps_follow_torch(options: dict[str, Any], grads: str) -> None:
    module, twin, start = Matrices(), Matrices(), Matrices()
    fv.VarStore.from_module(module, grads=grads)
    mine, theirs = (
        fv.optim.Muon(module.parameters(), lr=0.02, **options),
        torch.optim.Muon(twin.parameters(), 0.02, **options),
    )
    for step in range(STEPS):
        for opt, net in ((mine, module), (theirs, twin)):
            give(net, step)
            for group in opt.param_groups:
                group["lr"] = 0.02 / (1 + step)
            opt.step()
            opt.zero_grad()
    assert_close(module, twin, start)
    assert_buffers_close(mine, theirs, module, twin)


def test_bfloat16_with_nesterov_follows_torch() -> None:
    """Without it, torch 2.13 normalizes the momentum buffer itself, in place, where it is bfloat16 already."""
    module, twin = Matrices(torch.bfloat16), Matrices(torch.bfloat16)
    fv.VarStore.from_module(module)
    mine, theirs = fv.optim.Muon(module.parameters(), lr=0.05), torch.optim.Muon(twin.parameters(), 0.05)
    for step in range(STEPS):
        for opt, net in ((mine, module), (theirs, twin)):
            give(net, step)
            opt.step()
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        # Half a unit of bfloat16 at 4, twice a step: torch rounds after the decay, and after the rest.
        torch.testing.assert_close(one, other, rtol=2e-2, atol=6e-2)


def test_bfloat16_without_nesterov_keeps_its_buffer() -> None:
    module = Matrices(torch.bfloat16)
    optimizer = fv.optim.Muon(adopted(module), nesterov=False, momentum=0.0)
    give(module, 0)
    optimizer.step()
    for param, grad in zip(module.parameters(), gradients(0), strict=True):
        assert torch.equal(optimizer.state[param]["momentum_buffer"], grad.bfloat16())


@pytest.mark.parametrize("grads", ["gather", "views"])
def test_a_matrix_without_a_gradient_stays(grads: str) -> None:
    """In the middle of a batch, in some steps; torch leaves value and buffer alone as well."""
    module, twin, start = Matrices(), Matrices(), Matrices()
    mine = fv.optim.Muon(adopted(module, grads), lr=0.02)
    theirs = torch.optim.Muon(twin.parameters(), lr=0.02)
    for step in range(STEPS):
        left_out = (1, 6, 7) if step % 2 else (0,)
        before = [p.detach().clone() for p in module.parameters()]
        for opt, net in ((mine, module), (theirs, twin)):
            opt.zero_grad()
            give(net, step, () if grads == "views" and net is module else left_out)
        if grads == "views":
            for i in left_out:
                module.weights[i].grad = None
        mine.step()
        theirs.step()
        assert all(torch.equal(module.weights[i], before[i]) for i in left_out)
    assert_close(module, twin, start)


def test_frozen_and_late_matrices() -> None:
    """Frozen in the middle of a batch; and one that joins its batch later starts as torch's."""
    module, twin, start = Matrices(), Matrices(), Matrices()
    store = fv.VarStore.from_module(module)
    mine, theirs = fv.optim.Muon(store, lr=0.02), torch.optim.Muon(twin.parameters(), lr=0.02)
    for step in range(4):
        if step == 1:
            store.freeze("weights.5")
            twin.weights[5].requires_grad_(False)
        if step == 3:
            store.unfreeze("weights.5")
            twin.weights[5].requires_grad_(True)
        frozen = (5,) if step in (1, 2) else ()
        for opt, net in ((mine, module), (theirs, twin)):
            opt.zero_grad()
            give(net, step, frozen)
            opt.step()
    late, twin_late = (nn.Parameter(torch.ones(16, 16)) for _ in range(2))
    store.add("weights.late", late)
    theirs.add_param_group({"params": [twin_late]})
    for step in range(2):
        for opt, net, extra in ((mine, module, late), (theirs, twin, twin_late)):
            give(net, step)
            extra.grad = torch.eye(16) * (step + 1.0)
            opt.step()
            opt.zero_grad()
    assert_close(module, twin, start)
    assert (late - twin_late).norm() <= 2e-2 * (twin_late - 1).norm()
    assert not torch.equal(late, torch.ones(16, 16))


def test_groups_have_numbers_of_their_own() -> None:
    module, twin, start = Matrices(), Matrices(), Matrices()
    fv.VarStore.from_module(module)

    def groups(net: Matrices) -> list[dict[str, Any]]:
        params = list(net.parameters())
        return [
            {"params": params[::2], "lr": 0.1, "ns_steps": 3},
            {"params": params[1::2], "momentum": 0.5, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"},
        ]

    mine, theirs = fv.optim.Muon(groups(module), lr=0.01), torch.optim.Muon(groups(twin), lr=0.01)
    for step in range(STEPS):
        for opt, net in ((mine, module), (theirs, twin)):
            give(net, step)
            opt.step()
    assert_close(module, twin, start)


@pytest.mark.parametrize("direction", ["ours", "theirs"])
def test_state_dicts_interchange(direction: str) -> None:
    module, twin, start = Matrices(), Matrices(), Matrices()
    mine = fv.optim.Muon(adopted(module), lr=0.02)
    theirs = torch.optim.Muon(twin.parameters(), lr=0.02)
    source, target = ((module, mine), (twin, theirs)) if direction == "ours" else ((twin, theirs), (module, mine))
    for step in range(3):
        give(source[0], step)
        source[1].step()
    target[0].load_state_dict(source[0].state_dict())
    target[1].load_state_dict(copy.deepcopy(source[1].state_dict()))
    for step in range(3, STEPS):
        for net, opt in (source, target):
            give(net, step)
            opt.step()
    assert_close(module, twin, start)
    assert_buffers_close(mine, theirs, module, twin)


class Language(nn.Module):
    """An embedding, a norm, two hidden matrices of one size and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.wte = nn.Embedding(11, 8)
        self.fc, self.norm, self.proj = nn.Linear(8, 24), nn.LayerNorm(24), nn.Linear(24, 8)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.proj(self.norm(self.fc(self.wte(tokens)))))
        return out


def train(module: nn.Module, optimizer: Any, steps: int = 3) -> None:
    tokens = torch.arange(11)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(tokens), tokens.roll(1)).backward()
        optimizer.step()


REST = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.05}


def both(module: nn.Module, **options: Any) -> fv.optim.Muon:
    return fv.optim.Muon(fv.VarStore.from_module(module), lr=0.02, rest=REST, **options)


def split_between_two(module: Language) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    hidden = [module.fc.weight, module.proj.weight]
    others = [p for p in module.parameters() if all(p is not h for h in hidden)]
    return torch.optim.Muon(hidden, lr=0.02), torch.optim.AdamW(others, **REST)


@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_one_object_is_torchs_two(max_norm: float | None) -> None:
    """The norm that is clipped to is that over both."""
    module, twin, start = Language(), Language(), Language()
    mine, theirs = both(module, max_norm=max_norm), split_between_two(twin)
    tokens = torch.arange(11)
    for _ in range(STEPS):
        train(module, mine, 1)
        for opt in theirs:
            opt.zero_grad()
        nn.functional.cross_entropy(twin(tokens), tokens.roll(1)).backward()
        if max_norm is not None:
            norm = nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
            torch.testing.assert_close(mine.grad_norm, norm, rtol=1e-3, atol=0.0)
        for opt in theirs:
            opt.step()
    for (name, one), other, first in zip(module.named_parameters(), twin.parameters(), start.parameters(), strict=True):
        assert (one - other).norm() <= 3e-2 * (other - first).norm(), name


def test_pieces_of_both_load() -> None:
    """The state dicts of torch's two optimizers, put together, are ours."""
    module, twin = Language(), Language()
    mine, theirs = both(module), split_between_two(twin)
    tokens = torch.arange(11)
    nn.functional.cross_entropy(twin(tokens), tokens.roll(1)).backward()
    for opt in theirs:
        opt.step()
    pieces = [opt.state_dict() for opt in theirs]
    count = len(pieces[0]["state"])
    state = {**pieces[0]["state"], **{key + count: value for key, value in pieces[1]["state"].items()}}
    groups = [{**piece["param_groups"][0]} for piece in pieces]
    groups[1]["params"] = [key + count for key in groups[1]["params"]]
    mine.load_state_dict({"state": state, "param_groups": groups})
    assert mine.state[module.wte.weight]["step"] == 1
    torch.testing.assert_close(
        mine.state[module.fc.weight]["momentum_buffer"], theirs[0].state[twin.fc.weight]["momentum_buffer"]
    )
    torch.testing.assert_close(
        mine.state[module.head.weight]["exp_avg_sq"], theirs[1].state[twin.head.weight]["exp_avg_sq"]
    )


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "file"])
def test_a_copy_goes_on_bit_for_bit(way: str, tmp_path: Path) -> None:
    module = Language()
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.Muon(store, lr=0.02, rest=REST, max_norm=1.0, split={"fc.weight": 3})
    train(module, optimizer)
    if way == "file":
        store.save(tmp_path / "run.safetensors", optimizer)
        again = Language()
        other = fv.VarStore.from_module(again)
        resumed = fv.optim.Muon(other, max_norm=1.0)
        other.load(tmp_path / "run.safetensors", resumed)
    else:
        parts = (module, store, optimizer)
        again, other, resumed = copy.deepcopy(parts) if way == "deepcopy" else pickle.loads(pickle.dumps(parts))
    train(module, optimizer)
    train(again, resumed)
    assert all(map(torch.equal, module.parameters(), again.parameters()))


def test_buffers_of_sums_are_converted() -> None:
    """Both conventions give one direction; a buffer of one is 20 times that of the other."""
    runs = {}
    for summed in (False, True):
        module = Matrices()
        runs[summed] = module, fv.optim.Muon(adopted(module), sum_momentum=summed)
        for step in range(3):
            give(module, step)
            runs[summed][1].step()
    # The same direction, of which bfloat16 rounds other digits: small singular values grow by 485.
    assert_close(runs[True][0], runs[False][0], Matrices(), error=6e-2)
    state = runs[True][1].state_dict()
    for summed in (False, True):
        module = Matrices()
        optimizer = fv.optim.Muon(adopted(module), sum_momentum=summed)
        optimizer.load_state_dict(state, buffers="sum")
        assert optimizer.param_groups[0]["sum_momentum"] is summed
        for param, other in zip(module.parameters(), runs[summed][0].parameters(), strict=True):
            found, wanted = optimizer.state[param], runs[summed][1].state[other]
            torch.testing.assert_close(found["momentum_buffer"], wanted["momentum_buffer"], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="buffers="):
        optimizer.load_state_dict(state, buffers="both")


def test_matrices_alone_have_momentum_and_the_rest_alone_moments() -> None:
    module = Language()
    optimizer = both(module)
    train(module, optimizer)
    streams = optimizer.registry.streams
    held = {
        name: streams.find(f"{optimizer.states._key}.{name}", torch.float32).buffer.numel()
        for name in ("momentum_buffer", "exp_avg", "exp_avg_sq")
    }
    matrices = module.fc.weight.numel() + module.proj.weight.numel()
    assert held["momentum_buffer"] == matrices
    assert held["exp_avg"] == held["exp_avg_sq"] == store_numel(optimizer) - matrices


def store_numel(optimizer: fv.optim.Muon) -> int:
    return optimizer.registry.layout.region_of[torch.float32].trainable_numel
