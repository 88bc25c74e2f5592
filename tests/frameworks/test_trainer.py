"""The Hugging Face Trainer: an adopted model and a flatvars optimizer give the run that torch's give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.frameworks import needed

transformers = needed("transformers")
needed("accelerate")  # the Trainer does not start without it

# The frameworks' own deprecations are not ours.
pytestmark = pytest.mark.filterwarnings("default")
ADAMW = {"lr": 1e-2, "weight_decay": 0.1}


def model() -> Any:
    """A GPT-2 of two layers, with tied embeddings, and no dropout."""
    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=40, n_positions=16, **dropout)
    config.loss_type = "ForCausalLMLoss"
    return transformers.GPT2LMHeadModel(config)


def data() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 40, (32, 12), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer(net: nn.Module, folder: Path, *, steps: int = 6, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        learning_rate=ADAMW["lr"],
        weight_decay=ADAMW["weight_decay"],
        lr_scheduler_type="linear",
        warmup_steps=2,
        save_steps=3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    return transformers.Trainer(net, arguments, train_dataset=data(), **options)


def assert_close(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    net = model()
    trainer(net, tmp_path_factory.mktemp("reference")).train()
    return net


@pytest.mark.row("P-O-01")
@pytest.mark.parametrize("adopted", [True, False], ids=["adopted", "one-line"])
def test_it_makes_the_optimizer(reference: nn.Module, tmp_path: Path, adopted: bool) -> None:
    """From the class: two param groups by names, clipping, a schedule, accumulation, checkpoints."""
    net = model()
    if adopted:
        fv.VarStore.from_module(net)
    run = trainer(net, tmp_path, optimizer_cls_and_kwargs=(fv.optim.AdamW, {"lr": ADAMW["lr"]}))
    run.train()
    assert len(run.optimizer.param_groups) == 2
    assert_close(net, reference)
    fv.VarStore.of(net).check()


def test_it_is_given_the_optimizer(reference: nn.Module, tmp_path: Path) -> None:
    net = model()
    store = fv.VarStore.from_module(net)
    kept = [v.name for v in store.variables().values() if len(v.shape) > 1]
    groups = [{"params": kept}, {"params": "*", "weight_decay": 0.0}]
    opt = fv.optim.AdamW(groups, store=store, **ADAMW)
    trainer(net, tmp_path, optimizers=(opt, None)).train()
    assert_close(net, reference)
    store.check()


@pytest.mark.row("P-O-02", "P-A-13")
def test_a_run_goes_on_from_its_checkpoint(reference: nn.Module, tmp_path: Path) -> None:
    """The checkpoint holds safetensors of a tied model, and a state dict of the optimizer."""
    for resume in (None, str(tmp_path / "checkpoint-3")):
        net = model()
        store = fv.VarStore.from_module(net)
        run = trainer(net, tmp_path, optimizer_cls_and_kwargs=(fv.optim.AdamW, {"lr": ADAMW["lr"]}))
        run.train(resume_from_checkpoint=resume)
        assert_close(net, reference)
        store.check()
    saved = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-6")
    assert_close(saved, net)


def test_a_run_of_torch_goes_on_here(reference: nn.Module, tmp_path: Path) -> None:
    trainer(model(), tmp_path).train()
    net = model()
    fv.VarStore.from_module(net)
    run = trainer(net, tmp_path, optimizer_cls_and_kwargs=(fv.optim.AdamW, {"lr": ADAMW["lr"]}))
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_close(net, reference)
