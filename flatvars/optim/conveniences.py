"""What optimizers of tch-rs offer beyond torch.optim's: whole steps in one call, and numbers set for all groups or one.

`param_groups` stays the single source of truth: every setter writes there, and into `defaults`, which groups that are
added later take their numbers from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..gradients.attached import gradients_of
from ..variables.registry import Registry
from ..variables.variable import Variable
from .checks import check_at_least, check_betas


class Conveniences(torch.optim.Optimizer):
    """A base between torch's optimizer and ours.

    Example:
        >>> store = VarStore()
        >>> optimizer = SGD(store, lr=0.1)  # before the model: variables that are declared later join by themselves
        >>> weight = store.root().zeros("weight", (3,))
        >>> optimizer.backward_step((weight - 1.0).square().sum())
    """

    registry: Registry
    max_norm: float | None

    def take_up(self) -> list[Variable]:
        """The variables of all groups, those that were declared since the last step too."""
        raise NotImplementedError

    def trainable_variables(self) -> list[Variable]:
        """This optimizer's variables that are trained, or that `store.freeze` keeps from it, in creation order."""
        mine = {variable.id for variable in self.take_up()}
        return [variable for variable in self.registry.declared_trainable() if variable.id in mine]

    # Steps ----------------------------------------------------------------------------------------------------------

    def backward_step(self, loss: Tensor) -> None:
        """zero_grad, backward, step: what was in the gradients before is dropped."""
        self.zero_grad()
        torch.autograd.backward(loss)
        self.step()

    def backward_step_clip(self, loss: Tensor, max_value: float) -> None:
        """The same, with every element of the gradients clamped to [-max_value, max_value] before the step."""
        check_at_least(0.0, max_value=max_value)
        self.zero_grad()
        torch.autograd.backward(loss)
        self.clip_grad_value(max_value)
        self.step()

    def backward_step_clip_norm(self, loss: Tensor, max_norm: float) -> None:
        """The same, with the norm over all gradients clipped to `max_norm` inside the step.

        The gradients themselves are not rewritten; `grad_norm` is the norm before. Where the optimizer has a `max_norm`
        of its own, the smaller one holds.
        """
        check_at_least(0.0, max_norm=max_norm)
        own = self.max_norm
        self.max_norm = max_norm if own is None else min(own, max_norm)
        try:
            self.backward_step(loss)
        finally:
            self.max_norm = own

    # Clipping -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def clip_grad_value(self, max_value: float) -> None:
        """Clamps the gradients of this optimizer's variables to [-max_value, max_value], where they lie."""
        check_at_least(0.0, max_value=max_value)
        grads = self._gradients()
        if grads:
            torch._foreach_clamp_min_(grads, -max_value)
            torch._foreach_clamp_max_(grads, max_value)

    @torch.no_grad()
    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """torch.nn.utils.clip_grad_norm_ over the gradients of this optimizer's variables, where they lie.

        A norm that is NaN or infinite makes NaN of the gradients, as torch's does (tch leaves them as they are): use
        `skip_nonfinite=True` to go on without them.

        Returns:
            The L2 norm before, a device scalar; 0 without gradients. No synchronization.
        """
        check_at_least(0.0, max_norm=max_norm)
        grads = self._gradients()
        if not grads:
            return torch.zeros((), dtype=torch.float32, device=self.registry.device)
        norm = torch.nn.utils.get_total_norm(grads)
        torch._foreach_mul_(grads, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norm

    def _gradients(self) -> list[Tensor]:
        """The gradients of this optimizer's variables, to be written in place."""
        gradients, variables = gradients_of(self.registry), self.take_up()
        grads = [grad for grad in map(gradients.of, variables) if grad is not None]
        if any(grad.layout != torch.strided for grad in grads):
            gradients.flush()  # into the stream, which is dense
            grads = [grad for grad in map(gradients.of, variables) if grad is not None]
        return grads

    # Numbers --------------------------------------------------------------------------------------------------------

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of every group, and of those to come; what `set_lr_group` set before is gone.

        A learning rate that is a tensor stays that tensor, and is filled.

        Raises:
            ValueError: a negative number.
        """
        self._check("lr", lr)
        for numbers in self._all():
            _set(numbers, "lr", lr)

    def set_lr_group(self, group: int, lr: float) -> None:
        """Sets the learning rate of one group.

        Raises:
            IndexError: the group does not exist.
            ValueError: a negative number.
        """
        self._check("lr", lr)
        _set(self._group(group), "lr", lr)

    def set_momentum(self, momentum: float) -> None:
        """Sets the momentum of every group and of those to come; of Adam, AdamW and Lion their first beta.

        Raises:
            ValueError: a number out of range, or an optimizer without momentum.
        """
        self._check_momentum(momentum)
        for numbers in self._all():
            _set_momentum(numbers, momentum)

    def set_momentum_group(self, group: int, momentum: float) -> None:
        """Sets the momentum, or first beta, of one group; raises as `set_momentum` and `set_lr_group` do."""
        self._check_momentum(momentum)
        _set_momentum(self._group(group), momentum)

    def set_weight_decay(self, weight_decay: float) -> None:
        """Sets the weight decay of every group and of those to come.

        Raises:
            ValueError: a negative number, or an optimizer without weight decay.
        """
        self._check("weight_decay", weight_decay)
        for numbers in self._all():
            _set(numbers, "weight_decay", weight_decay)

    def set_weight_decay_group(self, group: int, weight_decay: float) -> None:
        """Sets the weight decay of one group; raises as `set_weight_decay` and `set_lr_group` do."""
        self._check("weight_decay", weight_decay)
        _set(self._group(group), "weight_decay", weight_decay)

    def _all(self) -> list[dict[str, Any]]:
        return [self.defaults, *self.param_groups]

    def _group(self, number: int) -> dict[str, Any]:
        self.take_up()  # variables that were declared since may number new groups
        if not 0 <= number < len(self.param_groups):
            raise IndexError(
                f"param group {number} does not exist: this optimizer has {len(self.param_groups)}, numbered from 0. "
                f"Declare a variable through path.set_group({number}), or call add_param_group, first"
            )
        return self.param_groups[number]

    def _check_momentum(self, momentum: float) -> None:
        if "betas" in self.defaults:
            check_betas([momentum])
        else:
            self._check("momentum", momentum)

    def _check(self, name: str, number: float) -> None:
        if name not in self.defaults:
            raise ValueError(
                f"{type(self).__name__} has no {name}; the numbers of its param groups are {', '.join(self.defaults)}"
            )
        check_at_least(0.0, **{name: number})


def _set(numbers: dict[str, Any], name: str, number: float) -> None:
    current = numbers[name]
    if isinstance(current, Tensor):
        current.fill_(number)
    else:
        numbers[name] = number


def _set_momentum(numbers: dict[str, Any], momentum: float) -> None:
    if "momentum" in numbers:
        numbers["momentum"] = momentum
    else:
        numbers["betas"] = (momentum, *tuple(numbers["betas"])[1:])
