"""What optimizers that torch has not got mean, in float64, from their papers' formulas and authors' code."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .reference import Group, States, Update, _signed


def _adam(g: Tensor, states: States, group: Group) -> tuple[Tensor, Tensor]:
    beta1, beta2 = group["betas"][:2]
    return beta1 * states[0] + (1 - beta1) * g, beta2 * states[1] + (1 - beta2) * g * g


def _decay(p: Tensor, move: Tensor, group: Group) -> Tensor:
    """Decoupled decay and a move, cautious where the group says so (arXiv 2510.12402)."""
    share = group["lr"] * group["weight_decay"]
    if group.get("cautious_decay"):
        share = share * (-move * p >= 0).double()
    return p - share * p + move


def cautious_adamw(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """AdamW with cautious weight decay."""
    m, v = _adam(_signed(g, group), states, group)
    beta1, beta2 = group["betas"]
    root = (v / (1 - beta2**step)).sqrt() + group["eps"]
    return _decay(p, -group["lr"] / (1 - beta1**step) * m / root, group), (m, v)


def cautious_lion(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """Lion with cautious weight decay."""
    beta1, beta2 = group["betas"]
    g = _signed(g, group)
    move = -group["lr"] * torch.sign(beta1 * states[0] + (1 - beta1) * g)
    return _decay(p, move, group), (beta2 * states[0] + (1 - beta2) * g,)


def adopt(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 2411.02853, iShohei220/adopt."""
    beta1, beta2 = group["betas"]
    decoupled = group["decoupled_weight_decay"]
    g = _signed(g, group) + (0.0 if decoupled else group["weight_decay"]) * p
    if step == 1:
        return p, (states[0], g * g)
    if decoupled:
        p = p - group["lr"] * group["weight_decay"] * p
    u = g / states[1].sqrt().clamp(min=group["eps"])
    if group["clip_exponent"] is not None:
        bound = (step - 1) ** group["clip_exponent"]
        u = u.clamp(-bound, bound)
    m = beta1 * states[0] + (1 - beta1) * u
    return p - group["lr"] * m, (m, beta2 * states[1] + (1 - beta2) * g * g)


