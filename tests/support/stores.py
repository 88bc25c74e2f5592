"""Small stores and models for tests that go through the library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import flatvars as fv

SHAPES = ((7, 5), (2060,), (), (33,))


def store_of(
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    device: torch.device | str = "cpu",
    grads: str = "gather",
) -> fv.VarStore:
    """A store of variables v0, v1, ... of random values; dtypes take turns."""
    store = fv.VarStore(device, grads=grads)
    for i, shape in enumerate(shapes):
        store.add(f"v{i}", torch.randn(shape, device=device).to(dtypes[i % len(dtypes)]))
    return store


def set_grads(store: fv.VarStore, scale: float = 1.0) -> list[Tensor]:
    """Random gradients where autograd would leave them."""
    grads = []
    for variable in store.trainable_variables():
        grads.append(torch.randn(variable.shape, device=store.device).to(variable.dtype) * scale)
        variable.param.grad = grads[-1]
    return grads


class Net(nn.Module):
    """Matrices, vectors, a scalar, a tie-free embedding, and a convolution in channels-last order."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 12)
        self.conv = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).reshape(-1, 3, 2, 2)
        x = self.conv(x)[:, :3].reshape(-1, 12)
        return self.head(self.norm(x)) * self.gain


def batch(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    return torch.randint(0, 11, (8,), device=device), torch.randn(8, 5, device=device)


def backward(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    (model(data[0]) - data[1]).square().mean().backward()
