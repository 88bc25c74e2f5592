"""DistributedDataParallel over gloo, two processes: both bucket settings, both gradient modes, with no_sync or not."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.parity.pairs import MODES, assert_close

from .processes import FROZEN, NORMED, UNUSED, WHOLE, WORLD

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed"),
]


Results = list[dict[str, dict[str, Tensor]]]
ACCUMULATE = {"each": 1, "no_sync": 2}
KINDS = {"all": WHOLE, "part-frozen": FROZEN, "unused": UNUSED, "normed": NORMED}


def ours(mode: str, bucket_view: int, accumulate: int, kind: int) -> str:
    return f"flatvars,{mode},{bucket_view},{accumulate},{kind}"


def torchs(accumulate: int, kind: int) -> str:
    return f"torch,gather,0,{accumulate},{kind}"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The trained values of every case, by rank: importing torch twice takes longer than all of them."""
    folder = tmp_path_factory.mktemp("ddp")
    shared = list(itertools.product(ACCUMULATE.values(), KINDS.values()))
    cases = [torchs(*each) for each in shared]
    cases += [ours(*each) for each in itertools.product(MODES, (0, 1), ACCUMULATE.values(), KINDS.values())]
    command = [sys.executable, "-m", "tests.dropin.processes"]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "store"), str(folder / "values"), *cases],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0] * WORLD, "\n".join(errors)
    return [torch.load(folder / f"values.{rank}") for rank in range(WORLD)]


@pytest.mark.row("P-X-04", "P-X-05")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("accumulate", ACCUMULATE.values(), ids=ACCUMULATE)
@pytest.mark.parametrize("bucket_view", [0, 1], ids=["copied", "bucket-view"])
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_as_with_torch(
    mode: str, bucket_view: int, accumulate: int, kind: int, results: Results
) -> None:
    case = ours(mode, bucket_view, accumulate, kind)
    for rank in range(WORLD):
        for name, value in results[rank][torchs(accumulate, kind)].items():
            # Statistics are each rank's own after a forward pass.
            assert "running" in name or torch.equal(results[0][case][name], results[1][case][name]), name
            bound = None if value.dtype.is_floating_point else (0.0, 0.0)
            assert_close(results[rank][case][name], value, name, bound)
