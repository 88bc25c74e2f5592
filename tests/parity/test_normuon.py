"""NorMuon against the authors' code (github.com/zichongli5/NorMuon), which takes one matrix at a time."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from flatvars.memory.batches import Batch
from flatvars.optim.entry import StateEntry
from flatvars.optim.row_moments import SECOND_MOMENT, Outputs, RowMoments
from tests.support.models import Bag

SHAPES = {"tall": (48, 16), "wide": (16, 48), "square": (16, 16), "twin": (48, 16), "odd": (7, 13), "thin": (1, 5)}
STEPS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """Newton-Schulz of Keller Jordan's in bfloat16, rounded as often as torch.optim.Muon's."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Reference(torch.optim.Optimizer):
    """The authors' update, with torch's decay and its scale of a shape."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.1, beta2: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95, "beta2": beta2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in [p for p in group["params"] if p.grad is not None]:
                state = self.state[p]
                momentum = state.setdefault("momentum_buffer", torch.zeros_like(p))
                moment = state.setdefault(SECOND_MOMENT, torch.zeros_like(p[:, :1]))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(momentum, group["momentum"])).to(p.dtype)
                norm = update.norm()
                moment.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - group["beta2"])
                update /= moment.sqrt() + 1e-8
                update *= norm / (update.norm() + 1e-10)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5 * update)


def give(step: int, *modules: nn.Module, left_out: tuple[str, ...] = ()) -> None:
    made = torch.Generator().manual_seed(10 + step)
    for name, param in modules[0].named_parameters():
        grad = torch.randn(param.shape, generator=made, dtype=torch.float64)
        for module in modules:
            one = module.get_parameter(name)
            if name in left_out:
                one.grad = None
            elif one.grad is not None:
                one.grad.copy_(grad)
            else:
                one.grad = grad.to(one.dtype)


def assert_close(mine: nn.Module, theirs: nn.Module, start: nn.Module) -> None:
    """What steps have added agrees to 2e-2 of its size, which is what bfloat16 products leave."""
    for name, first in start.named_parameters():
        moved, wanted = (m.get_parameter(name).detach() - first.detach() for m in (mine, theirs))
        assert (moved - wanted).norm() <= 2e-2 * wanted.norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("grads", ["gather", "views"])
def test_steps_follow_the_authors(grads: str, dtype: torch.dtype) -> None:
    """Changing rates, and a matrix in the middle of a batch that has no gradient in some steps."""
    start = Bag(SHAPES).to(dtype)
    mine, theirs = copy.deepcopy(start), copy.deepcopy(start)
    optimizer = fv.optim.NorMuon(fv.VarStore.from_module(mine, grads=grads), lr=0.02, beta2=0.9, muon="*")
    reference = Reference(theirs.parameters(), lr=0.02, beta2=0.9)
    for step in range(STEPS):
        left = ("square", "tall") if step == 2 else ()
        optimizer.zero_grad()
        if grads == "views":
            names = [name for name in SHAPES if name not in left]
            give(step, theirs)
            for name in names:
                mine.get_parameter(name).grad.add_(theirs.get_parameter(name).grad)
            for name in left:
                theirs.get_parameter(name).grad = None
        else:
            give(step, mine, theirs, left_out=left)
        for one in (optimizer, reference):
            one.param_groups[0]["lr"] = 0.02 / (1 + step)
            one.step()
    assert_close(mine, theirs, start)
    for name in SHAPES:
        found, wanted = (one.state[m.get_parameter(name)] for one, m in ((optimizer, mine), (reference, theirs)))
        torch.testing.assert_close(found["momentum_buffer"], wanted["momentum_buffer"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[SECOND_MOMENT], wanted[SECOND_MOMENT], rtol=3e-2, atol=1e-5)
        assert found[SECOND_MOMENT].dtype == dtype


@pytest.mark.parametrize("axis", [0, 1])
def test_the_formula(axis: int) -> None:
    """The norm comes back, which is found without reading the divided matrix; twice, and times a factor."""
    store = fv.VarStore()
    shape = (6, 4) if axis == 0 else (4, 6)
    for name in ("a", "b"):
        store.add(name, torch.zeros(shape))
    variables = store.registry.variables
    moments = RowMoments(variables, [Outputs(axis, 0)] * 2, torch.float64, torch.device("cpu"))
    moments.bind([True, True], lambda variable: StateEntry())
    first, second = (v.span.offset for v in variables)
    batch = Batch(torch.float32, first, 2, second - first, shape, (shape[1], 1), (0, 1))
    placed = moments.place(batch, Outputs(axis, 0), {0: (0, first), 1: (1, second)})
    kept = torch.zeros(2, 6, dtype=torch.float64)
    for turn in range(2):
        matrices = torch.randn(2, *shape, generator=torch.Generator().manual_seed(turn)).bfloat16()
        matrices[:, 1] *= 1e-3
        wide = matrices.double()
        kept = 0.9 * kept + 0.1 * wide.square().mean(dim=2 - axis)
        wanted = wide / (kept.sqrt() + 1e-8).unsqueeze(2 - axis)
        wanted *= (wide.norm(dim=(1, 2)) / wanted.norm(dim=(1, 2)))[:, None, None] * 0.5
        moments.normalize_(matrices, placed, 0.1, 0.5, None)
        torch.testing.assert_close(matrices.double(), wanted, rtol=2.0**-8, atol=0.0)
        torch.testing.assert_close(moments.kept, kept.flatten(), rtol=1e-12, atol=0.0)


def test_outputs_of_splits_and_of_conv1d() -> None:
    """Each part is a matrix of its own; what is stored [in, out] steps as what is stored [out, in]."""
    start = Bag({"fused": (24, 8)})
    fused, turned = copy.deepcopy(start), nn.Module()
    turned.fused = nn.Parameter(start.get_parameter("fused").detach().t().contiguous())
    parts = Bag(dict.fromkeys("qkv", (8, 8)))
    with torch.no_grad():
        for part, rows in zip(parts.parameters(), start.get_parameter("fused").split(8), strict=True):
            part.copy_(rows)
    runs: list[Any] = []
    for module, options in (
        (fused, {"split": {"fused": 3}}),
        (turned, {"split": {"*": 3}, "in_out": "*"}),
        (parts, {}),
    ):
        fv.VarStore.from_module(module)
        runs.append(fv.optim.NorMuon(module.parameters(), lr=0.05, **options))
    made = torch.Generator().manual_seed(3)
    for _ in range(3):
        grad = torch.randn(24, 8, generator=made) * torch.arange(1.0, 25.0)[:, None]
        fused.get_parameter("fused").grad, turned.get_parameter("fused").grad = grad, grad.t().contiguous()
        for part, rows in zip(parts.parameters(), grad.split(8), strict=True):
            part.grad = rows.clone()
        for optimizer in runs:
            optimizer.step()
    found = [fused.get_parameter("fused"), turned.get_parameter("fused").t(), torch.cat(list(parts.parameters()))]
    moved = [x.detach() - start.get_parameter("fused").detach() for x in found]
    assert all((x - moved[2]).norm() <= 2e-2 * moved[2].norm() for x in moved[:2])
    shapes = [tuple(o.state[o.param_groups[0]["params"][0]][SECOND_MOMENT].shape) for o in runs]
    assert shapes == [(24, 1), (1, 24), (8, 1)]


def run(**options: Any) -> tuple[nn.Module, fv.optim.NorMuon]:
    module = Bag({**SHAPES, "bias": (5,)})
    return module, fv.optim.NorMuon(fv.VarStore.from_module(module), lr=0.02, **options)


def fill(module: nn.Module, step: int) -> None:
    made = torch.Generator().manual_seed(step)
    for param in module.parameters():
        param.grad = torch.randn(param.shape, generator=made)


def kept(optimizer: Any) -> list[dict[str, Tensor]]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [{name: x.clone() for name, x in dict(optimizer.state[param]).items()} for param in params]


def assert_equal_states(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> None:
    assert [set(state) for state in one] == [set(state) for state in other]
    assert all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


@pytest.mark.parametrize("grads", ["gather", "views"])
def test_a_skipped_step_moves_nothing(grads: str) -> None:
    module = Bag(SHAPES)
    optimizer = fv.optim.NorMuon(fv.VarStore.from_module(module, grads=grads), muon="*", skip_nonfinite=True)
    give(0, module)
    optimizer.step()
    before, values = kept(optimizer), optimizer.store.values.clone()
    assert all(SECOND_MOMENT in state for state in before)
    for inf, scaled in ((math.inf, False), (1.0, True)):
        optimizer.zero_grad()
        give(1, module)
        module.get_parameter("odd").grad[0, 0] = inf
        if scaled:
            optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(8.0)
        optimizer.step()
    assert optimizer.skipped.item() == 2
    assert torch.equal(optimizer.store.values, values)
    assert_equal_states(kept(optimizer), before)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not torch.equal(kept(optimizer)[0][SECOND_MOMENT], before[0][SECOND_MOMENT])


def test_masked_rows_stay() -> None:
    module, optimizer = run()
    mask = torch.ones(48, 1, dtype=torch.bool)
    mask[5:9] = False
    optimizer.store.set_trainable_mask("tall", mask)
    first = module.get_parameter("tall").detach().clone()
    for step in range(2):
        fill(module, step)
        module.get_parameter("tall").grad[5:9] = math.nan
        optimizer.step()
    now = module.get_parameter("tall").detach()
    assert torch.equal(now[5:9], first[5:9])
    assert bool(now.isfinite().all())
    assert bool((now != first)[:5].all())
    moment = optimizer.state[module.get_parameter("tall")][SECOND_MOMENT]
    assert not moment[5:9].any()
    assert bool((moment[:5] > 0).all())


@pytest.mark.parametrize("way", ["file", "deepcopy", "state_dict"])
def test_a_run_is_gone_on_with(way: str, tmp_path: Path) -> None:
    module, optimizer = run(max_norm=1.0)
    for step in range(2):
        fill(module, step)
        optimizer.step()
    if way == "deepcopy":
        again, _, other = copy.deepcopy((module, optimizer.store, optimizer))
    else:
        again, other = run(max_norm=1.0)
        if way == "file":
            optimizer.store.save(tmp_path / "run.safetensors", optimizer)
            other.store.load(tmp_path / "run.safetensors", other)
        else:
            again.load_state_dict(module.state_dict())
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_equal_states(kept(optimizer), kept(other))
    for one, net in ((optimizer, module), (other, again)):
        fill(net, 2)
        one.step()
    assert all(map(torch.equal, module.parameters(), again.parameters()))


def test_what_is_written_into_the_state_is_stepped_on() -> None:
    """And what is deleted begins anew; a tensor of another shape is refused before anything is stepped."""
    module, optimizer = run()
    fill(module, 0)
    optimizer.step()
    fresh, other = run()
    wide, odd = (module.get_parameter(name) for name in ("wide", "odd"))
    optimizer.state[wide][SECOND_MOMENT].fill_(100.0)
    del optimizer.state[odd]
    for one, net in ((optimizer, module), (other, fresh)):
        fill(net, 1)
        one.step()
    assert bool((optimizer.state[wide][SECOND_MOMENT] > 94.0).all())
    began = other.state[fresh.get_parameter("odd")]
    assert_equal_states([dict(optimizer.state[odd])], [dict(began)])
    optimizer.state[wide][SECOND_MOMENT] = torch.zeros(3)
    before = optimizer.store.values.clone()
    with pytest.raises(ValueError, match=f"{SECOND_MOMENT}' of variable 'wide' has shape"):
        optimizer.step()
    assert torch.equal(optimizer.store.values, before)


def test_states_that_cannot_be_are_refused() -> None:
    """Muon's has no second moment; one of another shape; nothing changes."""
    module, optimizer = run()
    fill(module, 0)
    optimizer.step()
    before, saved = kept(optimizer), copy.deepcopy(optimizer.state_dict())
    shape, missing = copy.deepcopy(saved), copy.deepcopy(saved)
    shape["state"][0][SECOND_MOMENT] = torch.zeros(48)
    missing["state"][0].pop(SECOND_MOMENT)
    for wrong, message in ((shape, "has shape"), (missing, f"no '{SECOND_MOMENT}'")):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(wrong)
    assert_equal_states(kept(optimizer), before)


