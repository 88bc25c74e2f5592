"""Small stores, models and optimizers that several files train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv


def encoder_and_head(mode: str = "gather") -> tuple[fv.VarStore, nn.Module]:
    store = fv.VarStore(grads=mode)
    root = store.root()
    model = nn.Sequential(
        fv.nn.linear(root / "encoder" / 0, 5, 6),
        nn.Tanh(),
        fv.nn.layer_norm(root / "norm", 6),
        fv.nn.linear(root / "head", 6, 2),
    )
    return store, model


def loss_of(model: nn.Module, data: Tensor | None = None) -> Tensor:
    data = torch.linspace(-1.0, 1.0, 40).view(8, 5) if data is None else data
    return model(data).square().mean()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 2))


def pair() -> tuple[nn.Module, nn.Module, fv.VarStore]:
    ours, theirs = network(), network()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, fv.VarStore.from_module(ours)


def batch_loss(model: nn.Module, seed: int = 0) -> Tensor:
    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    return model(data).square().sum()


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, left), right in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=5e-6, atol=5e-7, msg=lambda text, name=name: f"{name}: {text}")


ALL = {
    "sgd": (fv.optim.SGD, {"momentum": 0.5}),
    "rmsprop": (fv.optim.RMSprop, {}),
    "adam": (fv.optim.Adam, {}),
    "adamw": (fv.optim.AdamW, {}),
    "lion": (fv.optim.Lion, {}),
}


every_optimizer = pytest.mark.parametrize("name", ALL)


def two_groups() -> tuple[fv.VarStore, Tensor, Tensor]:
    """A store with `a` in group 0 and `b` in group 2, both ones."""
    store = fv.VarStore()
    return store, store.root().ones("a", (3,)), store.root().set_group(2).ones("b", (2,))


def make(name: str, store: fv.VarStore, **options: Any) -> fv.optim.Optimizer:
    kind, defaults = ALL[name]
    return kind(store, **{"lr": 0.1, **defaults, **options})


def values(optimizer: fv.optim.Optimizer, name: str) -> list[Any]:
    return [group[name] for group in optimizer.param_groups]
