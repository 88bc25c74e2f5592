"""Block sizes, warps and programs of every kernel: the one table to tune.

Chosen from the compiled code (16-byte accesses, no spills on sm_80, sm_90, sm_100 and gfx942; `tests/compile`), not yet
swept on a GPU: `python -m bench --case kernels` prints what to compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched. `enable_fp_fusion` is off everywhere: its default differs between Triton versions."""

    block: int
    warps: int

    @property
    def options(self) -> dict[str, object]:
        return {"num_warps": self.warps, "enable_fp_fusion": False}


# One tile table serves all kernels of a plan, so they share the block: 2,048 elements are 16 a thread in 128 threads,
# four 16-byte loads of each stream in flight before the first use.
TILE = Launch(block=2048, warps=4)

# Programs of the accumulate kernel per multiprocessor: enough to fill the machine, few enough that one program can
# reduce all partial sums.
PROGRAMS_PER_MULTIPROCESSOR = 8
# In the interpreter one program after the other: a few, so that the reduction over programs is exercised.
INTERPRETER_PROGRAMS = 4


def program_limit(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETER_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_PER_MULTIPROCESSOR
