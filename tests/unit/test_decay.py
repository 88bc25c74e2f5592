"""Decay that a rule does by itself has the bits of the option that decays for any rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flatvars.kernels.rules import ADAMW, LION, OPTIONS, Rule


@pytest.mark.parametrize("rule", [ADAMW, LION], ids=lambda rule: rule.name)
def test_a_rule_that_decays_by_itself(rule: Rule) -> None:
    assert rule.made is not None
    (base,) = rule.made[1]
    assert base.decaying is rule.function
    plain = OPTIONS["decoupled"](replace(base, decaying=None))
    assert plain.function is not rule.function
    random = np.random.default_rng(0)
    p, g, m = random.standard_normal((3, 10_000), dtype=np.float32)
    state = (m, m * m)[: len(rule.states)]
    group = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "maximize": True}
    numbers = rule.given.type(*map(np.float32, rule.hyper(group)))
    found, wanted = (each.function(p, g, state, numbers, np.float32(3.0)) for each in (rule, plain))
    for mine, theirs in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
        assert mine.dtype == np.float32
        assert not np.array_equal(mine, p)
        np.testing.assert_array_equal(mine.view(np.int32), theirs.view(np.int32))
