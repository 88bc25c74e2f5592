"""What is compared: a store and its AdamW in each of our formats, and other libraries' AdamW in theirs."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import flatvars as fv
from bench.train.options import Job
from bench.train.sides import BETAS, MAX_NORM, NO_DECAY, WEIGHT_DECAY, Side, matches

SPLIT = {"dtype": torch.bfloat16, "values": "split"}
CORRECTED = {"dtype": torch.bfloat16, "values": "corrected"}
STOCHASTIC = {"dtype": torch.bfloat16, "values": "stochastic"}
HALF = {"state_dtype": torch.bfloat16}
ROOT = {"state_format": "root8"}
SMALLEST = {"state_format": {"exp_avg": "root8", "exp_avg_sq": "log4"}}
FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "float32": ({}, {}),
    "float32, bfloat16 state": ({}, HALF),
    "float32, root8": ({}, ROOT),
    "split": (SPLIT, {}),
    "split, bfloat16 state": (SPLIT, HALF),
    "split, root8": (SPLIT, ROOT),
    "split, root8 and log4": (SPLIT, SMALLEST),
    "corrected, root8": (CORRECTED, ROOT),
    "corrected, root8 and log4": (CORRECTED, SMALLEST),
    "stochastic": (STOCHASTIC, {}),
    "stochastic, root8": (STOCHASTIC, ROOT),
    "stochastic, root8 and log4": (STOCHASTIC, SMALLEST),
    "bfloat16": ({"dtype": torch.bfloat16}, {}),
}
"""By name: arguments of the store, and of the optimizer."""


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """The param groups of the main job, for optimizers that know no names."""
    named = list(model.named_parameters())
    plain = [p for name, p in named if matches(name, NO_DECAY)]
    others = [p for name, p in named if not matches(name, NO_DECAY)]
    return [{"params": plain, "weight_decay": 0.0}, {"params": others, "weight_decay": WEIGHT_DECAY}]


def torch_fused(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups_of(model), lr=lr, betas=BETAS, fused=True)


def flashoptim(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    from flashoptim import FlashAdamW

    return FlashAdamW(groups_of(model), lr=lr, betas=BETAS, quantize=True, master_weight_bits=24)


def bitsandbytes(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups_of(model), lr=lr, betas=BETAS)


def torchao(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit

    return AdamW8bit(groups_of(model), lr=lr, betas=BETAS)


def optimi(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    from optimi import AdamW

    return AdamW(groups_of(model), lr=lr, betas=BETAS, kahan_sum=True, triton=next(model.parameters()).is_cuda)


def turboadam(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    from turboadam import TurboAdam

    return TurboAdam(groups_of(model), lr=lr, betas=BETAS)


Make = Callable[[nn.Module, float], torch.optim.Optimizer]
PEERS: dict[str, tuple[str, torch.dtype, Make]] = {
    "torch fused, float32": ("torch", torch.float32, torch_fused),
    "torch fused, bfloat16": ("torch", torch.bfloat16, torch_fused),
    "flashoptim, 24 bits, 8-bit state": ("flashoptim", torch.bfloat16, flashoptim),
    "bitsandbytes, float32, 8-bit state": ("bitsandbytes", torch.float32, bitsandbytes),
    "torchao, float32, 8-bit state": ("torchao", torch.float32, torchao),
    "optimi, bfloat16 with Kahan sums": ("torch-optimi", torch.bfloat16, optimi),
    "turboadam, float32, 2 and 4 bits": ("turboadam", torch.float32, turboadam),
}
"""By name: the distribution, the dtype of the model, and what makes its optimizer."""


class FormatSide(Side):
    """A store and its AdamW in one of the formats, clipped and scheduled as in the main job."""

    def __init__(self, name: str, model: nn.Module, job: Job) -> None:
        stored, kept = FORMATS[name]
        self.name = name
        self.store = fv.VarStore.from_module(model, **stored)
        groups = [{"params": list(NO_DECAY), "weight_decay": 0.0}, {"params": "*", "weight_decay": WEIGHT_DECAY}]
        options = {"lr": job.lr, "betas": BETAS, "max_norm": MAX_NORM}
        super().__init__(model, fv.optim.AdamW(groups, store=self.store, **options, **kept), job)

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def library(self) -> str:
        return f"flatvars {fv.__version__}"

    @property
    def bytes_of_a_parameter(self) -> float:
        """Of values and optimizer state, as they lie in memory."""
        return self.store.registry.streams.nbytes / self.store.numel


class PeerSide(Side):
    """Another library's AdamW, behind torch's clip_grad_norm_."""

    def __init__(self, name: str, model: nn.Module, job: Job) -> None:
        self.name = name
        package, dtype, make = PEERS[name]
        self.library = f"{package} {importlib.metadata.version(package)}"
        model = model.to(dtype)
        super().__init__(model, make(model, job.lr), job)

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def bytes_of_a_parameter(self) -> float:
        """The same; memory that several tensors share counts once."""
        params = list(self.model.parameters())
        held = [*params, *(self.optimizer.state[p] for p in params)]
        found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(held)}
        return sum(found.values()) / sum(math.prod(p.shape) for p in params)


def tensors_in(held: Any) -> Iterator[Tensor]:
    """All plain tensors in what an optimizer keeps, those inside of tensor subclasses too."""
    if isinstance(held, Tensor):
        if hasattr(held, "__tensor_flatten__"):
            for name in held.__tensor_flatten__()[0]:
                yield from tensors_in(getattr(held, name))
        else:
            yield held.detach()
    elif isinstance(held, dict):
        for value in held.values():
            yield from tensors_in(value)
    elif isinstance(held, (list, tuple)):
        for value in held:
            yield from tensors_in(value)
    elif hasattr(held, "__dict__"):
        yield from tensors_in(vars(held))
