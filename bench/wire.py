"""What training on many ranks costs a rank, on paper: bytes it keeps, messages and bytes it sends in a step.

    python -m bench.wire                # the table of flatvars/distributed/README.md
    python -m bench.wire --bytes 4      # values of float32

Formulas, for n parameters on w ranks, values and gradients of v bytes, AdamW's state of s = 8. Ring algorithms: a rank
sends (w - 1) / w of a message in an all_gather or reduce_scatter, and twice that in an all_reduce. Activations are left
out: they are those of the batch, whoever keeps the state.

| | keeps | sends in a step, times (w - 1) / w |
|---|---|---|
| DDP, gradients as views of its buckets | (2 v + s) n | 2 v n |
| mesh=, grads="views" | 2 v n + (v + s) n / w | 2 v n + 2 a |
| mesh= | (2 v + 4) n + (4 + s) n / w | (4 + v) n + 2 a, gradients averaged in float32 |
| ZeRO-2 (arXiv 1910.02054) | v n + (v + s) n / w | 2 v n |
| FSDP2, reshard_after_forward | (2 v + s) n / w, and a block's values and gradients | 3 v n |

a = 8 (n / 131,072 + 1,024 (w - 1) + tensors): sums of squares and flags. FSDP2's messages are three a block (gather for
the forward pass and for the backward pass, reduce_scatter) and one for clipping; those of DDP and ZeRO-2 are counted as
if one bucket held all.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from flatvars.distributed.squares import GROUP
from flatvars.memory.ranks import GRAIN

FLOAT = 4
STATE = 8  # of AdamW in float32
RANKS = (8, 64, 256, 1024)
WAYS = ("DDP", 'mesh=, grads="views"', "mesh=", "ZeRO-2", "FSDP2")


@dataclass(frozen=True)
class Model:
    """A dense model: all that the formulas need."""

    name: str
    numel: int
    blocks: int
    tensors: int


MODELS = (Model("8B", 8_030_000_000, 32, 291), Model("70B", 70_600_000_000, 80, 723))


@dataclass(frozen=True)
class Cost:
    """Of one rank.

    Attributes:
        kept: Bytes of values, gradients and state.
        messages: Collectives in a step.
        sent: Bytes in a step.
    """

    kept: float
    messages: int
    sent: float


def agreement_bytes(model: Model, ranks: int) -> int:
    """Of the all_reduce of a step of flatvars: groups of units, borders between ranks, a flag for each variable."""
    return 8 * (model.numel // (GRAIN * GROUP) + GROUP * (ranks - 1) + model.tensors + 8)


def cost(way: str, model: Model, ranks: int, value: int) -> Cost:
    """By the formulas above."""
    n, share = model.numel, (ranks - 1) / ranks
    both, agreement = 2 * value * n, 2 * agreement_bytes(model, ranks)
    if way == "DDP":
        return Cost(both + STATE * n, 1, share * both)
    if way == WAYS[1]:
        return Cost(both + (value + STATE) * n / ranks, 3, share * (both + agreement))
    if way == "mesh=":
        kept = both + FLOAT * n + (FLOAT + STATE) * n / ranks
        return Cost(kept, 3, share * ((FLOAT + value) * n + agreement))
    if way == "ZeRO-2":
        return Cost(value * n + (value + STATE) * n / ranks, 2, share * both)
    return Cost((both + STATE * n) / ranks + both / model.blocks, 3 * model.blocks + 1, share * 3 * value * n)


def table(value: int) -> str:
    """In Markdown; GB are 10^9 bytes."""
    lines = ["| model | ranks | | GB kept | messages | GB sent |", "|---|---|---|---|---|---|"]
    for model in MODELS:
        for ranks in RANKS:
            for way in WAYS:
                one = cost(way, model, ranks, value)
                numbers = f"{one.kept / 1e9:.1f} | {one.messages} | {one.sent / 1e9:.1f}"
                lines.append(f"| {model.name} | {ranks:,} | {way} | {numbers} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.wire", description="Many ranks on paper.")
    parser.add_argument("--bytes", type=int, default=2, choices=(2, 4), help="of a value and its gradient")
    print(table(parser.parse_args(argv).bytes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
