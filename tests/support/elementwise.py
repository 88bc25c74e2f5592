"""What the elementwise optimizers beyond SGD, Adam, RMSprop and Lion mean, in float64; as in `reference.py`.

`states` are the rule's streams, then the scalars that the variable keeps; before the first step they hold anything.
"""

from __future__ import annotations

from torch import Tensor, where

from .reference import Group, States, Update, _signed


def _pulled(p: Tensor, g: Tensor, group: Group) -> Tensor:
    return _signed(g, group) + group["weight_decay"] * p


def adagrad(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """torch.optim.Adagrad."""
    g = _pulled(p, g, group)
    before = p.new_full((), group["initial_accumulator_value"]) if step == 1 else states[0]
    s = before + g * g
    rate = group["lr"] / (1 + (step - 1) * group["lr_decay"])
    return p - rate * g / (s.sqrt() + group["eps"]), (s,)


def adadelta(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """torch.optim.Adadelta."""
    g, rho, eps = _pulled(p, g, group), group["rho"], group["eps"]
    v = rho * states[0] + (1 - rho) * g * g
    d = (states[1] + eps).sqrt() / (v + eps).sqrt() * g
    return p - group["lr"] * d, (v, rho * states[1] + (1 - rho) * d * d)


def adamax(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """torch.optim.Adamax."""
    g, (beta1, beta2) = _pulled(p, g, group), group["betas"]
    m = beta1 * states[0] + (1 - beta1) * g
    u = (beta2 * states[1]).maximum(g.abs() + group["eps"])
    return p - group["lr"] / (1 - beta1**step) * m / u, (m, u)


def _decayed(p: Tensor, g: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    if group["decoupled_weight_decay"]:
        return p * (1 - group["lr"] * group["weight_decay"]), _signed(g, group)
    return p, _pulled(p, g, group)


def nadam(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """torch.optim.NAdam."""
    (p, g), (beta1, beta2) = _decayed(p, g, group), group["betas"]
    mu, following = (beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1))
    product = mu * (1.0 if step == 1 else states[2])
    m, v = beta1 * states[0] + (1 - beta1) * g, beta2 * states[1] + (1 - beta2) * g * g
    root = (v / (1 - beta2**step)).sqrt() + group["eps"]
    p = p - group["lr"] * (1 - mu) / (1 - product) * g / root
    return p - group["lr"] * following / (1 - product * following) * m / root, (m, v, p.new_tensor(float(product)))


def radam(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """torch.optim.RAdam."""
    (p, g), (beta1, beta2) = _decayed(p, g, group), group["betas"]
    m, v = beta1 * states[0] + (1 - beta1) * g, beta2 * states[1] + (1 - beta2) * g * g
    correction, limit = 1 - beta2**step, 2 / (1 - beta2) - 1
    rho = limit - 2 * step * beta2**step / correction
    update = m / (1 - beta1**step)
    if rho > 5:
        factor = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
        update = update * factor**0.5 * correction**0.5 / (v.sqrt() + group["eps"])
    return p - group["lr"] * update, (m, v)


def rprop(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """torch.optim.Rprop; whether a product underflows depends on the precision, so gradients here must not be tiny."""
    g, (down, up), (low, high) = _signed(g, group), group["etas"], group["step_sizes"]
    q = (g * states[0]).sign()
    s = p.new_full(p.shape, group["lr"]) if step == 1 else states[1]
    s = where(q > 0, s * up, where(q < 0, s * down, s)).clamp(low, high)
    g = where(q < 0, 0.0, g)
    return p - g.sign() * s, (g, s)


def asgd(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """torch.optim.ASGD."""
    g = _pulled(p, g, group)
    eta, mu = (group["lr"], 1.0) if step == 1 else (float(states[1]), float(states[2]))
    p = p * (1 - group["lambd"] * eta) - eta * g
    ax = p if mu == 1 else states[0] + mu * (p - states[0])
    eta = group["lr"] / (1 + group["lambd"] * group["lr"] * step) ** group["alpha"]
    return p, (ax, p.new_tensor(eta), p.new_tensor(1 / max(1, step - group["t0"])))
