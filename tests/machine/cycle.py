"""What becomes of gradients, by the rules of the README, in plain tensors: the model of a gradient cycle.

`.grad` of the plain parameters is what autograd left. With grads="gather", `accumulate` moves it into a sum, which a
step spends: what is accumulated next starts anew. With grads="views" there is no sum; `.grad` is all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Grads = dict[str, Tensor]


class Cycle:
    """Gradients of a plain module.

    Args:
        mode: "gather" or "views".
        plain: The parameters by name, whenever it is asked.

    Attributes:
        sums: What `accumulate` has added up, by name.
        spent: Names whose sum a step has used.
        used: Names whose gradient a step has used since they got one: a file need not hold these.
        masks: Of elements, by name; True trains.
        frozen: Names that the store has frozen.
    """

    def __init__(self, mode: str, plain: Callable[[], dict[str, nn.Parameter]]) -> None:
        self.mode = mode
        self.sums: Grads = {}
        self.spent: set[str] = set()
        self.used: set[str] = set()
        self.masks: dict[str, Tensor] = {}
        self.frozen: set[str] = set()
        self._plain = plain

    def masked(self, name: str, grad: Tensor) -> Tensor:
        """The gradient of a masked element is 0, whatever it holds."""
        mask = self.masks.get(name)
        return grad if mask is None else torch.where(mask, grad, torch.zeros_like(grad))

    def pending(self, names: Iterable[str] | None = None) -> Grads:
        """What lies in `.grad` of these variables, or of all, but for frozen ones."""
        plain = self._plain()
        chosen = plain if names is None else names
        return {name: grad for name in chosen if (grad := plain[name].grad) is not None and name not in self.frozen}

    def seen(self, name: str) -> Tensor | None:
        """What `variable.grad` shows."""
        pending, total = self._plain()[name].grad, self.sums.get(name)
        if total is None or (name in self.spent and pending is not None):
            return pending
        return total if pending is None else total + self.masked(name, pending)

    def is_used(self, name: str) -> bool:
        """Whether what is seen is a gradient that a step has used."""
        return name in self.used or (name in self.spent and self._plain()[name].grad is None)

    def accumulate(self, scale: float = 1.0) -> None:
        """`store.accumulate(scale=scale)`: what is spent ends, what is pending is added."""
        pending = self.pending()
        if self.mode == "views":
            for name, grad in pending.items():
                self._plain()[name].grad = self.masked(name, grad)
        elif pending:
            self.forget(self.spent - self.frozen)
            self._gather(pending, scale)

    def _gather(self, pending: Grads, scale: float) -> None:
        for name, grad in pending.items():
            more = self.masked(name, grad * scale)
            before = self.sums.get(name)
            self.sums[name] = more.clone() if before is None else before + more
            self._plain()[name].grad = None
            self.used.discard(name)

    def collect(self, names: Iterable[str] | None = None) -> Grads:
        """The gradients that a step of these variables, or a norm over all, uses."""
        chosen = [name for name in (self._plain() if names is None else names) if name not in self.frozen]
        pending = self.pending(chosen)
        if pending:
            self.forget(self.spent.intersection(chosen))
        self._gather({name: grad for name, grad in pending.items() if name in self.sums}, 1.0)
        left = {name: self.masked(name, grad) for name, grad in self.pending(chosen).items()}
        return {**left, **{name: grad for name, grad in self.sums.items() if name in chosen}}

    def spend(self, names: Iterable[str]) -> None:
        """A step has used these."""
        self.used.update(names)
        self.spent.update(self.sums.keys() & set(names))

    def rewrite(self, operation: Callable[[Tensor], Tensor]) -> None:
        """An operation of the store on all gradients in place, after an `accumulate`."""
        for name in self.sums:
            self.sums[name] = self.masked(name, operation(self.sums[name]))
        if self.mode == "views":
            for name, grad in self.pending().items():
                self._plain()[name].grad = self.masked(name, operation(grad))

    def forget(self, names: Iterable[str]) -> None:
        """Drops sums."""
        for name in list(names):
            self.sums.pop(name, None)
            self.spent.discard(name)

    def zero(self, names: Iterable[str]) -> None:
        """`zero_grad` of an optimizer, for its own; of a store, for all."""
        for name in list(names):
            self._plain()[name].grad = None
            self.used.discard(name)
            self.forget([name])

    def norm(self, grads: Grads) -> Tensor:
        """Of all elements as one vector, float64."""
        norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads.values()]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), dtype=torch.float64)
