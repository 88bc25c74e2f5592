"""Parameters and gradients of a workload: the same numbers for every peer of a run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.workloads import Workload

Device = str


def _random(workload: Workload, indices: list[int], device: Device, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    shapes = [workload.shapes[i] for i in indices]
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]


def parameters(workload: Workload, device: Device, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """All parameters, standard deviation 0.02; those that the workload freezes do not require gradients."""
    values = _random(workload, list(range(len(workload.shapes))), device, dtype, 0)
    return [nn.Parameter(v.mul_(0.02), requires_grad=i not in workload.frozen) for i, v in enumerate(values)]


def gradients(workload: Workload, device: Device, dtype: torch.dtype = torch.float32, seed: int = 1) -> list[Tensor]:
    """A gradient for each parameter that is trained, each in memory of its own."""
    return _random(workload, workload.trained, device, dtype, seed)


def true_norm(tensors: list[Tensor]) -> float:
    """The norm of all tensors as one vector, in float64."""
    squares = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(squares)))


class Sample:
    """The same elements of every tensor of a list, about a million in all, in float64 on the CPU."""

    LIMIT = 2**20

    def __init__(self, tensors: list[Tensor]) -> None:
        # Odd, so that strides do not fall on the first lane of every block.
        self.stride = max(1, sum(t.numel() for t in tensors) // self.LIMIT) | 1

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        picked = [tensor.detach().reshape(-1)[:: self.stride] for tensor in tensors]
        return torch.cat(picked).to("cpu", torch.float64)