@pytest.mark.parametrize("kind", [fv.optim.Muon, fv.optim.NorMuon], ids=lambda kind: kind.__name__)
def test_order_and_neighbors_show_in_no_bit(kind: Any) -> None:
    """Whatever lies between, and however many are one batch."""
    found = []
    for names, others in ((list(SHAPES), {}), (list(SHAPES)[::-1], {"bias": (5,), "more": (48, 16)})):
        module = Bag({**{name: SHAPES[name] for name in names[:3]}, **others, **{n: SHAPES[n] for n in names[3:]}})
        params = [module.get_parameter(name) for name in names]
        made = {name: torch.Generator().manual_seed(len(name) + SHAPES[name][0]) for name in SHAPES}
        with torch.no_grad():
            for name in SHAPES:
                module.get_parameter(name).copy_(torch.randn(SHAPES[name], generator=made[name]))
        optimizer = kind(params, lr=0.05)
        for _ in range(2):
            for name in SHAPES:
                module.get_parameter(name).grad = torch.randn(SHAPES[name], generator=made[name])
            optimizer.step()
        states = [dict(optimizer.state[module.get_parameter(name)]) for name in SHAPES]
        found.append([*(module.get_parameter(n).detach() for n in SHAPES), *(x for s in states for x in s.values())])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("beta2", [-0.1, 1.0])
def test_a_beta_out_of_range(beta2: float) -> None:
    with pytest.raises(ValueError, match="beta2"):
        fv.optim.NorMuon([nn.Parameter(torch.ones(2, 2))], beta2=beta2)


@pytest.mark.parametrize("kind", [fv.optim.Muon, fv.optim.NorMuon], ids=lambda kind: kind.__name__)
def test_edited_numbers_of_products_are_followed(kind: Any) -> None:
    """How many iterations, and how a matrix is split: plans that were made for others are made anew."""
    values = []
    for edited in (False, True):
        module = Bag({"a": (12, 4)})
        fv.VarStore.from_module(module)
        optimizer = kind(module.parameters(), lr=0.1, momentum=0.0, **({} if edited else {"ns_steps": 2}))
        fill(module, 0)
        if edited:
            with torch.no_grad():
                first = module.get_parameter("a").clone()
                optimizer.param_groups[0]["lr"] = 0.0
                optimizer.step()  # plans are made
                assert torch.equal(module.get_parameter("a"), first)
            optimizer.state[module.get_parameter("a")].clear()
            optimizer.param_groups[0].update(lr=0.1, ns_steps=2)
        optimizer.step()
        values.append(module.get_parameter("a").detach().clone())
    assert torch.equal(*values)
