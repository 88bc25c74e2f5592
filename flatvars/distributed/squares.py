"""The sum of squares over all ranks, with the bits of one process.

A norm is a sum of units, of 1,024 of them as a group, and of groups, each in a fixed order (`kernels/README.md`). A
rank has the units of its own range. It adds up the groups that are its own; of a group that a border between ranks
cuts, the units themselves are exchanged. So every number that goes over the wire comes from one rank, the others add 0
to it, and no order of additions shows: the result has the same bits for any number of ranks.

Exchanged: 8 B for every 131,072 elements, and 8 KB for every border.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..backend import UNIT, Segments, unit_counts

GROUP = 1_024


class SharedSquares:
    """The units of one launch, which is about one rank's share of its variables.

    Args:
        segments: Of the launch.
        borders: Where the share of each rank but the first begins, in elements of the region.
        lanes: See `Launches.squares`.
        device: Of the units.

    Attributes:
        numel: Numbers to be exchanged.
    """

    def __init__(self, segments: Segments, borders: list[int], lanes: int, device: torch.device) -> None:
        starts, numels = (np.array(which, dtype=np.int64) for which in (segments.starts, segments.numels))
        whole = np.maximum(-(-numels // UNIT), 1)
        before = np.cumsum(whole) - whole
        self._groups = -(-int(whole.sum()) // GROUP)
        cuts = [int(np.clip(-(-(border - starts) // UNIT), 0, whole).sum()) for border in borders]
        cut = sorted({units // GROUP for units in cuts if units % GROUP})
        # Which of the launch's units are elements, and which units of all they are.
        first, mine = segments.bounds[0] // UNIT, unit_counts(segments)
        real = np.repeat(segments.lengths > 0, mine)
        inside = np.arange(mine.sum()) - np.repeat(np.cumsum(mine) - mine, mine)
        places = (np.repeat(before + first, mine) + inside)[real]
        self._begin = int(places[0]) // GROUP if len(places) else 0
        self._own = (int(places[-1]) // GROUP + 1 if len(places) else 0) - self._begin

        def there(numbers: object) -> Tensor:
            return torch.as_tensor(np.asarray(numbers, dtype=np.int64), device=device)

        self._real, self._places = there(np.flatnonzero(real)), there(places - self._begin * GROUP)
        mine_cut = [(row, group - self._begin) for row, group in enumerate(cut) if self._begin <= group]
        mine_cut = [(row, group) for row, group in mine_cut if group < self._own]
        self._rows, self._cut_here = there([row for row, _ in mine_cut]), there([group for _, group in mine_cut])
        self._cut = there(cut)
        self._lanes = lanes
        self.numel = self._groups + len(cut) * GROUP

    def write(self, units: Tensor, numbers: Tensor) -> None:
        """Puts what this rank knows into `numbers`, float64 [numel] of zeros."""
        window = torch.zeros(self._own * GROUP, dtype=torch.float64, device=units.device)
        window[self._places] = units[self._real].to(torch.float64)
        rows = window.view(self._own, GROUP)
        sums = neighbors_added(rows)
        sums[self._cut_here] = 0.0
        numbers[self._begin : self._begin + self._own] = sums
        numbers[self._groups :].view(-1, GROUP)[self._rows] = rows[self._cut_here]

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of squares of all ranks' `numbers` added up, float64 []."""
        groups = numbers[: self._groups].clone()
        groups[self._cut] = neighbors_added(numbers[self._groups :].view(-1, GROUP))
        lanes = torch.zeros(self._lanes, dtype=torch.float64, device=numbers.device)
        for row in torch.split(groups, self._lanes):
            lanes[: len(row)] += row
        return neighbors_added(lanes.view(1, -1))[0]


def neighbors_added(x: Tensor) -> Tensor:
    """[rows, a power of two] to [rows]: neighbors are added, then neighbors of the results, and so on."""
    while x.shape[1] > 1:
        x = x[:, 0::2] + x[:, 1::2]
    return x[:, 0]
