"""Which cells a run has: `--quick` covers every kernel once, a full run every size, count, model, optimizer and dtype.

A CPU gets the same tables at sizes that two cores finish in a quarter of an hour.
"""

from __future__ import annotations

from bench.cases.cell import BEYOND, DTYPES, FAMILY, PRODUCTS, STATES, STORED, Cell

CASES = {
    "tail": "norm, clip, AdamW, zero_grad: all between backward and the next forward",
    "step": "the optimizer's step alone, without clipping",
    "cold": "the step alone, behind 20 ms without work as in a loop that waits for data: threads sleep",
    "accumulate": "gradients of a first micro-batch into float32 sums, and their norm",
    "accumulate-add": "gradients of a later micro-batch added to the sums, and their norm",
    "norm": "norm of all gradients as one vector",
    "norms": "norm of every value and every gradient",
    "init": "first values of all parameters, normal",
    "adopt": "a finished model into the store",
    "save": "values and AdamW state to a file",
    "load": "values from that file",
    "train": "whole training steps: forward, backward, tail",
}
COUNTS = (10, 300, 1_000, 10_000)
GPU_TOTALS = (10_240_000, 1_024_000_000)
CPU_TOTALS = (2_560_000,)
GPU_SIZES = tuple(2**power for power in range(12, 31, 2))
CPU_SIZES = tuple(2**power for power in range(12, 25, 4))
FEW, MATRICES = "100x4096", "24x256x1024"
SMALL = ("1000x1024", "1000x32", "10000x256")
COLD = ("1x65536", "1000x1024")
GPU_MODELS = ("gpt2-small", "resnet101", "llama3-8b-2layers", "lora-llama3-8b-8layers", "465-groups")
CPU_MODELS = ("gpt2-2layers", "resnet101", "llama3-8b-width/16", "lora-llama3-8b-width/16", "465-groups")
GPU_TRAINED = ("train-gpt-124M", "train-resnet101", "train-llama-1B")
CPU_TRAINED = ("train-gpt-1M", "train-resnet50-thin", "train-llama-2M")


def one(size: int) -> str:
    return f"1x{size}"


def spread(total: int) -> list[str]:
    """A total over each number of tensors."""
    return [f"{count}x{total // count}" for count in COUNTS]


def cells(device: str, quick: bool) -> list[Cell]:
    """All cells of a run, small tables first."""
    return quick_cells(device) if quick else full_cells(device)


def quick_cells(device: str) -> list[Cell]:
    """Every kernel once, the aims of the project first."""
    on_gpu = device != "cpu"
    large = one(2**28 if on_gpu else 2**20)
    if on_gpu:
        tails = ["1000x1024", "10000x256", large, "gpt2-small", "465-groups"]
    else:
        tails = ["1000x1024", large]
    return [
        *(Cell("tail", on, "adamw") for on in tails),
        *(Cell("step", large, optimizer) for optimizer in STATES),
        *(Cell("step", large, "adamw", form) for form in ("bfloat16+float32", *STORED)),
        *(Cell(case, large) for case in ("accumulate", "accumulate-add", "norm")),
        *(Cell(case, "1000x1024") for case in ("norms", "adopt")),
        Cell("init", large),
        *(Cell("step", FEW, optimizer) for optimizer in FAMILY),
        *beyond(),
        Cell("train", (GPU_TRAINED if on_gpu else CPU_TRAINED)[0], "adamw"),
    ]


def beyond() -> list[Cell]:
    """What is no elementwise class of torch. Averages of another dtype than the values have launches of their own."""
    steps = [Cell("step", MATRICES if optimizer in PRODUCTS else FEW, optimizer) for optimizer in BEYOND]
    return [*steps, Cell("step", FEW, "adamw-ema", "bfloat16+float32")]


def full_cells(device: str) -> list[Cell]:
    on_gpu = device != "cpu"
    sizes = [one(size) for size in (GPU_SIZES if on_gpu else CPU_SIZES)]
    counts = [name for total in (GPU_TOTALS if on_gpu else CPU_TOTALS) for name in spread(total)]
    models = list(GPU_MODELS if on_gpu else CPU_MODELS)
    formats_on = one(2**28 if on_gpu else 2**22)
    files_on = ["1000x1024", one(2**28 if on_gpu else 2**22)]
    few = ["1000x1024", sizes[-1]]
    steps = [Cell("step", on, "adamw") for on in sizes]
    formats = [Cell("step", formats_on, optimizer, form) for optimizer in STATES for form in DTYPES]
    formats += [Cell("step", formats_on, "adamw", form) for form in STORED]
    family_on = ("1000x1024", formats_on) if on_gpu else ("1000x1024",)
    family = [Cell("step", on, optimizer) for optimizer in FAMILY for on in family_on]
    return [
        *(Cell("tail", on, "adamw") for on in dict.fromkeys([*SMALL, *counts, *sizes, *models])),
        *steps,
        *(Cell("cold", on, "adamw") for on in COLD),
        *(Cell("accumulate", on) for on in dict.fromkeys([*sizes, *counts])),
        *(Cell(case, on) for case in ("accumulate-add", "norm") for on in few),
        *(Cell("norms", on) for on in counts),
        *(Cell(case, on) for case in ("init", "adopt") for on in [*counts, *few[1:]]),
        *(Cell(case, on, "adamw") for case in ("save", "load") for on in files_on),
        *(Cell("train", on, "adamw") for on in (GPU_TRAINED if on_gpu else CPU_TRAINED)),
        *family,
        *beyond(),
        # The most rows, and those that are missed least if the time is up.
        *(cell for cell in formats if cell not in steps),
    ]
