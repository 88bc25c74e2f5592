"""EMA: an exponential average of the values that the step of an optimizer keeps by itself.

The average is one more state of every variable, so it lies in the store's streams, is in state dicts, files, snapshots
and copies of its optimizer, and moves when, and only when, the variable steps: no launch is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..backend import ASIDE, AVERAGE, BEGIN, EXCHANGE, PUT_BACK, SCHEDULES, SET_ASIDE
from ..errors import FlatvarsError
from ..gradients.plans import Part
from ..memory.streams import Stream
from .averaging import check_average
from .base import Optimizer
from .exchange import apply_once
from .formats import hold_all, number_dtype

Schedule = Literal["constant", "warmup", "tensorflow", "power"]


class EMA:
    """An exponential moving average of all variables that an optimizer steps, updated inside its step.

    e <- e + (1 - d) (p - e) after every step of a variable, with t the number of that update:

    - "constant": d = decay, and the first update copies the value: torch's AveragedModel with `get_ema_multi_avg_fn`.
    - "warmup": d = 1 - (1 + s / gamma)^-power with s = t - 1 - after, between min_decay and decay; while s is not above
      0, the value is copied: timm's ModelEmaV3(use_warmup=True), diffusers' EMAModel.
    - "tensorflow": d = min(decay, (1 + t) / (10 + t)).
    - "power": d = (1 - 1 / t)^(gamma + 1) (Karras et al. 2024, arXiv 2312.02696); with gamma=0 the plain mean of all
      values, which is torch's AveragedModel as it comes.

    A step that is skipped, and a variable without a gradient, move no average. Variables that never stepped, frozen
    ones among them, masked elements, and buffers have none: in its place are their values. An average has the dtype of
    its optimizer's states; in bfloat16 it is rounded at random, as it would not move otherwise. Variables that join
    later begin when they do. 8 B a float32 parameter and step.

    Args:
        optimizer: Of flatvars. Averages begin now: with the values as they are.
        decay: The largest d; not of "power".
        schedule: See above.
        gamma: Of "warmup" (1) and "power" (6.94, a tenth of the run as width).
        power: Of "warmup".
        min_decay: Of "warmup": the least d after `after`.
        after: Of "warmup": updates in which the value is copied, beside the first.

    Raises:
        FlatvarsError: the optimizer keeps an average already.
        ValueError: a number out of range, or no such schedule.

    Example:
        >>> ema = fv.EMA(optimizer, decay=0.999)
        >>> for batch in batches: train(batch)  # optimizer.step() as ever
        >>> with ema.swapped():
        ...     evaluate(model)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        decay: float = 0.999,
        schedule: Schedule = "constant",
        *,
        gamma: float | None = None,
        power: float = 2.0 / 3.0,
        min_decay: float = 0.0,
        after: int = 0,
    ) -> None:
        if optimizer.average is not None:
            raise FlatvarsError(
                f"this {type(optimizer).__name__} keeps an average of its values already; optimizer.ema is it. Set "
                "its decay, or call its reset() to begin anew"
            )
        if gamma is None:
            gamma = 6.94 if schedule == "power" else 1.0
        given = {"decay": decay, "gamma": gamma, "power": power, "min_decay": min_decay, "after": after}
        check_average(schedule, {f"ema_{name}": number for name, number in given.items()})
        self.optimizer = optimizer
        _, entries = SCHEDULES[schedule]
        optimizer.keep_average(self, schedule, {name: given[name.removeprefix("ema_")] for name in entries})
        self.reset()

    @property
    def decay(self) -> Any:
        """Of the first param group; every group has its own `ema_decay`. Set it to change that of all groups."""
        return self._numbers()["ema_decay"]

    @decay.setter
    def decay(self, decay: float) -> None:
        numbers = {**self._numbers(), "ema_decay": decay}
        check_average(self.optimizer.average, numbers)
        for group in (self.optimizer.average_numbers, *self.optimizer.param_groups):
            if "ema_decay" in group:
                group["ema_decay"] = decay

    def _numbers(self) -> Mapping[str, Any]:
        groups = self.optimizer.param_groups
        return groups[0] if groups else self.optimizer.average_numbers

    def reset(self) -> None:
        """Begins all averages anew, from the values as they are: for values that were loaded or set."""
        self._refuse_swapped()
        apply_once(self.optimizer, BEGIN, numbers=[{}])
        self.optimizer.states.scalars(self.optimizer.average_scalars)[0].zero_()

    # Evaluation -------------------------------------------------------------------------------------------------------

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the averages are in the place of the values: to evaluate, or to save and give away.

        One launch a dtype to go in and one to come out, bit for bit, whatever happens inside. Where averages have
        another dtype than values, values are kept beside meanwhile. Steps, saving the optimizer, and whatever gives up
        the room of a variable (`compact`, `remove`, `release`, `merge`) are refused inside; `store.save(path)` saves
        the averages. Statistics of batch norm stay those of training.

        Raises:
            FlatvarsError: inside such a block.
        """
        self._refuse_swapped()
        self._exchange(True)
        self.optimizer.swapped = True
        try:
            # The room of a state is where values wait.
            with self.optimizer.registry.kept_whole(
                "the averages are in the place of the values, which wait in the room of the averages; leave `with "
                "ema.swapped():` first"
            ):
                yield
        finally:
            self.optimizer.swapped = False
            self._exchange(False)

    def _refuse_swapped(self) -> None:
        if self.optimizer.swapped:
            raise FlatvarsError(
                "the averages are in the place of the values already; leave `with ema.swapped():` first"
            )

    def _exchange(self, inwards: bool) -> None:
        optimizer, registry = self.optimizer, self.optimizer.registry
        optimizer.follow()
        regions = {region.dtype for region in registry.layout.regions}
        number = partial(number_dtype, registry.value_format)
        # What changes places must fit into both.
        alike = {
            dtype
            for dtype in regions
            if optimizer.state_dtype in (None, number(dtype)) and hold_all(registry.value_format, dtype)
        }
        apply_once(optimizer, EXCHANGE, numbers=[{}], regions=alike)
        if regions == alike:
            return
        apply_once(
            optimizer, SET_ASIDE if inwards else PUT_BACK, None, self._with_aside, [{}], regions.difference(alike)
        )
        if not inwards:
            registry.streams.drop(optimizer.states.key_of(ASIDE))

    def _with_aside(self, part: Part) -> list[Stream]:
        """The averages of a region, and the values kept beside them, in their own dtype."""
        states = self.optimizer.states
        (average,) = states.streams(part.region, (AVERAGE,))
        registry = self.optimizer.registry
        form_of = partial(number_dtype, registry.value_format)
        aside = registry.streams.get(states.key_of(ASIDE), part.region, form_of, average.cover)
        return [average, aside]

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all variables of the store by name, averages in the place of values: what a module loads."""
        with self.swapped():
            variables = self.optimizer.registry.variables
            return {name: v.param.detach().clone() for v in variables for name in v.names}

    def __getitem__(self, param: Tensor) -> Tensor:
        """The average of a parameter: a view of the state in its shape, or the parameter itself if it has none yet.

        Raises:
            KeyError: no parameter of this optimizer.
        """
        if not any(param is v.whole for v in self.optimizer.members()):
            raise KeyError("no parameter of this optimizer")
        state = self.optimizer.state.get(param) or {}
        found: Tensor = state.get(AVERAGE, param.detach())
        return found

    def __repr__(self) -> str:
        numbers = {key.removeprefix("ema_"): v for key, v in self._numbers().items() if key.startswith("ema_")}
        listed = "".join(f", {key}={value:g}" for key, value in numbers.items())
        return f"EMA({type(self.optimizer).__name__}, {self.optimizer.average!r}{listed})"
