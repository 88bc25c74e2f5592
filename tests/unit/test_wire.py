"""What many ranks cost on paper: the table of the page is the script's, and its bytes are those that steps exchange."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from bench.wire import MODELS, agreement_bytes, table
from flatvars.distributed.squares import SharedSquares
from flatvars.memory.layout import plan_layout
from flatvars.memory.ranks import Ranks
from flatvars.memory.spec import VarSpec
from flatvars.optim.ballot import HEADER

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_table_of_the_script() -> None:
    assert table(2) in (ROOT / "flatvars" / "distributed" / "README.md").read_text()


def test_the_numbers_that_ranks_exchange_are_counted() -> None:
    ranks, tensors = 4, 3
    specs = [VarSpec(f"v{i}", (500, 700), torch.float32) for i in range(tensors)]
    layout = plan_layout(specs, ranks=Ranks(0, ranks))
    segments = replace(layout.segments(range(tensors))[1], share=layout.share(torch.float32))
    borders = [layout.share(torch.float32, rank)[0] for rank in range(1, ranks)]
    squares = SharedSquares(segments, borders, 1024, torch.device("cpu"))
    model = replace(MODELS[0], numel=tensors * 350_000, tensors=tensors)
    counted = agreement_bytes(model, ranks) / 8
    # The last group may be begun only, and a border may lie between two groups.
    assert abs(squares.numel + tensors + HEADER - counted) <= 1
