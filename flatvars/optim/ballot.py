"""Whether all ranks step alike: a few numbers at the head of every step's all_reduce, and what came out of them.

A rank whose plans are others than those that all ranks agreed on cannot ask the others before its step: they send
gradients already. It takes part in their messages, which are those of the old plans, and says there that it is astray;
so does one that raised an error before it sent anything. If all ranks are astray and say the same, they agree anew.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..distributed.group import Group
from ..errors import DisagreementError
from ..gradients.attached import gradients_of
from ..gradients.exchange import Exchange
from ..variables.registry import Registry
from ..variables.variable import Variable
from .agreement import digests_of, values_taken_in

# Two digests of 20 bits, each with its square. Sums of both over up to 2,048 ranks are exact in float64, and all ranks
# have the same digest d if ranks * sum(d^2) = sum(d)^2.
AGREEMENT = 4
# Then, how many ranks have a GradScaler that found an infinity, have a fault, are astray, and sent zeros in buckets.
FOUND, FAULTS, ASTRAY, VOID = range(AGREEMENT, AGREEMENT + 4)
HEADER = AGREEMENT + 4

ABOUT = "what their optimizers step, by which numbers, or the values that they were given"
ADVICE = (
    "Freeze, mask, rename, add and remove variables, set numbers and replace values on every rank alike, or take back "
    "what one rank did; then step again. Nothing was stepped"
)


class Ballot:
    """Of one optimizer.

    Args:
        registry: Of its store.
        group: The ranks.

    Attributes:
        waits: Whether a step looks at what came out of its own messages. A GPU would have to be waited for: the next
            step looks, and nothing is stepped if ranks differ.
    """

    def __init__(self, registry: Registry, group: Group) -> None:
        self._registry, self._group = registry, group
        self.waits = registry.device.type == "cpu"
        self._overlap = gradients_of(registry).overlap
        self._news: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None
        self._facts: Mapping[str, str] = {}
        self._fault: str | None = None
        self._exchange: Exchange | None = None
        self._taken_in: set[Variable] = set()

    def write(
        self,
        numbers: Tensor,
        numbers_told: Mapping[str, str],
        facts: Mapping[str, str],
        *,
        found_inf: Tensor | None = None,
        exchange: Exchange | None = None,
        astray: bool = False,
        fault: str | None = None,
    ) -> None:
        """What this rank has to say, into the head of the numbers of a step.

        Args:
            numbers: float64 [HEADER or more] of zeros.
            numbers_told: What must be the same on all ranks in this step.
            facts: What it steps, by name of the variable.
            found_inf: float32 []: not 0 where this rank's GradScaler found an infinity.
            exchange: What became of gradients that were sent in buckets.
            astray: Whether it does not step by the plans that were agreed on; its facts must then be the same, too.
            fault: What it raised before it sent anything.
        """
        registry = self._registry
        self._facts, self._fault, self._exchange = {**numbers_told, **facts}, fault, exchange
        self._taken_in = set(registry.taken_in)
        told = {**numbers_told, **values_taken_in(registry.taken_in), **(facts if astray else {})}
        void = exchange is not None and exchange.is_void
        header = [float(number) for digest in digests_of(told) for number in (digest, digest * digest)]
        header += [0.0, float(fault is not None), float(astray), float(void)]
        numbers[:HEADER].copy_(torch.tensor(header, dtype=torch.float64), non_blocking=True)
        if found_inf is not None:
            numbers[FOUND] = found_inf
        if exchange is not None and fault is None:
            numbers[FAULTS] = exchange.faults()

    def count(self, numbers: Tensor, words: Tensor) -> Tensor:
        """Whether nothing is to be stepped, float32 [], by the numbers of all ranks added up.

        Args:
            words: What they say of the order of buckets.
        """
        sums, world = numbers[:AGREEMENT].to(torch.int64), self._group.ranks.world
        same = (sums[0] * sums[0] == world * sums[1]) & (sums[2] * sums[2] == world * sums[3])
        refused = ~same | (numbers[FAULTS] != 0.0) | (numbers[ASTRAY] != 0.0)
        self._note(torch.cat([same.to(torch.float64).reshape(1), numbers[FAULTS : VOID + 1], words]))
        return (refused | (numbers[FOUND] != 0.0)).to(torch.float32)

    def _note(self, news: Tensor) -> None:
        """Keeps what came out for `check`."""
        if news.is_cuda:
            host = torch.empty(len(news), dtype=torch.float64, pin_memory=True)
            self._news = host.copy_(news, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()  # type: ignore[no-untyped-call]
        else:
            self._news = news

    def _read(self) -> tuple[bool, int, int, int, list[float]]:
        assert self._news is not None
        if self._arrived is not None:
            self._arrived.synchronize()  # type: ignore[no-untyped-call]  # of one step ago
        same, faults, astray, void, *words = self._news.tolist()
        return bool(same), int(faults), int(astray), int(void), words

    def are_all_astray(self) -> bool:
        """Whether no rank has gone on with the step; waits for the device."""
        return self._read()[2] == self._group.ranks.world

    def check(self) -> bool:
        """Looks at what came out last, if nobody has yet.

        Returns:
            Whether the ranks may step. Where not, values that only some of them had been given are the same on all:
            they may next time.

        Raises:
            GradientError: on every rank: one has a fault.
            DisagreementError: on every rank: they differ.
        """
        if self._news is None:
            return True
        (same, faults, astray, void, words), world = self._read(), self._group.ranks.world
        exchange, self._news, self._exchange = self._exchange, None, None
        if same and not faults and astray in (0, world):
            self._registry.taken_in -= self._taken_in
            if self._overlap is not None:
                self._overlap.learn(words)
            return True
        fault = self._fault or (None if exchange is None else exchange.told())
        if self._overlap is not None:
            self._overlap.refused(void, world)
        self._group.tell(fault)
        self._explain()
        return False

    def check_earlier(self) -> None:
        """The same of a step before, on a device that is not waited for: what it did not step is lost."""
        if not self.check():
            raise DisagreementError(
                "some ranks of this store had been given values from outside, and the last step waited until all had "
                "looked at them: they are the same, and nothing was stepped. Step again"
            )

    def _explain(self) -> None:
        """Raises DisagreementError if facts differ, or values that any rank was given."""
        registry = self._registry
        taken = set().union(*self._group.gather(sorted(variable.name for variable in registry.taken_in)))
        registry.taken_in = {registry.by_name[name] for name in taken if name in registry.by_name}
        facts = {**self._facts, **values_taken_in(registry.taken_in)}
        self._group.explain(ABOUT, facts, ADVICE, or_else=not taken)
