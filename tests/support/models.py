"""Small modules that tests adopt: bags of parameters, parameters in every memory order, and known architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIXTURE: Mapping[str, tuple[int, ...]] = {
    "scalar": (),
    "empty": (0,),
    "one": (1,),
    "row": (31,),
    "primes": (7, 13),
    "empty_matrix": (0, 3),
    "thin": (5, 1, 3),
    "at_limit": (65_536,),
    "over_limit": (65_537,),
    "matrix": (257, 263),
}
"""Every class of shape: of one tile, of many, of none."""


class Bag(nn.Module):
    """Parameters by name, with random values; a gradient is whatever a test gives them."""

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], dtypes: Sequence[torch.dtype] = (torch.float32,), seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for i, (name, shape) in enumerate(shapes.items()):
            values = torch.randn(tuple(shape), generator=generator).to(dtypes[i % len(dtypes)])
            self.register_parameter(name, nn.Parameter(values))


class Orders(nn.Module):
    """Parameters whose axes lie in memory in every order, and two that do not fill their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.row_major = nn.Parameter(torch.randn(5, 7))
        self.channels_last = nn.Parameter(torch.randn(4, 3, 3, 2).to(memory_format=torch.channels_last))
        self.volume = nn.Parameter(torch.randn(2, 3, 2, 3, 4).to(memory_format=torch.channels_last_3d))
        self.transposed = nn.Parameter(torch.randn(7, 5).t())
        self.large = nn.Parameter(torch.randn(260, 270).t())
        self.permuted = nn.Parameter(torch.randn(2, 3, 4).permute(2, 0, 1))
        self.expanded = nn.Parameter(torch.randn(5, 1).expand(5, 7))
        self.sliced = nn.Parameter(torch.randn(5, 9)[:, ::2])


class Chain(nn.Module):
    """Linear layers behind each other; `active` says which of them a forward pass uses."""

    def __init__(self, width: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.active = list(range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for i in self.active:
            x = torch.tanh(self.layers[i](x))
        return x


class TiedLanguageModel(nn.Module):
    """An embedding whose weight is the output layer's too."""

    def __init__(self, vocabulary: int = 11, width: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(ids))))


class Block(nn.Module):
    """A residual block with two convolutions and batch norms.

    Smooth, as all networks here: at the kink of a ReLU two runs that differ by one rounding part for good.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.conv1(x)))
        return F.silu(x + self.norm2(self.conv2(y)))


class ResNet(nn.Module):
    """A residual network for 3-channel images, [batch, 3, height, width] to [batch, classes]."""

    def __init__(self, channels: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(Block(channels), Block(channels))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.silu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    """A two-layer LSTM over embedded symbols, [batch, time] to [batch, time, vocabulary]."""

    def __init__(self, vocabulary: int = 13, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[0])
