"""PEFT: LoRA adapters on a frozen model; frozen variables cost nothing, and adapters train as with torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import flatvars as fv
from tests.support.frameworks import needed

transformers = needed("transformers")
peft = needed("peft")

# The frameworks' own deprecations are not ours.
pytestmark = pytest.mark.filterwarnings("default")


def model() -> Any:
    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=400, n_positions=16, **dropout)
    config.loss_type = "ForCausalLMLoss"
    lora = peft.LoraConfig(r=1, lora_alpha=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    return peft.get_peft_model(transformers.GPT2LMHeadModel(config), lora)


def train(net: Any, opt: torch.optim.Optimizer, steps: int = 4) -> None:
    rows = torch.randint(0, 400, (2, 12), generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        net(input_ids=rows, labels=rows).loss.backward()
        opt.step()
        opt.zero_grad()


@pytest.mark.row("P-G-07")
@pytest.mark.parametrize("mode", ["gather", "views"])
def test_adapters_train_as_with_torch(mode: str) -> None:
    net = model()
    plain = copy.deepcopy(net)
    store = fv.VarStore.from_module(net, grads=mode)
    train(net, fv.optim.AdamW(store, lr=1e-2))
    train(plain, torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2))
    for (name, ours), theirs in zip(net.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    store.check()


def test_state_and_gradients_exist_for_adapters_alone() -> None:
    net = model()
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    store = fv.VarStore.from_module(net)
    assert trained < 0.01 * store.numel
    opt = fv.optim.AdamW(store)
    before = store.registry.streams.nbytes
    train(net, opt, 1)
    store.accumulate({v.name: torch.ones(v.shape) for v in store.trainable_variables()})
    added = store.registry.streams.nbytes - before
    padding = 32 * len(store.trainable_variables())
    assert 3 * 4 * trained <= added <= 3 * 4 * (trained + padding)


@pytest.mark.row("P-R-04")
def test_adapters_that_are_merged_afterwards_are_noticed_or_harmless() -> None:
    """Merging writes the base weights in place and takes the adapters out of the model."""
    net = model()
    store = fv.VarStore.from_module(net)
    opt = fv.optim.AdamW(store, lr=1e-2)
    train(net, opt, 2)
    base = net.merge_and_unload()
    name = next(name for name in store if name.endswith("c_attn.base_layer.weight"))
    assert torch.equal(store[name].value, base.transformer.h[0].attn.c_attn.weight)
    store.check_aliases()


@pytest.mark.row("P-R-01")
def test_adapters_may_join_a_store_later() -> None:
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40))
    store = fv.VarStore.from_module(base)
    store.freeze()
    net = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    for name, param in net.named_parameters():
        if "lora" in name:
            store.add(name, param)
    opt = fv.optim.SGD(store, lr=0.1)
    adapter = next(name for name in store if "lora_B" in name)
    rows = torch.randint(0, 40, (1, 8))
    net(input_ids=rows).logits.square().sum().backward()
    opt.step()
    assert store[adapter].value.any()
    store.check()
