"""What is measured: lists of parameter shapes, and the two ways to finish a training step over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import flatvars as fv

Shapes = list[tuple[int, ...]]
MAX_NORM = 1.0
HYPER = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}


def gpt2_shapes(layers: int) -> Shapes:
    """GPT-2's parameter list at width 768; 8 layers are 95 million parameters, 12 are GPT-2 small."""
    d = 768
    block = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [(50257, d), (1024, d), *(block * layers), (d,), (d,)]


CASES: dict[str, Shapes] = {
    "10000x256": [(256,)] * 10_000,
    "1000x1024": [(1024,)] * 1_000,
    "1000x32x32": [(32, 32)] * 1_000,
    "gpt2-95M": gpt2_shapes(8),
}
QUICK = ("1000x1024", "1000x32x32")


@dataclass
class Tail:
    """One library's end of a training step: norm, clip, AdamW, zero_grad.

    Attributes:
        params: The parameters, in the order of the shapes.
        run: Finishes the step; every parameter has a gradient before and none after.
        norm: The gradient norm of the last run.
    """

    params: list[nn.Parameter]
    run: Callable[[], None]
    norm: Callable[[], float]


def make_model(shapes: Shapes, device: str) -> nn.ParameterList:
    generator = torch.Generator().manual_seed(0)
    return nn.ParameterList(nn.Parameter((torch.randn(s, generator=generator) * 0.02).to(device)) for s in shapes)


def make_grads(shapes: Shapes, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator).to(device) for s in shapes]


def flatvars_tail(shapes: Shapes, device: str) -> Tail:
    """`step()` takes the norm and clips; gradients are read where autograd left them."""
    model = make_model(shapes, device)
    store = fv.VarStore.from_module(model)
    optimizer = fv.optim.AdamW(store, max_norm=MAX_NORM, **HYPER)

    def run() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return Tail(list(model.parameters()), run, lambda: float(optimizer.grad_norm))


def torch_tail(shapes: Shapes, device: str) -> Tail:
    """The usual way: clip_grad_norm_, torch.optim.AdamW(fused=True), zero_grad(set_to_none=True)."""
    model = make_model(shapes, device)
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, fused=True, **HYPER)  # type: ignore[arg-type]
    last = torch.zeros(())

    def run() -> None:
        nonlocal last
        last = torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return Tail(params, run, lambda: float(last))


TAILS = {"torch": torch_tail, "flatvars": flatvars_tail}


def give_grads(tail: Tail, grads: list[Tensor]) -> None:
    """Puts gradients where autograd would: outside of what is timed."""
    for param, grad in zip(tail.params, grads, strict=True):
        param.grad = grad


@dataclass(frozen=True)
class Gate:
    """How far two libraries are from the truth and from each other, after some steps on the same gradients.

    Attributes:
        norm_error: Relative error of each library's norm against float64.
        difference: Largest difference of a value, in units of the largest possible change (lr times steps).
    """

    norm_error: dict[str, float]
    difference: float


@torch.no_grad()
def gate(shapes: Shapes, device: str, steps: int = 3) -> Gate:
    """Runs every library on the same gradients and compares.

    Raises:
        AssertionError: flatvars' norm is less exact than torch's, or values differ by more than that explains; nothing
            is timed then.
    """
    grads = make_grads(shapes, device)
    true_norm = float(torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]).norm())
    tails = {library: make(shapes, device) for library, make in TAILS.items()}
    for _ in range(steps):
        for tail in tails.values():
            give_grads(tail, [grad.clone() for grad in grads])
            tail.run()
    errors = {library: abs(tail.norm() / true_norm - 1.0) for library, tail in tails.items()}
    pairs = zip(tails["flatvars"].params, tails["torch"].params, strict=True)
    difference = max(float((a - b).abs().max()) for a, b in pairs) / (HYPER["lr"] * steps)  # type: ignore[operator]
    assert errors["flatvars"] <= errors["torch"] + 1e-6, f"norms are off by {errors}, so no time is reported"
    # A clip coefficient that is off by e moves an update by at most about e of itself.
    limit = 1e-4 + errors["torch"]
    assert difference <= limit, f"values differ by {difference:.1e} of an update, {limit:.1e} is explained"
    return Gate(errors, difference)
