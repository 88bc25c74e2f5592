"""Stable-Baselines3: policies that make their optimizers from a class, for actor, critic and a lone coefficient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flatvars as fv
from tests.support.frameworks import needed

gymnasium = needed("gymnasium")
sb3 = needed("stable_baselines3")

# The framework's own deprecations are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

PPO = {"n_steps": 16, "batch_size": 8, "n_epochs": 2}
SAC = {"learning_starts": 8, "batch_size": 4, "buffer_size": 64}


@pytest.fixture(autouse=True)
def _logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its logger makes a folder for every run, which nobody removes."""
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path / "logs"))


class Slope(gymnasium.Env):  # type: ignore[name-defined,misc]
    """Two numbers that an action moves; the nearer to zero, the better."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.at, self.steps = np.array([1.0, -1.0], dtype=np.float32), 0
        return self.at, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at, self.steps = (self.at + 0.1 * action).astype(np.float32), self.steps + 1
        return self.at, -float(np.square(self.at).sum()), False, self.steps == 8, {}


def learned(algorithm: Any, optimizer: type[torch.optim.Optimizer], **options: Any) -> Any:
    policy = {"optimizer_class": optimizer, "optimizer_kwargs": {"eps": 1e-5}, "net_arch": [8]}
    model = algorithm("MlpPolicy", Slope(), policy_kwargs=policy, seed=0, device="cpu", **options)
    return model.learn(24)


def test_a_policy_learns_as_with_torch_and_goes_on_from_its_file(tmp_path: Path) -> None:
    """Clipped by torch's function between backward and step, under a schedule of the learning rate."""
    ours, theirs = (learned(sb3.PPO, kind, **PPO) for kind in (fv.optim.Adam, torch.optim.Adam))
    for mine, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    ours.save(tmp_path / "model.zip")
    again = sb3.PPO.load(tmp_path / "model.zip", env=Slope(), device="cpu")
    assert isinstance(again.policy.optimizer, fv.optim.Adam)
    before = [param.detach().clone() for param in again.policy.parameters()]
    assert all(map(torch.equal, before, ours.policy.parameters()))
    again.learn(16)
    assert not any(map(torch.equal, before, again.policy.parameters()))


def test_an_actor_a_critic_and_a_lone_coefficient() -> None:
    ours, theirs = (learned(sb3.SAC, kind, **SAC) for kind in (fv.optim.Adam, torch.optim.Adam))
    for mine, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
    assert ours.actor.optimizer.store is not ours.critic.optimizer.store
