"""A small GPT, written plainly: what the training job trains.

Pre-LayerNorm blocks with causal self-attention and a GELU MLP, learned positions, and a head that shares its
weight with the token embedding, so that the job exercises a tied parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT: vocabulary, context length in tokens, depth, heads and width."""

    vocab: int
    context: int
    layers: int
    heads: int
    width: int


class Block(nn.Module):
    """Attention, then MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        """Causal self-attention over ``x`` of shape [batch, time, width]."""
        batch, time, width = x.shape
        heads = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attention_out(mixed.transpose(1, 2).reshape(batch, time, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, width] to the same shape."""
        x = x + self.attend(self.norm1(x))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm2(x))))


class GPT(nn.Module):
    """A language model over ``config.vocab`` token ids."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocab, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        self.head.weight = self.token.weight
        self._initialize()

    def _initialize(self) -> None:
        # The residual stream adds two branches per block; scaling their last layers keeps its variance
        # independent of depth, as in GPT-2.
        residual_std = INIT_STD / (2 * self.config.layers) ** 0.5
        for name, param in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(param)
            elif param.ndim == 2:
                is_branch_end = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(param, std=residual_std if is_branch_end else INIT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, time, vocab] for the token after each of ``tokens`` [batch, time]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token(tokens) + self.position(positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats; ``inputs`` and ``targets`` are int64 [batch, time]."""
        logits = self(inputs)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def generate(model: GPT, prompt: bytes, length: int, seed: int, temperature: float = 0.7) -> bytes:
    """Continue ``prompt`` by ``length`` sampled bytes, and return prompt and continuation."""
    device = model.token.weight.device
    # Drawn on the CPU, so that a seed means the same draws on every device.
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([list(prompt)], device=device)
    for _ in range(length):
        logits = model(tokens[:, -model.config.context :])[0, -1, :256].float().cpu()
        chances = torch.softmax(logits / temperature, dim=-1)
        drawn = torch.multinomial(chances, 1, generator=generator)
        tokens = torch.cat([tokens, drawn.view(1, 1).to(device)], dim=1)
    return bytes(tokens[0].tolist())
