"""Tensors looked at many at once tell what Python tells of each, and whatever is otherwise is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from flatvars.gradients.repeats import HeldViews
from flatvars.kernels import looks
from flatvars.kernels.cpu import layouts
from flatvars.kernels.cpu import looks as compiled
from flatvars.kernels.looks import FEWEST, Looks, are_same

COUNT = FEWEST + 3


def parameters() -> list[nn.Parameter]:
    """All but the third with a gradient; the last two have no axis, and no element."""
    params = [nn.Parameter(torch.zeros(2, 3)) for _ in range(COUNT - 2)]
    params += [nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(0, 4))]
    for k, param in enumerate(params):
        param.grad = None if k == 2 else torch.ones_like(param)
    return params


def test_they_work_with_this_torch() -> None:
    assert looks._looks() is not None


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (layouts, "HEAD", 8),
        (layouts, "ITEMS", 32),
        (layouts, "WORDS", 2),
        (compiled, "_GRAD", "no_such_function"),
        (layouts, "INLINE", 4),
        (compiled, "_COUNTER", "_Z7missingv"),
        (compiled, "_IS_NEG", "_Z7missingv"),
    ],
)
def test_a_torch_that_is_otherwise_is_not_asked(
    module: Any, name: str, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, wrong)
    assert compiled.load() is None


@pytest.mark.parametrize("asked", [True, False], ids=["memory", "python"])
def test_lists_are_the_same_by_identity(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks._looks() is not None
    if not asked:
        monkeypatch.setattr(looks, "FEWEST", COUNT + 1)
    params = parameters()  # that many are equal, and no two the same
    assert are_same(params, params[:])
    assert are_same([], [])
    assert not are_same(params, params[:-1])
    assert not are_same(params[:-1], params)
    for k in (0, COUNT // 2, COUNT - 1):
        assert not are_same(params, [*params[:k], nn.Parameter(params[k].detach()), *params[k + 1 :]])
    params.pop()
    assert are_same(params, list(params))


def test_rows_say_what_python_says() -> None:
    params = parameters()
    rows = Looks(params, of_grad=True).look()
    assert rows is not None
    for k, param in enumerate(params):
        if param.grad is None:
            assert (rows[k, 1], k) == (compiled.ABSENT, 2)
        else:
            address, axes, _, numel, *lengths = rows[k].tolist()
            assert (address, axes, numel) == (param.grad.data_ptr(), param.dim(), param.numel())
            assert lengths[: 2 * axes : 2] == list(param.grad.stride())
            assert lengths[1 : 2 * axes : 2] == list(param.grad.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0, 4), (3, 2, 5), (1, 2, 3, 4, 5), (1, 2, 1, 2, 1, 2)])
def test_rows_of_every_kind(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Also where libtorch is asked: of other dtypes, and of more axes than lie in a tensor itself."""
    whole = torch.zeros(COUNT, 3, *shape, dtype=dtype)
    grads = [each[1].transpose(0, -1) if shape else each[1] for each in whole]
    rows = Looks(grads, are_grads=True).look()
    assert rows is not None
    for row, grad in zip(rows.tolist(), grads, strict=True):
        assert (row[0], row[1], row[3]) == (grad.data_ptr(), grad.dim(), grad.numel())
        assert row[4 : 4 + 2 * grad.dim() : 2] == list(grad.stride())
        assert row[5 : 5 + 2 * grad.dim() : 2] == list(grad.shape)
    assert len({row[2] for row in rows.tolist()}) == 1


def test_where_things_lie_is_found_each_time() -> None:
    """Some bytes of a tensor are nobody's, and hold what was in memory before."""
    libraries = compiled._libraries()
    assert libraries is not None
    places = [
        compiled._address(libraries[which], name)
        for which, name in ((1, compiled._GRAD), (0, compiled._COUNTER), (0, compiled._SHIM[2]))
    ]
    kept, found = [], set()
    for k in range(60):
        kept = [*kept[k % 2 :: 2], torch.zeros(k + 1), torch.zeros(k + 1, 2, dtype=torch.bfloat16).T]
        found.add(layouts.fields(*places))
    assert len(found) == 1
    assert None not in found


def test_versions_are_counted_as_python_counts() -> None:
    params = parameters()
    with torch.inference_mode():
        without = [nn.Parameter(torch.zeros(2, 3)), *params]  # the first has no version, and is passed over
    before = [param._version for param in params]
    Looks(without).count()
    assert [param._version for param in params] == [version + 1 for version in before]
    torch.autograd.graph.increment_version(without)
    assert [param._version for param in params] == [version + 2 for version in before]


def move(params: list[nn.Parameter]) -> None:
    params[5].grad.data = torch.ones(2, 3)  # type: ignore[union-attr]


