"""store.watch: a store learns which module uses its variables, and notices when one is replaced there."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.integration.training import adopted, backward


def test_watch_tells_a_loaded_store_of_its_module() -> None:
    module, store, opt = pickle.loads(pickle.dumps(adopted()))
    assert store.watch(module) == ["weight", "bias"]
    assert store.watch(nn.Linear(3, 2)) == []
    module.weight = nn.Parameter(torch.ones(2, 3))
    backward(module)
    with pytest.raises(fv.AliasError, match=r"store\.rebind\(\)"):
        opt.step()


def test_watch_a_module_made_of_the_stores_variables() -> None:
    store = fv.VarStore()
    module = nn.Linear(3, 2)
    module.weight = store.root().zeros("w", (2, 3))
    opt = fv.optim.SGD(store, lr=0.1)
    assert store.watch(module) == ["w"]
    backward(module)
    opt.step()
    module.weight = nn.Parameter(torch.ones(2, 3))
    backward(module)
    with pytest.raises(fv.AliasError, match=r"'w' is no longer used: Linear\.weight"):
        opt.step()
