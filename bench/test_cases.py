"""`pytest bench/`: flatvars beside torch.optim, as pytest-benchmark suites in one process.

For one's own machine and for `--benchmark-json`; what compares peers fairly is `python -m bench`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases.cell import CannotRunError, Cell, Contender
from bench.peers import PEERS, load

# Which of its remarks a checkpoint or a compiler makes depends on torch's version.
pytestmark = pytest.mark.filterwarnings("default")

CELLS = (
    Cell("tail", "1000x1024", "adamw"),
    Cell("tail", "1000x32", "adamw"),
    Cell("tail", "10000x256", "adamw"),
    Cell("tail", "465-groups", "adamw"),
    *(Cell("step", "1x1048576", optimizer) for optimizer in ("sgd", "momentum", "rmsprop", "adam", "adamw", "lion")),
    *(Cell(case, "300x3413") for case in ("accumulate", "accumulate-add", "norm", "norms", "init", "adopt")),
    Cell("save", "300x3413", "adamw"),
    Cell("load", "300x3413", "adamw"),
)


@pytest.fixture(params=["flatvars", "torch loop", "torch foreach", "torch fused"])
def contender(request: pytest.FixtureRequest, cell: Cell) -> Iterator[Contender]:
    """A contender behind a green gate."""
    peer = load(PEERS[request.param])
    reason = peer.why_not(cell, "cpu")
    if reason is not None:
        pytest.skip(f"{peer.name} {reason}")
    try:
        made = peer.cases[cell.case](cell, "cpu")
    except CannotRunError as error:
        pytest.skip(str(error))
    checked = made.check()
    assert checked.green, checked.text
    yield made
    made.close()


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.text)
def test_cell(benchmark: BenchmarkFixture, cell: Cell, contender: Contender) -> None:
    benchmark.group = cell.text
    benchmark.extra_info["modelled_bytes"] = cell.bytes_per_param() * cell.workload.numel  # type: ignore[operator]
    benchmark.pedantic(contender.run, setup=lambda: void(contender.prepare()), rounds=5, warmup_rounds=1)


def void(_: object) -> None:
    """Drops a result: pytest-benchmark takes what a setup returns for arguments."""
