"""The two sides of the comparison: the same GPT, trained by torch's own tools and by flatvars.

A side owns a model, an optimizer and a learning-rate scheduler, and says what follows each backward pass
(``accumulate``) and what ends a step (``update``). Those two calls are what the job times as the optimizer part.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from bench.train.gpt import GPT
from bench.train.options import FORMATS, Job, JobError

NO_DECAY = ("*.bias", "*norm*.weight")
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
MAX_NORM = 1.0
FINAL_LR = 0.1  # of the peak


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether any of the glob patterns matches the whole parameter name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def lr_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first tenth, then half a cosine down to ``FINAL_LR``."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * progress))


class Side:
    """What both sides share: a model, an optimizer, a schedule, and saving all three."""

    name: str
    loss_scale = 1.0  # what the loss is multiplied by before its backward pass

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, job: Job) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, job.steps))

    def accumulate(self) -> None:
        """Take in the gradients of one micro-batch."""

    def update(self) -> None:
        """Clip the gradients, step, and make ready for the next backward pass."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """Model, optimizer and scheduler, as a checkpoint wants them."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take up what ``state_dict`` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


class TorchSide(Side):
    """torch.optim.AdamW(fused=True) behind clip_grad_norm_, with the loss scaled for accumulation."""

    name = "torch"

    def __init__(self, model: nn.Module, job: Job) -> None:
        for name, param in model.named_parameters():
            if matches(name, job.freeze):
                param.requires_grad_(False)
        trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
        decayed = [param for name, param in trained.items() if not matches(name, NO_DECAY)]
        plain = [param for name, param in trained.items() if matches(name, NO_DECAY)]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": WEIGHT_DECAY}]
        optimizer = torch.optim.AdamW(groups, lr=job.lr, betas=BETAS, fused=True)
        super().__init__(model, optimizer, job)
        self.trained = list(trained.values())
        self.loss_scale = 1 / job.micro_batches

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.trained, MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class FlatSide(Side):
    """A flatvars store and its AdamW, which clips inside its step."""

    name = "flatvars"

    def __init__(self, model: nn.Module, job: Job, mesh: DeviceMesh | None = None) -> None:
        # Imported here, so that the torch side runs alone where flatvars cannot be imported.
        import flatvars as fv

        stored, kept = FORMATS[job.format]
        cap = None if mesh is None else job.bucket_cap_mb
        self.store = fv.VarStore.from_module(model, mesh=mesh, bucket_cap_mb=cap, **stored)
        for pattern in job.freeze:
            self.store.freeze(pattern)
        groups = [
            {"params": list(NO_DECAY), "weight_decay": 0.0},
            {"params": "*", "weight_decay": WEIGHT_DECAY},
        ]
        optimizer = fv.optim.AdamW(groups, store=self.store, lr=job.lr, betas=BETAS, max_norm=MAX_NORM, **kept)
        super().__init__(model, optimizer, job)
        self.micro_batches = job.micro_batches
        self.overlaps = cap is not None
        if self.overlaps:  # nobody scales what is averaged while the last backward pass runs
            self.loss_scale = 1 / job.micro_batches

    def backward(self, loss: Tensor, last: bool) -> None:
        """The backward pass of one micro-batch on ranks, and what follows it."""
        overlaps = self.overlaps and last
        with self.store.last_backward() if overlaps else nullcontext():
            (loss * self.loss_scale).backward()
        if not overlaps:
            self.accumulate()

    def accumulate(self) -> None:
        # With a single micro-batch the step gathers the gradients by itself.
        if self.micro_batches > 1:
            self.store.accumulate(scale=1 / (self.micro_batches * self.loss_scale))

    def update(self) -> None:
        self.optimizer.step(zero_grad=True)

    def state_dict(self) -> dict:
        """As of the other side; the numbers of split values are not in what the module shows of them."""
        return {**super().state_dict(), "model": {name: self.store.float32(name) for name in self.store}}

    def load_state_dict(self, state: dict) -> None:
        """Take up what ``state_dict`` gave."""
        for name, numbers in state["model"].items():
            self.store.write(name, numbers)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def build_sides(job: Job, make: Callable[[], nn.Module] | None = None) -> list[Side]:
    """The sides the job asks for, all from the same initial weights.

    Args:
        make: Makes the model; the job's GPT if not given.

    Raises:
        JobError: a ``--freeze`` pattern matches no parameter, or together they leave none to train.
    """
    torch.manual_seed(job.seed)
    model = (GPT(job.model) if make is None else make()).to(job.device)
    names = [name for name, _ in model.named_parameters()]
    for pattern in job.freeze:
        if not any(matches(name, (pattern,)) for name in names):
            raise JobError(f"--freeze {pattern!r} matches no parameter; there are, for example, {names[:4]}")
    if all(matches(name, job.freeze) for name in names):
        raise JobError(f"--freeze {list(job.freeze)} leaves no parameter to train")
    kinds = {"torch": TorchSide, "flatvars": FlatSide}
    return [kinds[name](copy.deepcopy(model), job) for name in job.sides]