def ademamix(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 2409.03137, apple/ml-ademamix."""

    def life(beta: float) -> float:
        return math.log(0.5) / math.log(beta + 1e-8) - 1

    g, (beta1, beta2, beta3), alpha = _signed(g, group), group["betas"], group["alpha"]
    if group["alpha_warmup"] and step < group["alpha_warmup"]:
        alpha *= step / group["alpha_warmup"]
    if group["beta3_warmup"] and step < group["beta3_warmup"]:
        share = step / group["beta3_warmup"]
        beta3 = 0.5 ** (1 / ((1 - share) * life(beta1) + share * life(beta3) + 1))
    fast, slow = beta1 * states[0] + (1 - beta1) * g, beta3 * states[1] + (1 - beta3) * g
    v = beta2 * states[2] + (1 - beta2) * g * g
    update = (fast / (1 - beta1**step) + alpha * slow) / (v.sqrt() / (1 - beta2**step) ** 0.5 + group["eps"])
    return _decay(p, -group["lr"] * update, group), (fast, slow, v)


def grams(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 2412.17107, Gunale0926/Grams."""
    g, (beta1, beta2) = _signed(g, group), group["betas"]
    m, v = _adam(g, states, group)
    size = group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    return _decay(p, -size * g.sign() * m.abs() / (v.sqrt() + group["eps"]), group), (m, v)


def adan(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 2208.06677, sail-sg/Adan."""
    g, (beta1, beta2, beta3), lr = _signed(g, group), group["betas"], group["lr"]
    d = torch.zeros_like(g) if step == 1 else g + states[3]
    m, w = beta1 * states[0] + (1 - beta1) * g, beta2 * states[1] + (1 - beta2) * d
    n = beta3 * states[2] + (1 - beta3) * (g + beta2 * d) ** 2
    root = n.sqrt() / (1 - beta3**step) ** 0.5 + group["eps"]
    move = lr / (1 - beta1**step) * m / root + lr * beta2 / (1 - beta2**step) * w / root
    decay = lr * group["weight_decay"]
    p = p * (1 - decay) - move if group["no_prox"] else (p - move) / (1 + decay)
    return p, (m, w, n, -g)


def schedule_free_adamw(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 2405.15682, facebookresearch/schedule_free; p is y."""
    beta1, beta2 = group["betas"]
    g = _signed(g, group)
    v = beta2 * states[1] + (1 - beta2) * g * g
    u = g / ((v / (1 - beta2**step)).sqrt() + group["eps"])
    y, z, scalars = _schedule_free(p, u, (states[0], *states[2:]), group, step, beta1)
    return y, (z, v, *scalars)


def schedule_free_sgd(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """The same of SGD."""
    y, z, scalars = _schedule_free(p, _signed(g, group), states, group, step, group["momentum"])
    return y, (z, *scalars)


def _schedule_free(
    p: Tensor, u: Tensor, states: States, group: Group, step: int, beta1: float
) -> tuple[Tensor, Tensor, States]:
    z, total, largest = (p, 0.0, 0.0) if step == 1 else (states[0], float(states[1]), float(states[2]))
    rate = group["lr"] * min(1.0, step / (group["warmup_steps"] or 1))
    largest = max(largest, rate)
    weight = step ** group["r"] * largest ** group["weight_lr_power"]
    total += weight
    share = weight / total if total else 0.0
    u = u + group["weight_decay"] * p
    y = p + share * (z - p) + rate * (beta1 * (1 - share) - 1) * u
    return y, z - rate * u, (p.new_tensor(total), p.new_tensor(largest))


def stable_adamw(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 2304.13013, optimi."""
    g = _signed(g, group)
    beta1, beta2 = ((beta**step - beta) / (beta**step - 1) for beta in group["betas"])
    m, v = states[0] + (1 - beta1) * (g - states[0]), beta2 * states[1] + (1 - beta2) * g * g
    rho = (g * g / v.clamp(min=group["eps"] ** 2)).mean().sqrt()
    rate = group["lr"] / max(1.0, float(rho))
    return p * (1 - rate * group["weight_decay"]) - rate * m / (v.sqrt() + group["eps"]), (m, v)


def lamb(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 1904.00962, NVIDIA/apex."""
    g, (beta1, beta2) = _signed(g, group), group["betas"]
    m = beta1 * states[0] + (1 - beta1 if group["grad_averaging"] else 1.0) * g
    v = beta2 * states[1] + (1 - beta2) * g * g
    one, two = (1 - beta1**step, 1 - beta2**step) if group["bias_correction"] else (1.0, 1.0)
    u = m / one / ((v / two).sqrt() + group["eps"]) + group["weight_decay"] * p
    ratio = 1.0
    if (group["weight_decay"] or group["always_adapt"]) and p.norm() > 0 and u.norm() > 0:
        ratio = float(p.norm() / u.norm())
    return p - group["lr"] * ratio * u, (m, v)


def lars(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 1708.03888; apex's LARC with `trust_clip`."""
    g, decay, lr = _signed(g, group), group["weight_decay"], group["lr"]
    ratio = 1.0
    if p.norm() > 0 and g.norm() > 0:
        ratio = float(group["trust_coeff"] * p.norm() / (g.norm() + decay * p.norm() + group["eps"]))
    if group["trust_clip"]:
        ratio = min(ratio / lr, 1.0)
    g = (g + decay * p) * ratio
    b = g if step == 1 else group["momentum"] * states[0] + (1 - group["dampening"]) * g
    return p - lr * (g + group["momentum"] * b if group["nesterov"] else b), (b,)


def adafactor(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 1804.04235 as torch.optim.Adafactor, from the direction on, which comes in the place of the gradient."""
    g, lr, count = _signed(g, group), group["lr"], max(p.numel(), 1) ** 0.5
    rate = max(group["eps"][1], float(p.norm() / count)) * min(lr, step**-0.5)
    rate /= max(1.0, float(g.norm() / count) / group["d"])
    return p * (1 - lr * group["weight_decay"]) - rate * g, ()


def cautious_updates(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 2411.16085 on AdamW, as kyleliang919/C-Optim's mask."""
    g, (beta1, beta2) = _signed(g, group), group["betas"]
    m, v = _adam(g, states, group)
    u = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + group["eps"])
    agrees = (u * g > 0).double()
    if group["cautious"]:
        u = u * agrees / agrees.mean().clamp(min=1e-3)
    return p * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * u, (m, v)


def mars(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 2411.10438, AGI-Arena/MARS: `mars-adamw`, approximate; AdamW with gamma 0."""
    g, (beta1, beta2) = _signed(g, group), group["betas"]
    c = g
    if group["gamma"]:
        c = g + group["gamma"] * beta1 / (1 - beta1) * (g - (torch.zeros_like(g) if step == 1 else states[2]))
        c = c / max(1.0, float(c.norm()))
    m, v = _adam(c, states, group)
    u = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + group["eps"])
    return p - group["lr"] * (group["weight_decay"] * p + u), (m, v, g)


def prodigy(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """arXiv 2306.06101, konstmish/prodigy, with a distance that is given."""
    g, (beta1, beta2), d = _signed(g, group), group["betas"], group["d"]
    beta3 = beta2**0.5 if group["beta3"] is None else group["beta3"]
    rate = d * group["lr"]
    if group["use_bias_correction"]:
        rate *= (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    if not group["decouple"]:
        g = g + group["weight_decay"] * p
    m, v = beta1 * states[0] + d * (1 - beta1) * g, beta2 * states[1] + d * d * (1 - beta2) * g * g
    s = beta3 * states[2] + d / group["d0"] * (d if group["safeguard_warmup"] else rate) * g
    first = p if step == 1 else states[3]
    if group["decouple"]:
        p = p * (1 - group["weight_decay"] * rate)
    return p - rate * m / (v.sqrt() + group["next_d"] * group["eps"]), (m, v, s, first)


def averaged(truth: Callable[..., Update], schedule: str) -> Callable[..., Update]:
    """An update, and the average of its values before all states, the number of its updates behind them."""

    def decay(t: float, group: Group) -> float:
        if schedule == "constant":
            return group["ema_decay"] if t > 1 else 0.0
        if schedule == "tensorflow":
            return min(group["ema_decay"], (1 + t) / (10 + t))
        if schedule == "power":
            return (1 - 1 / t) ** (group["ema_gamma"] + 1)
        s = max(0, t - group["ema_after"] - 1)
        grown = 1 - (1 + s / group["ema_gamma"]) ** -group["ema_power"]
        return max(min(grown, group["ema_decay"]), group["ema_min_decay"]) if s else 0.0

    def update(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
        average, *inner, updates = states
        value, kept = truth(p, g, tuple(inner), group, step)
        before, t = (p, 1.0) if step == 1 else (average, float(updates) + 1)
        return value, (before + (1 - decay(t, group)) * (value - before), *kept, p.new_tensor(t))

    return update
