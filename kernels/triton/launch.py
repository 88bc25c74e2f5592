"""Block sizes, warps and programs of every kernel: the one table to tune.

Chosen from the compiled code (16-byte accesses, no spills on sm_80, sm_90, sm_100 and gfx942; `tests/compile`), not yet
swept on a GPU: `python -m bench` prints what to compare.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


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
# of each float32 stream in flight before the first use. With 4 warps on CUDA, AdamW takes 128 registers instead of 80
# and spills on sm_100; with 8 on gfx942, bfloat16 accesses are 8 bytes wide.
TILE = Launch(block=2048, warps=8, hip_warps=4)

# Programs of the accumulate kernel per multiprocessor: enough to fill the machine, few enough that one program can
# reduce all partial sums.
PROGRAMS_PER_MULTIPROCESSOR = 8
# In the interpreter one program after the other: a few, so that the reduction over programs is exercised.
INTERPRETER_PROGRAMS = 4


def program_limit(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETER_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_PER_MULTIPROCESSOR


def on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device: makes it the one the streams lie on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
