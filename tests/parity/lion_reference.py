"""Lion as its paper writes it, one parameter at a time, for comparison."""

from __future__ import annotations

from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv 2302.06675, algorithm 2; computes in float32 or wider and rounds once at the end."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(param))
                state["step"] += 1
                wide = torch.promote_types(param.dtype, torch.float32)
                grad = -param.grad.to(wide) if group["maximize"] else param.grad.to(wide)
                momentum = state["exp_avg"].to(wide)
                direction = torch.sign(beta1 * momentum + (1 - beta1) * grad)
                decayed = param.to(wide) * (1 - group["lr"] * group["weight_decay"])
                param.copy_(decayed - group["lr"] * direction)
                state["exp_avg"].copy_(beta2 * momentum + (1 - beta2) * grad)
