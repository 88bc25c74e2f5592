"""Block sizes, warps and programs of every kernel: the one table to tune.

Chosen from the compiled code (16-byte accesses, no spills on sm_80, sm_90, sm_100 and gfx942; `tests/compile`), not yet
swept on a GPU: `python -m bench` prints what to compare.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from ..lang import INTERPRETED
from ..segments import Segments


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched.

    Attributes:
        block: Elements of a tile.
        warps, hip_warps: Warps a program, on CUDA and on HIP, where a warp is twice as wide.
    """

    block: int
    warps: int
    hip_warps: int

    def options(self, hip: bool = torch.version.hip is not None) -> dict[str, object]:
        """Compiler options. `enable_fp_fusion` is off everywhere: its default differs between Triton versions."""
        return {"num_warps": self.hip_warps if hip else self.warps, "enable_fp_fusion": False}


# One tile table serves all kernels of a plan, so they share the block: 2,048 elements are 8 a thread, two 16-byte loads
# of each float32 stream in flight before the first use. With 4 warps on CUDA, AdamW takes 128 registers instead of 64
# and spills on sm_100; with 8 on gfx942, bfloat16 accesses are 8 bytes wide. Variables below a block leave the rest of
# its lanes idle, and 10,000 of 64 elements would be bound by instructions, not by memory: smaller blocks are for them.
TILES = (Launch(2048, 8, 4), Launch(1024, 4, 2), Launch(512, 2, 1), Launch(256, 1, 1))
TILE = TILES[0]
# How many lanes more than with the smallest block may idle for a larger one, which starts fewer programs.
IDLE = 1.1

# Programs of the accumulate kernel per multiprocessor, for 8 warps each: as many as are resident, since all have equal
# shares. It takes 32 to 40 registers for a norm alone, up to 48 else.
NORM_PROGRAMS, OTHER_PROGRAMS = 6, 5
# Blocks that a multiprocessor holds at once, of whatever size.
RESIDENT = 32
# In the interpreter one program after the other: a few, so that the reduction over programs is exercised.
INTERPRETER_PROGRAMS = 4


def tile_for(segments: Segments) -> Launch:
    """The largest block that leaves few lanes idle over these variables."""
    if INTERPRETED:  # the time of a tile does not depend on its size
        return TILE
    lanes = [int(np.maximum(-(-segments.lengths // tile.block), 1).sum()) * tile.block for tile in TILES]
    return next(tile for tile, count in zip(TILES, lanes, strict=True) if count <= IDLE * lanes[-1])


def tile_of(block: int) -> Launch:
    """The launch of a block of the table."""
    return next(tile for tile in TILES if tile.block == block)


def program_limit(device: torch.device, warps: int, norm: bool) -> int:
    """Most programs of the accumulate kernel: of a norm alone, or of another mode."""
    if device.type != "cuda":
        return INTERPRETER_PROGRAMS
    programs = (NORM_PROGRAMS if norm else OTHER_PROGRAMS) * TILE.warps // warps
    return torch.cuda.get_device_properties(device).multi_processor_count * min(programs, RESIDENT)


_HERE: AbstractContextManager[object] = nullcontext()


def on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device: makes it the one the streams lie on."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(device)