def drop(params: list[nn.Parameter]) -> None:
    params[5].grad = None


def appear(params: list[nn.Parameter]) -> None:
    params[2].grad = torch.ones(2, 3)


def transpose(params: list[nn.Parameter]) -> None:
    params[5].grad = torch.ones(3, 2).T


def narrow(params: list[nn.Parameter]) -> None:
    params[5].grad.data = torch.ones(2, 3, dtype=torch.bfloat16)  # type: ignore[union-attr]


def shrink(params: list[nn.Parameter]) -> None:
    params[5].grad.data = params[5].grad.data[:1]  # type: ignore[union-attr]


def thin(params: list[nn.Parameter]) -> None:
    params[5].grad = torch.ones(2, 3).to_sparse()


def negate(params: list[nn.Parameter]) -> None:
    params[-2].grad = torch.tensor(1j).conj().imag


def turn(params: list[nn.Parameter]) -> None:
    params[5].grad = torch._neg_view(torch.ones(2, 3))


def borrow(params: list[nn.Parameter]) -> None:
    """Its memory is another one's as well, until one of them is written."""
    BORROWED.append(torch._lazy_clone(params[5].grad))  # type: ignore[arg-type]


BORROWED: list[Tensor] = []


def swap(params: list[nn.Parameter]) -> None:
    other = nn.Parameter(torch.zeros(2, 3))
    other.grad = torch.ones(3, 2).T
    torch.utils.swap_tensors(params[5], other)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("change", [move, drop, appear, transpose, narrow, shrink, thin, negate, turn, swap, borrow])
def test_what_changed_is_seen(change: Callable[[list[nn.Parameter]], None]) -> None:
    params = parameters()
    seen = Looks(params, of_grad=True)
    seen.note()
    assert seen.unchanged()
    before = [param.grad for param in params]  # held, so that no memory is used again
    change(params)
    assert len(before) == len(params)
    assert not seen.unchanged()
    found = seen.moved()
    if change in (move, borrow):
        assert found is not None
        assert found[0]
        assert found[1][5] == params[5].grad.data_ptr()  # type: ignore[union-attr]
        again = seen.moved()
        assert again is not None
        assert not again[0]
    else:
        assert found is None
        assert seen.moved() is None  # nothing is noted any more


def test_few_tensors_and_those_of_other_classes_are_not_looked_at() -> None:
    class Own(nn.Parameter):
        pass

    own = [Own(torch.zeros(1)) for _ in range(COUNT)]
    for each in (Looks(parameters()[: FEWEST - 1]), Looks(own)):
        each.note()
        assert (each.look(), each.unchanged(), each.moved()) == (None, False, None)


@pytest.mark.parametrize("asked", [True, False], ids=["libtorch", "python"])
@pytest.mark.parametrize("change", [move, drop, transpose, borrow, None])
def test_views_are_there_or_not(
    change: Callable[[list[nn.Parameter]], None] | None, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not asked:
        monkeypatch.setattr(looks, "FEWEST", COUNT + 1)
    params = parameters()
    appear(params)
    views: list[Tensor] = [param.grad for param in params if param.grad is not None]
    held, versions = HeldViews(params, views), np.zeros(COUNT, dtype=np.int64)
    views[7].add_(1.0)
    if change is not None:
        change(params)
        assert not held.are_there(versions)
    else:
        assert held.are_there(versions)
        assert versions.tolist() == [view._version for view in views]
        assert held.are_there(versions.copy(), before=versions)
        assert not held.all_moved
        for view in views[:-1]:
            view.add_(1.0)
        assert held.are_there(versions.copy(), before=versions)
        assert not held.all_moved
        views[-1].add_(1.0)
        assert held.are_there(versions.copy(), before=versions)
        assert held.all_moved == asked  # Python does not look


@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("change", [move, drop, transpose, thin, turn])
def test_steps_go_on_as_torchs(change: Callable[[list[nn.Parameter]], None], mode: str) -> None:
    """Some steps of the same gradients, then one that is otherwise, and one more."""
    mine, theirs = parameters(), parameters()
    for params in (mine, theirs):
        for param in params:
            param.grad = None
    store = fv.VarStore.from_module(nn.ParameterList(mine), grads=mode)
    pairs = [(mine, fv.optim.SGD(store, lr=0.5)), (theirs, torch.optim.SGD(theirs, lr=0.5))]
    for turn in range(6):
        for params, optimizer in pairs:
            sum((param * (turn + k)).sum() for k, param in enumerate(params) if k != 2).backward()  # type: ignore[union-attr]
            if turn == 3:
                change(params)
            optimizer.step()
            optimizer.zero_grad()
    assert all(map(torch.equal, mine, theirs))
