"""Kept kernels: a launch takes one only if Triton would compile the very same for it."""

from __future__ import annotations

from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from flatvars.kernels.rules import SGD, SGD_MOMENTUM
from tests.support.compiled import SM90
from tests.support.memory import in_poison
from tests.support.rig import Rig
from tests.support.rules import sgd_group

SHAPES = [(31,), (4100,)]
BACKEND = make_backend(SM90)


def specialization(kernel, args, kwargs):
    """What Triton would compile `kernel` for: types, and which pointers and integers are compiled in."""
    names = {key: value for key, value in kwargs.items() if key in kernel.arg_names}
    bound, found, _ = create_function_from_signature(kernel.signature, kernel.params, BACKEND)(*args, **names)
    assert list(bound) == kernel.arg_names
    return str(found)


class Stub:
    """A compiled kernel without a device."""

    def __init__(self, log, kernel, args, kwargs):
        self.log, self.kernel = log, kernel
        self.made_for = specialization(kernel, args, kwargs)

    def __getitem__(self, grid):
        def run(*args):
            assert specialization(self.kernel, args, {}) == self.made_for
            self.log.append(("kept", self.kernel.fn.__name__, grid))

        return run


@contextmanager
def stub_driver():
    """Names of the kernels that are launched, and how: compiled anew, or kept."""
    log = []

    def run(kernel, *args, grid, warmup, **kwargs):
        log.append(("asked", kernel.fn.__name__, (*grid, 1, 1)))
        return Stub(log, kernel, args, kwargs)

    with patch.object(JITFunction, "run", run):
        yield log


def step(rig, grads, values=None, **options):
    sources = rig.plan.scattered(grads)
    rig.plan.norm_(sources, options.get("grad_scale"))
    given = {"steps": rig.steps, "norm": rig.norm, "max_norm": 1.0, "skip": True, "skipped": rig.skipped, **options}
    states = [state.stream for state in rig.states]
    rig.plan.step_(sources, rig.rule, rig.values.stream if values is None else values, states, [sgd_group()], **given)


def kinds(log):
    return [kind for kind, _, _ in log]


def test_the_second_launch_is_kept():
    rig = Rig(SHAPES, rule=SGD_MOMENTUM, backend="triton")
    with stub_driver() as log:
        for _ in range(3):
            step(rig, rig.random_grads())
    assert kinds(log) == ["asked"] * 2 + ["kept"] * 4
    assert log[0][1:] == log[2][1:] == ("accumulate_kernel", (4, 1, 1))
    assert log[1][1:] == log[3][1:] == ("step_kernel", (len(rig.plan.launches.tables.tiles), 1, 1))


CHANGES = {
    "source": lambda rig: step(rig, rig.random_grads(torch.bfloat16)),
    "mixed": lambda rig: step(rig, [rig.random_grads()[0].bfloat16(), rig.random_grads()[1]]),
    "unclipped": lambda rig: step(rig, rig.random_grads(), max_norm=None),
    "no-skip": lambda rig: step(rig, rig.random_grads(), skip=False),
    "scaled": lambda rig: step(rig, rig.random_grads(), grad_scale=torch.ones(()), found_inf=torch.zeros(())),
    "scaled-askew": lambda rig: step(rig, rig.random_grads(), grad_scale=torch.ones(2)[1], found_inf=torch.zeros(2)[1]),
    "found-of-another-dtype": lambda rig: step(rig, rig.random_grads(), found_inf=torch.zeros((), dtype=torch.int32)),
    "values-askew": lambda rig: step(rig, rig.random_grads(), in_poison(rig.values.stream, 1)),
    "values-of-another-dtype": lambda rig: step(rig, rig.random_grads(), rig.values.stream.bfloat16()),
    "steps-askew": lambda rig: step(rig, rig.random_grads(), steps=torch.zeros(3)[1:]),
    "far-base": lambda rig: step(rig, rig.random_grads(), base=2**31),
    "norms": lambda rig: rig.plan.variable_norms(rig.values.stream, None, 2.0),
    "norms-of-gradients": lambda rig: rig.plan.variable_norms(None, rig.plan.scattered(rig.random_grads()), 3.0),
    "views": lambda rig: rig.plan.norm_(rig.plan.viewed(rig.grads.stream)),
    "overwrite": lambda rig: rig.accumulate(rig.random_grads(), 0.5),
    "add": lambda rig: rig.accumulate(rig.random_grads(), 0.5, add=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_finds_its_own_kernel(change):
    """The stub compares what each kept kernel was made for with what Triton says of the launch."""
    rig = Rig(SHAPES, rule=SGD, backend="triton")
    with stub_driver() as log:
        step(rig, rig.random_grads())
        asked = len(log)
        change(rig)
        assert "asked" in kinds(log[asked:])
        seen = len(log)
        change(rig)
        step(rig, rig.random_grads())
        assert set(kinds(log[seen:])) == {"kept"}


def test_an_odd_gradient_changes_nothing():
    rig = Rig(SHAPES, rule=SGD, backend="triton")
    with stub_driver() as log:
        step(rig, rig.random_grads())
        step(rig, [in_poison(grad, 1) for grad in rig.random_grads()])
    assert kinds(log) == ["asked"] * 2 + ["kept"] * 2


def test_hip_compiles_for_sizes_as_well(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    rig = Rig(SHAPES, rule=SGD, backend="triton")
    with stub_driver() as log:
        for _ in range(2):
            step(rig, rig.random_grads())
    assert kinds(log) == ["asked"] * 4
