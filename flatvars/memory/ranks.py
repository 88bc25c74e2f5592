"""How the trainable part of a region is divided over ranks: one range each, of equal length. Integers only."""

from __future__ import annotations

from dataclasses import dataclass

# Elements. Norms, statistics and formats count in units of 128 from the start of a variable: ranges, and the variables
# of a layout that is divided, begin on multiples of it, so that no unit is cut and no bit depends on the ranks.
GRAIN = 128


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a store's state.

    Attributes:
        rank: Of this process, in [0, world).
        world: How many there are.
    """

    rank: int
    world: int

    def padded(self, numel: int) -> int:
        """Least number of elements that can be divided into equal ranges."""
        step = GRAIN * self.world
        return -(-numel // step) * step

    def share(self, numel: int, rank: int | None = None) -> tuple[int, int]:
        """First element of a rank's range (this one's if not given), and the one behind its last."""
        each = numel // self.world
        number = self.rank if rank is None else rank
        return number * each, (number + 1) * each
