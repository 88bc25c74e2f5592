"""The benchmark's cells: what is planned exists, flatvars and torch pass every gate, bytes are as documented."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

import flatvars as fv
from bench.cases.cell import BEYOND, DTYPES, FAMILY, PRODUCTS, STATES, STORED, CannotRunError, Cell
from bench.cases.hyper import HYPER, OUR_NAMES, TORCH_NAMES
from bench.cases.references import FORMULAS, reference_of
from bench.harness.timing import measure_round, middle
from bench.peers import FULL, PEERS, QUICK, load
from bench.plan import CASES, full_cells, quick_cells
from bench.workloads import workload

SMALL = "7x33"
CASE_CELLS = [
    Cell(case, SMALL, "adamw" if case in ("tail", "cold", "save", "load") else "")
    for case in CASES
    if case not in ("step", "train")
]
# One optimizer in every format: each pair is a kernel to compile, and `tests/kernels` has them all.
STEP_CELLS = [Cell("step", SMALL, "adamw", form) for form in DTYPES]
STEP_CELLS += [Cell("step", SMALL, optimizer) for optimizer in STATES if optimizer != "adamw"]
GATED = ["flatvars", "flatvars accumulate", "flatvars views", "torch loop", "torch foreach", "torch fused"]


def why_not(cell, peer):
    if not cell.optimizer:
        return None
    if peer == "flatvars views" and cell.case == "step":
        like = cell.format in ("float32", "bfloat16", "float64") and cell.optimizer not in ("lion", "rmsprop")
        return None if like else "no peer steps it with gradients that are views"
    if not peer.startswith("torch"):
        return None
    if "+" in cell.format:
        return "keeps state in the dtype"
    if cell.optimizer == "lion":
        return "no such step: lion"
    return "no fused form" if (peer, cell.optimizer) == ("torch fused", "rmsprop") else None


PAIRS = {
    f"{cell.text}-{peer}": (cell, peer)
    for peer in GATED
    for cell in CASE_CELLS + STEP_CELLS
    if cell.case in load(PEERS[peer]).cases
}
ABLE = {name: pair for name, pair in PAIRS.items() if why_not(*pair) is None}
# torch warns of its own internals in checkpoints and in foreach on a CPU.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(("cell", "peer"), ABLE.values(), ids=ABLE)
def test_gates_are_green(cell, peer):
    contender = load(PEERS[peer]).cases[cell.case](cell, "cpu")
    checked = contender.check()
    assert checked.green, checked.text
    round_ = measure_round(contender.prepare, contender.run, 2, "cpu")
    assert round_.wall > 0.0
    contender.close()


@pytest.mark.parametrize("optimizer", FAMILY)
@pytest.mark.parametrize("peer", ["flatvars", "torch foreach"])
def test_gates_of_the_family_are_green(optimizer, peer):
    checked = load(PEERS[peer]).cases["step"](Cell("step", SMALL, optimizer), "cpu").check()
    assert checked.green, checked.text


@pytest.mark.parametrize(
    ("optimizer", "form"),
    [
        ("lamb", "float32"),
        ("prodigy", "float32"),
        ("schedule-free-sgd", "float32"),
        ("adamw-ema", "bfloat16+float32"),
        ("normuon", "float32"),
        ("adamw", "split+root8+log4"),
        ("adamw", "stochastic"),
    ],
)
def test_gates_of_what_torch_has_not_are_green(optimizer, form):
    cell = Cell("step", "2x5x7" if optimizer in PRODUCTS else SMALL, optimizer, form)
    checked = load(PEERS["flatvars"]).cases["step"](cell, "cpu").check()
    assert checked.green, checked.text


@pytest.mark.parametrize("optimizer", ["adamw-ema", "adamw-stats", "muon", "adafactor"])
def test_gates_of_what_torch_needs_more_for_are_green(optimizer):
    cell = Cell("step", "2x5x7", optimizer)
    checked = load(PEERS["torch foreach"]).cases["step"](cell, "cpu").check()
    assert checked.green, checked.text


@pytest.mark.parametrize("optimizer", FORMULAS)
def test_formulas_have_their_numbers_and_move_what_they_step(optimizer):
    """The numbers are those that `fv.optim` takes: a peer is given no others."""
    taken = inspect.signature(getattr(fv.optim, OUR_NAMES[optimizer][0])).parameters
    assert HYPER[optimizer].keys() <= taken.keys()
    params = [torch.nn.Parameter(torch.full((n,), 0.5, dtype=torch.float64)) for n in (3, 5)]
    followed = reference_of(optimizer, [{"params": params, "lr": HYPER[optimizer]["lr"]}])
    for _ in range(2):
        for param in params:
            param.grad = torch.linspace(1.0, 2.0, len(param), dtype=torch.float64)
        followed.step()
    assert all(bool((param < 0.5).all()) for param in params)


def test_a_twin_finds_what_is_wrong(monkeypatch):
    contender = load(PEERS["flatvars"]).cases["step"](Cell("step", SMALL, "lars"), "cpu")
    _, trainer = contender.keep
    step = trainer.step

    def off():
        step()
        with torch.no_grad():
            trainer.params[3][5] += 1e-3

    monkeypatch.setattr(trainer, "step", off)
    assert not contender.check().green


def test_what_a_peer_cannot_is_refused_with_the_reason():
    refused = PAIRS.keys() - ABLE.keys()
    # Three formats and Lion by three of torch's, RMSprop by its fused; all five by views.
    assert len(refused) == 3 * 3 + 3 + 1 + 5
    for name in sorted(refused):
        cell, peer = PAIRS[name]
        with pytest.raises(CannotRunError, match=why_not(cell, peer)):
            load(PEERS[peer]).cases[cell.case](cell, "cpu")


def test_every_case_is_gated():
    assert set(load(PEERS["flatvars"]).cases) == set(CASES)
    assert all("tail" in load(PEERS[peer]).cases for peer in GATED)


@pytest.mark.parametrize("on", ["465-groups", "lora-llama3-8b-width/16"])
def test_gates_with_groups_and_frozen_parameters(on):
    for peer in ("flatvars", "torch fused"):
        checked = load(PEERS[peer]).cases["tail"](Cell("tail", on, "adamw"), "cpu").check()
        assert checked.green, checked.text


def test_training_gates_are_green_and_show_losses():
    cell = Cell("train", "train-gpt-1M", "adamw")
    for peer in ("flatvars", "flatvars accumulate", "flatvars views"):
        checked = load(PEERS[peer]).cases["train"](cell, "cpu").check()
        assert checked.green, checked.text
        assert checked.note.startswith("losses ")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_planned_cell_exists_once(device):
    for planned in (quick_cells(device), full_cells(device)):
        assert len(planned) == len(set(planned))
        assert all(cell.workload.numel > 0 and cell.case in CASES for cell in planned)
    assert {cell.case for cell in full_cells(device)} == set(CASES)
    assert {(c.optimizer, c.format) for c in full_cells(device) if c.case == "step"} == {
        *((optimizer, form) for optimizer in STATES for form in DTYPES),
        *((optimizer, "float32") for optimizer in (*FAMILY, *BEYOND)),
        *(("adamw", form) for form in STORED),
        ("adamw-ema", "bfloat16+float32"),
    }


def test_sizes_and_counts_are_those_that_were_asked_for():
    cells = [cell.on for cell in full_cells("cuda") if cell.case == "tail"]
    assert {f"1x{2**power}" for power in (12, 20, 30)} <= set(cells)
    for total in (10_240_000, 1_024_000_000):
        counts = [
            name.split("x") for name in cells if "x" in name and name.split("x")[0] in ("10", "300", "1000", "10000")
        ]
        same = {int(n) for n, each in counts if abs(int(n) * int(each) / total - 1) < 1e-3}
        assert same == {10, 300, 1_000, 10_000}


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [("gpt2-small", 148, 124_439_808), ("resnet101", 314, 44_549_160), ("1000x32", 1000, 32_000)],
)
def test_workloads_are_those_of_the_real_models(name, tensors, elements):
    assert (len(workload(name).shapes), workload(name).numel) == (tensors, elements)


def test_a_lora_model_is_99_percent_frozen():
    lora = workload("lora-llama3-8b-8layers")
    assert 0.98 < 1.0 - lora.numel / lora.total < 1.0
    assert workload("465-groups").groups == 465


def test_bytes_are_the_documented_ones():
    wanted = {"tail": 32, "norm": 4, "accumulate": 8, "accumulate-add": 12, "norms": 8, "init": 4}
    for case, nbytes in wanted.items():
        assert Cell(case, SMALL, "adamw" if case == "tail" else "").bytes_per_param() == nbytes
    steps = {"adamw": 28, "lion": 20, "sgd": 12, "momentum": 20}
    assert Cell("cold", SMALL, "adamw").bytes_per_param() == 28
    assert {o: Cell("step", SMALL, o).bytes_per_param() for o in steps} == steps
    assert Cell("step", SMALL, "adamw", "bfloat16+float32").bytes_per_param() == 22


# What options add to the row of a class: cautious updates, an average, numbers.
MORE = {"cautious-adamw": 12, "adamw-ema": 8, "adamw-stats": 0.5}


def test_bytes_are_those_of_the_readme():
    """Of every optimizer beyond those: the table of the README, which other tests hold to the rules."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    for optimizer in (*FAMILY, *BEYOND):
        name = {**OUR_NAMES, **TORCH_NAMES}[optimizer][0]
        (row,) = (line for line in text.splitlines() if re.match(rf"\| (`\w+`, )?`{name}`", line))
        listed = [int(number) for number in re.findall(r"\d+", row.split("|")[3])]
        wanted = Cell("step", SMALL, optimizer).bytes_per_param() - MORE.get(optimizer, 0)
        assert min(listed) <= wanted <= max(listed), optimizer


def test_an_unknown_workload_says_what_there_is():
    with pytest.raises(KeyError, match="gpt2-small"):
        workload("gpt5")


def test_quick_asks_known_peers():
    for names in (*QUICK.values(), *FULL.values()):
        assert set(names) <= set(PEERS)
        assert {"copy", "flatvars", "torch fused"} <= set(names)


def test_the_median_and_its_spread():
    assert middle([3.0]) == (3.0, 0.0)
    median, spread = middle([1.0, 2.0, 3.0, 4.0, 100.0])
    assert median == 3.0
    assert spread > 1.0
