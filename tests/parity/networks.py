"""Known architectures, tiny, each with a loss on data that repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.models import Recurrent, ResNet

VOCABULARY = 61


@dataclass(frozen=True)
class Network:
    """How to make a network, and its loss: of (network, seed of the batch).

    Attributes:
        lr: One that lowers the loss within 20 steps.
    """

    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int], Tensor]
    lr: float = 1e-2


def transformers() -> ModuleType:
    """Imported when a test asks for it: that takes five seconds, and what follows it runs without."""
    return pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")


def gpt2() -> nn.Module:
    """Head tied to the embedding, with dropout."""
    hub = transformers()
    sizes = {"n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return hub.GPT2LMHeadModel(hub.GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **sizes))


def llama() -> nn.Module:
    hub = transformers()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return hub.LlamaForCausalLM(hub.LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads))


def t5() -> nn.Module:
    """One embedding with four names; the default ReLU would make runs part that differ by a rounding."""
    hub = transformers()
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return hub.T5ForConditionalGeneration(
        hub.T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, feed_forward_proj="gated-gelu", **sizes)
    )


def vit() -> nn.Module:
    hub = transformers()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return hub.ViTForImageClassification(hub.ViTConfig(image_size=16, patch_size=4, num_labels=5, **sizes))


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Symbols [4, 10] that a model can predict, images [4, 3, 16, 16], and their classes [4]."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(VOCABULARY, (4, 1), generator=generator)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    return (start + 3 * torch.arange(10)) % VOCABULARY, images, images.mean((2, 3)).argmax(1)


def next_symbol(network: nn.Module, seed: int) -> Tensor:
    ids = batch(seed)[0]
    return network(input_ids=ids, labels=ids).loss


def classes(network: nn.Module, seed: int) -> Tensor:
    _, images, labels = batch(seed)
    return network(pixel_values=images, labels=labels).loss


def plain_classes(network: nn.Module, seed: int) -> Tensor:
    _, images, labels = batch(seed)
    return F.cross_entropy(network(images), labels)


def channels_last_classes(network: nn.Module, seed: int) -> Tensor:
    _, images, labels = batch(seed)
    return F.cross_entropy(network(images.to(memory_format=torch.channels_last)), labels)


def recurrent_symbol(network: nn.Module, seed: int) -> Tensor:
    ids = batch(seed)[0]
    return F.cross_entropy(network(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


NETWORKS = {
    "gpt2": Network(gpt2, next_symbol),
    "llama": Network(llama, next_symbol),
    "t5": Network(t5, next_symbol),
    "vit": Network(vit, classes),
    "resnet": Network(ResNet, plain_classes),
    "resnet-channels-last": Network(lambda: ResNet().to(memory_format=torch.channels_last), channels_last_classes),
    "lstm": Network(lambda: Recurrent(VOCABULARY), recurrent_symbol, lr=3e-2),
}
