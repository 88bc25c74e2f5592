"""Modules on the meta device whose values come from rules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.models import ResNet, TiedLanguageModel

from .test_meta import on_meta
from .training import assert_same, values

INIT = fv.init
BATCH_NORM = {"*running_mean": INIT.zeros(), "*running_var": INIT.ones(), "*num_batches_tracked": INIT.zeros()}
RULES = {**BATCH_NORM, "*bias*": INIT.zeros(), "*norm*.weight": INIT.ones(), "*": INIT.kaiming_uniform()}


@pytest.mark.parametrize("buffers", [False, True], ids=["parameters", "with-buffers"])
@pytest.mark.parametrize("build", [ResNet, TiedLanguageModel, lambda: nn.LSTM(3, 4)], ids=["resnet", "tied", "lstm"])
def test_values_are_those_of_a_module_that_was_there(build, buffers) -> None:
    module, plain = on_meta(build), build()
    store = fv.VarStore.from_module(module, init=RULES, seed=6, buffers=buffers)
    fv.VarStore.from_module(plain, seed=6, buffers=buffers)
    INIT.apply_(plain, RULES)
    assert_same(dict(module.state_dict()), dict(plain.state_dict()))
    assert all(variable.initializer is not None for variable in store.variables().values())
    assert not any(tensor.is_meta for tensor in module.state_dict().values())
    store.check()


def test_dtype_and_prefix() -> None:
    """Patterns match the module's own names; the values are those of the store's."""
    store = fv.VarStore(seed=3)
    store.add_module(
        on_meta(lambda: nn.Linear(3, 2)),
        "head",
        dtype=torch.bfloat16,
        init={"weight": INIT.normal(), "bias": INIT.ones()},
    )
    expected = INIT.tensor(INIT.normal(), (2, 3), "head.weight", seed=3, dtype=torch.bfloat16)
    assert torch.equal(store["head.weight"].value, expected)
    assert store["head.bias"].value.tolist() == [1.0, 1.0]


def test_what_has_values_keeps_them() -> None:
    module = nn.Sequential(nn.Linear(3, 4), on_meta(lambda: nn.Linear(4, 2)))
    before = values(module[0])
    fv.VarStore.from_module(module, init={"*": INIT.ones()})
    assert_same(values(module[0]), before)
    assert bool((module[1].weight == 1).all())


@pytest.mark.parametrize(
    ("rules", "seed", "message"),
    [
        ({"*.bias": INIT.zeros()}, 0, "no rule matches 'bn.running_mean'|no rule matches '[a-z.]*weight'"),
        ({"*": None}, 0, "has no values that a rule None could leave alone"),
        ({"*": INIT.normal()}, 0, "buffer '[a-z0-9.]*running_mean' is on the meta device.*buffers take"),
        ({**BATCH_NORM, "*": INIT.kaiming_uniform()}, 0, "takes its scale from the widths of a matrix"),
        ({**BATCH_NORM, "*.bias": INIT.eye(), "*": INIT.normal()}, 0, "Only tensors with 2 dimensions"),
        ({**BATCH_NORM, "*": INIT.normal()}, -1, "seed -1 does not fit"),
    ],
)
@pytest.mark.parametrize("buffers", [False, True], ids=["parameters", "with-buffers"])
def test_nothing_is_carved_on_an_error(rules, seed, message, buffers) -> None:
    module = on_meta(ResNet)
    with pytest.raises(fv.InitError, match=message):
        fv.VarStore.from_module(module, init=rules, seed=seed, buffers=buffers)
    assert all(tensor.is_meta for tensor in module.state_dict().values())


def test_a_thousand_layers() -> None:
    module = on_meta(lambda: nn.Sequential(*[nn.Linear(4, 4) for _ in range(1000)]))
    store = fv.VarStore.from_module(module, init={"*.bias": INIT.zeros(), "*": INIT.orthogonal()}, seed=8)
    assert torch.equal(module[999].weight, INIT.tensor(INIT.orthogonal(), (4, 4), "999.weight", seed=8))
    store.check()
