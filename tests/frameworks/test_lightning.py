"""Lightning: fit, clip, accumulate, checkpoint and resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from tests.parity.pairs import assert_close
from tests.support.frameworks import needed
from tests.support.models import Chain

lightning = needed("lightning")

# The frameworks' own deprecations and advice are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


class Task(lightning.LightningModule):
    """A chain of layers; in a store or not.

    Args:
        flat: Whether the optimizer is one of flatvars.
        adopted: Whether a store holds the layers before there is an optimizer.
    """

    def __init__(self, net: nn.Module, flat: bool, adopted: bool = True) -> None:
        super().__init__()
        self.net = net
        self.kind: type[torch.optim.Optimizer] = fv.optim.AdamW if flat else torch.optim.AdamW
        if flat and adopted:
            fv.VarStore.from_module(net)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.net(batch).square().sum()

    def configure_optimizers(self) -> Any:
        made = self.kind(self.net.parameters(), lr=0.02)
        return [made], [torch.optim.lr_scheduler.StepLR(made, 1, 0.5)]


def fit(task: Task, folder: Path, epochs: int = 2, resume: Path | None = None) -> Any:
    generator = torch.Generator().manual_seed(1)
    loader = torch.utils.data.DataLoader(torch.randn(16, 4, generator=generator), batch_size=2)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, loader, ckpt_path=None if resume is None else str(resume))
    return trainer


def assert_twins(task: Task, plain: Task) -> None:
    for ours, theirs in zip(task.net.parameters(), plain.net.parameters(), strict=True):
        assert_close(ours.detach(), theirs.detach(), "value")
    fv.VarStore.of(task.net).check()


@pytest.mark.row("P-O-01", "P-O-05")
def test_it_trains_as_with_torch(tmp_path: Path) -> None:
    """Its loop calls step with a closure."""
    net = Chain()
    task, plain = Task(copy.deepcopy(net), True), Task(net, False)
    fit(task, tmp_path / "ours")
    fit(plain, tmp_path / "theirs")
    assert_twins(task, plain)


def test_one_line_is_enough_and_fits_again(tmp_path: Path) -> None:
    """Each fit asks for new optimizers over the same parameters."""
    net = Chain()
    task, plain = Task(copy.deepcopy(net), True, adopted=False), Task(net, False)
    for each, folder in ((task, "ours"), (plain, "theirs")):
        fit(each, tmp_path / folder, epochs=1)
        fit(each, tmp_path / folder, epochs=1)
    assert_twins(task, plain)


@pytest.mark.row("P-O-02", "P-O-07")
@pytest.mark.parametrize("first", [True, False], ids=["from-ours", "from-torch"])
def test_a_run_goes_on_from_a_checkpoint(first: bool, tmp_path: Path) -> None:
    net = Chain()
    whole = Task(copy.deepcopy(net), False)
    fit(whole, tmp_path / "whole", epochs=3)
    half = Task(copy.deepcopy(net), first)
    fit(half, tmp_path, epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    task = Task(copy.deepcopy(net), True)
    fit(task, tmp_path / "rest", epochs=3, resume=tmp_path / "half.ckpt")
    assert_twins(task, whole)
