"""skorch: an estimator that is given the class of an optimizer, fitted twice, saved, and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.frameworks import needed

skorch = needed("skorch")

# The framework's own deprecations are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

INPUTS = np.linspace(-1.0, 1.0, 48, dtype=np.float32).reshape(16, 3)
TARGETS = (INPUTS @ np.array([[1.0], [-2.0], [0.5]], dtype=np.float32)) ** 2


def estimator(optimizer: type[torch.optim.Optimizer]) -> Any:
    torch.manual_seed(0)
    return skorch.NeuralNetRegressor(
        nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)),
        optimizer=optimizer,
        optimizer__param_groups=[("*.bias", {"lr": 0.01})],
        optimizer__momentum=0.9,
        lr=0.05,
        max_epochs=3,
        batch_size=4,
        train_split=None,
        iterator_train__shuffle=False,
        verbose=0,
        device="cpu",
    )


def test_it_fits_as_with_torch_twice_and_from_a_file(tmp_path: Path) -> None:
    nets = []
    for kind in (fv.optim.SGD, torch.optim.SGD):
        net = estimator(kind)
        net.fit(INPUTS, TARGETS)
        net.fit(INPUTS, TARGETS)  # another optimizer over the same parameters
        net.partial_fit(INPUTS, TARGETS)
        net.save_params(f_params=tmp_path / "params.pt", f_optimizer=tmp_path / "optimizer.pt")
        again = estimator(kind).initialize()
        again.load_params(f_params=tmp_path / "params.pt", f_optimizer=tmp_path / "optimizer.pt")
        for each in (net, again):
            each.partial_fit(INPUTS, TARGETS)
        np.testing.assert_allclose(net.predict(INPUTS), again.predict(INPUTS), rtol=1e-6)
        nets.append(net)
    np.testing.assert_allclose(nets[0].predict(INPUTS), nets[1].predict(INPUTS), rtol=1e-4, atol=1e-5)
    assert len(fv.VarStore.of(nets[0].module_)) == 4
