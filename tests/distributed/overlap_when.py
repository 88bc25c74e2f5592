"""Checks of when gradients are averaged, in which order, and of what memory it takes; `overlap.py` has the bits."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import flatvars as fv
from bench.overlap import Work, measure, table
from flatvars.gradients import overlap

from .launch import World, on
from .overlap import Pair, warm
from .steps import adamw, gradients

__all__ = ["warm"]


@contextmanager
def events(module: nn.Module) -> Iterator[list[str]]:
    """What happens: buckets that are sent, and layers that the backward pass has left."""
    found: list[str] = []
    held = overlap.Reduction

    class Noting(held):  # type: ignore[valid-type, misc]
        def __init__(self, piece: Tensor, owner: int, group: Any) -> None:
            found.append(f"{len(piece)} elements to {owner}")
            super().__init__(piece, owner, group)

    hooks = [
        layer.register_full_backward_hook(lambda *_, k=k: found.append(f"layer {k}")) for k, layer in enumerate(module)
    ]
    overlap.Reduction = Noting  # type: ignore[misc]
    try:
        yield found
    finally:
        overlap.Reduction = held  # type: ignore[misc]
        for hook in hooks:
            hook.remove()


def layers() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))


@on(2)
def check_messages_start_inside_of_the_backward_pass(world: World) -> None:
    for mode in ("gather", "views"):
        model = layers()
        store = fv.VarStore.from_module(model, mesh=world.mesh, bucket_cap_mb=0.02, grads=mode)
        opt = adamw(store)
        with events(model) as found:
            with store.last_backward():
                model(torch.randn(5, 64, requires_grad=True)).sum().backward()
            inside = len(found)
            opt.step()
        sent = [event for event in found if "elements" in event]
        assert len(sent) >= 5
        assert found.index(sent[1]) < found.index("layer 0"), found
        assert len(found) == inside, "the step has nothing more to send"
        opt.zero_grad()


@on(2)
def check_the_order_is_one_on_all_ranks(world: World) -> None:
    """Rank 1 ends with its variables in another order than rank 0, and has none of some."""
    model = layers()
    store = fv.VarStore.from_module(model, mesh=world.mesh, bucket_cap_mb=0.02)
    opt = adamw(store)
    with events(model) as found:
        with store.last_backward():
            used = model if world.rank == 0 else nn.Sequential(model[4], model[0], model[2])
            used(torch.randn(5, 64)).sum().backward()
        opt.step()
    everyone = [None, None]
    dist.all_gather_object(everyone, [event for event in found if "elements" in event])
    assert everyone[0] == everyone[1]
    opt.zero_grad()


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that was made in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:
                self.nbytes = max(self.nbytes, made.untyped_storage().nbytes())
        return out


@on(2)
def check_memory(world: World) -> None:
    """No second buffer of all gradients, nor of a rank's range of them."""
    for mode, cap in itertools.product(("gather", "views"), (0.02, None)):
        model = layers()
        store = fv.VarStore.from_module(model, mesh=world.mesh, bucket_cap_mb=cap, grads=mode)
        opt = adamw(store)
        x = torch.randn(5, 64)
        for step in range(2):
            with Largest() as largest:
                with store.last_backward() if cap else nullcontext():
                    model(x).sum().backward()
                opt.step()
            opt.zero_grad()
            if step == 0:  # states and buffers are made
                continue
        share = store.regions[0].trainable_numel * 4 // 2
        assert largest.nbytes < share / 2, (mode, largest.nbytes, share)
        assert bool(opt._divided._grads) is (cap is None), "averages of buckets lie in the flat gradients"


class Backwards(nn.Sequential):
    """Layers that are used from the last to the first, and one that is not used."""

    def __init__(self) -> None:
        super().__init__(*layers(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[-2::-1]:
            x = layer(x)
        return x


@on(2)
def check_gradients_that_were_stepped_can_go(world: World) -> None:
    """On a GPU, what is known of an exchange is kept for a step: its gradients are not."""
    pair = Pair(world)
    pair.backward(gradients(world.rank, 0))
    kept = pair.store._gradients.overlap._exchange
    lying = weakref.ref(pair.nets[0].p1.grad)
    pair.step()
    assert kept.told() is None
    assert lying() is None


@on(2)
def check_an_order_of_other_buckets_is_not_learned(world: World) -> None:
    """On a GPU it is read a step later, when variables may be frozen and the buckets others."""
    pair = Pair(world)
    pair.backward(gradients(world.rank, 0))
    pair.step()
    for store in pair.stores:
        store.freeze("p5")
    for step in (1, 2):
        pair.backward(gradients(world.rank, step))
        pair.store._gradients.overlap.learn([1.0])
        pair.step()
        pair.assert_same(f"step {step}")


@on(2)
def check_the_order_is_learned(world: World) -> None:
    """From the first backward pass of the first rank: memory says nothing of when a layer is reached."""
    torch.manual_seed(world.rank)
    for mode in ("gather", "views"):
        models = [Backwards(), Backwards()]
        stores = [
            fv.VarStore.from_module(model, mesh=world.mesh, bucket_cap_mb=cap, grads=mode)
            for model, cap in zip(models, (0.02, None), strict=True)
        ]
        opts = [adamw(store, max_norm=0.1) for store in stores]
        early = []
        for _ in range(3):
            x = torch.randn(5, 64, requires_grad=True)
            with events(models[0]) as found:
                with stores[0].last_backward():
                    models[0](x).sum().backward()
                opts[0].step()
            models[1](x).sum().backward()
            opts[1].step()
            for opt in opts:
                opt.zero_grad()
            assert all(torch.equal(p, q) for p, q in zip(*(m.parameters() for m in models), strict=True))
            early.append(sum("elements" in event for event in found[: found.index("layer 5")]))
            sent = [event for event in found if "elements" in event]
            everyone: list[Any] = [None, None]
            dist.all_gather_object(everyone, sent)
            assert everyone[0] == everyone[1]
        assert early[0] == 0
        assert min(early[1:]) >= 4, early


@on(2)
def check_the_bench_of_it(world: World) -> None:
    ways = measure(Work(width=8, depth=2, batch=4, rounds=2, grads="gather", caps=(0.001,)), world.mesh)
    assert [len(way.all) for way in ways] == [2, 2, 2]
    first, *others = (list(way.model.parameters()) for way in ways)
    assert all(torch.equal(p, q) for other in others for p, q in zip(first, other, strict=True))
    assert "0.001 MiB, in the block" in table(ways)
