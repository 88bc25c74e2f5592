"""Three real architectures, in a size for a CPU and one for a GPU: what whole training steps are measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.train.gpt import GPT, GPTConfig


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions, each with a batch norm (He et al. 2015)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.skip = (
            nn.Identity()
            if width_in == out and stride == 1
            else nn.Sequential(nn.Conv2d(width_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class ResNet(nn.Module):
    """ResNet with a stem for images of 32 pixels."""

    def __init__(self, blocks: tuple[int, ...], width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        width_in = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                layers.append(Bottleneck(width_in, width << stage, 2 if stage and block == 0 else 1))
                width_in = 4 * (width << stage)
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width_in, 100)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.body(inputs).mean((2, 3))), targets)


class LlamaBlock(nn.Module):
    """Attention with fewer heads for keys than for queries, then SwiGLU, each behind an RMS norm (Llama 3)."""

    def __init__(self, width: int, heads: int, kv_heads: int, ffn: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.size, bias=False)
        self.v = nn.Linear(width, kv_heads * self.size, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, ffn, bias=False)
        self.up = nn.Linear(width, ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def rotate(self, x: Tensor) -> Tensor:
        half = self.size // 2
        rates = 10000.0 ** (-torch.arange(half, device=x.device) / half)
        angles = torch.arange(x.shape[2], device=x.device)[:, None] * rates
        first, second = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        y = self.norm1(x)
        q, k, v = (linear(y).view(batch, time, -1, self.size).transpose(1, 2) for linear in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, time, width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """A Llama-3 with an untied head."""

    def __init__(self, layers: int, width: int, heads: int, kv_heads: int, vocab: int) -> None:
        super().__init__()
        ffn = width * 7 // 2
        self.token = nn.Embedding(vocab, width)
        self.blocks = nn.Sequential(*(LlamaBlock(width, heads, kv_heads, ffn) for _ in range(layers)))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocab, bias=False)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(self.norm(self.blocks(self.token(inputs))))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class Architecture:
    """How to build a model with a `loss(inputs, targets)`, and a batch for it."""

    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]


def _text(vocab: int, batch: int, time: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(vocab, (batch, time + 1), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]

    return draw


def _images(batch: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, 3, 32, 32, generator=generator), torch.randint(100, (batch,), generator=generator)

    return draw


ARCHITECTURES: dict[str, Architecture] = {
    "train-gpt-1M": Architecture(lambda: GPT(GPTConfig(256, 64, 6, 4, 128)), _text(256, 4, 64)),
    "train-gpt-124M": Architecture(lambda: GPT(GPTConfig(50257, 1024, 12, 12, 768)), _text(50257, 8, 1024)),
    "train-resnet50-thin": Architecture(lambda: ResNet((3, 4, 6, 3), 8), _images(4)),
    "train-resnet101": Architecture(lambda: ResNet((3, 4, 23, 3), 64), _images(64)),
    "train-llama-2M": Architecture(lambda: Llama(8, 128, 4, 1, 512), _text(512, 4, 64)),
    "train-llama-1B": Architecture(lambda: Llama(16, 2048, 32, 8, 32000), _text(32000, 4, 1024)),
}


def shapes_of(name: str) -> list[tuple[int, ...]]:
    """The shapes of an architecture's parameters, without building it in memory."""
    with torch.device("meta"):
        return [tuple(param.shape) for param in ARCHITECTURES[name].build().parameters()]
