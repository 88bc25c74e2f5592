"""Checks of gradients that are averaged while a backward pass runs: every step beside that of a store that does not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import flatvars as fv
from flatvars.optim.base import Optimizer

from .launch import World, on
from .steps import DTYPES, FORMATS, SHAPES, Net, adamw, gradients

CAP = 0.05  # MiB: the largest variable is larger, others share a bucket


def warm() -> None:
    """Compiles what the checks of steps have not: launches over masked elements."""
    for mode in ("gather", "views"):
        net = Net(dtypes=DTYPES)
        store = fv.VarStore.from_module(net, grads=mode)
        mask_elements(store)
        opt = adamw(store, max_norm=0.5)
        for _ in range(2):
            backward(net, gradients(0, 0))
            store.accumulate()
        opt.step()


def mask_elements(store: fv.VarStore) -> None:
    mask = torch.rand(SHAPES[5], generator=torch.Generator().manual_seed(5)) < 0.5
    store.set_trainable_mask("p5", mask)


class Pair:
    """One model twice, with its optimizer: averaged during the backward pass, and in the step.

    Args:
        make: An optimizer of a store.
        options: Of both stores.
    """

    def __init__(self, world: World, make: Callable[[Any], Optimizer] = adamw, **options: Any) -> None:
        self.world = world
        dtypes = options.pop("dtypes", DTYPES[:1])
        self.nets = [Net(dtypes=dtypes), Net(dtypes=dtypes)]
        self.stores = [
            fv.VarStore.from_module(net, mesh=world.mesh, bucket_cap_mb=cap, **options)
            for net, cap in zip(self.nets, (CAP, None), strict=True)
        ]
        self.opts = [make(store) for store in self.stores]

    @property
    def store(self) -> fv.VarStore:
        return self.stores[0]

    @property
    def opt(self) -> Optimizer:
        return self.opts[0]

    def block(self, k: int, scaler: Any = None) -> Any:
        return nullcontext() if k else self.store.last_backward(scaler)

    def backward(self, grads: list[Tensor | None], last: bool = True, scalers: Any = (None, None)) -> None:
        for k, net in enumerate(self.nets):
            with self.block(k, scalers[k]) if last else nullcontext():
                backward(net, grads, scalers[k])

    def step(self) -> None:
        for opt in self.opts:
            opt.step()
            opt.zero_grad()

    def assert_same(self, about: str) -> None:
        """Values and states, bit for bit."""
        for p, q in zip(*(net.parameters() for net in self.nets), strict=True):
            assert torch.equal(p, q), about
        mine, truth = (opt.capture().streams for opt in self.opts)
        assert mine.keys() == truth.keys()
        for key, stream in truth.items():
            for a, b in zip((mine[key].buffer, *mine[key].beside), (stream.buffer, *stream.beside), strict=True):
                assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), f"{about}: {key}"


def backward(net: nn.Module, grads: list[Tensor | None], scaler: Any = None) -> None:
    """Gives parameters these gradients, by autograd; parameters without one are no part of the graph."""
    pairs = [(p, g) for p, g in zip(net.parameters(), grads, strict=True) if g is not None and p.requires_grad]
    loss = sum(((p * g.to(p.dtype)).float().sum() for p, g in pairs), torch.zeros((), requires_grad=True))
    (loss if scaler is None else scaler.scale(loss)).backward()


# Bits -----------------------------------------------------------------------------------------------------------------


def check_bits_are_those_of_a_step_that_averages(world: World) -> None:
    """None on one rank only and on all, several dtypes, frozen and masked variables, clipping or not."""
    absent = ((0, 1), (-1, 4)), (), ((world.size - 1, 0), (-1, 5))
    for mode, clip in itertools.product(("gather", "views"), (None, 0.5)):
        pair = Pair(world, lambda store, clip=clip: adamw(store, max_norm=clip), grads=mode, dtypes=DTYPES)
        for store in pair.stores:
            store.freeze("p4")
            mask_elements(store)
        for step, missing in enumerate(absent):
            pair.backward(gradients(world.rank, step, missing))
            pair.step()
            pair.assert_same(f"{mode}, clip {clip}, step {step}")
        pair.store.check()


def check_micro_batches_before_the_last(world: World) -> None:
    """Added up by autograd, or by the store, or both; and steps without a block."""
    for mode in ("gather", "views"):
        pair = Pair(world, lambda store: adamw(store, max_norm=0.5), grads=mode)
        for step, taken in enumerate(("none", "some", "all")):
            pair.backward(gradients(world.rank, 10 * step, ((0, 2),)), last=False)
            if taken != "none":
                for store in pair.stores:
                    store.accumulate()
            pair.backward(gradients(world.rank, 10 * step + 1, ((-1, 2), (1, 4))), last=taken != "all")
            pair.step()
            pair.assert_same(f"{mode}, taken by accumulate: {taken}")


@on(2)
def check_a_block_on_one_rank_alone(world: World) -> None:
    """The messages are the same, also where steps have more to say, as after freezing."""
    for mode in ("gather", "views"):
        pair = Pair(world, lambda store: adamw(store, max_norm=0.5), grads=mode)
        for step in range(3):
            for store in pair.stores if step == 1 else ():
                store.freeze("p5")
            pair.backward(gradients(world.rank, step, ((1, 0),)), last=step % 2 == world.rank)
            pair.step()
            pair.assert_same(f"{mode}, step {step}")


@on(2)
def check_what_a_step_has_used_is_no_gradient(world: World) -> None:
    """What lay in the flat buffer, where averages are now; what lies in `.grad` is stepped again, as always."""
    for mode, gathered in (("gather", True), ("gather", False), ("views", False)):
        pair = Pair(world, grads=mode)
        for store in pair.stores if gathered else ():
            pair.backward(gradients(world.rank, 1), last=False)
            store.accumulate()
        pair.backward(gradients(world.rank, 0))
        for opt in pair.opts:
            opt.step()
        pair.assert_same(f"{mode}, gathered {gathered}")
        kept = mode == "gather" and not gathered
        assert all((v.grad is not None) is kept for v in pair.store.trainable_variables()), (mode, gathered)
        before = pair.store.values.clone()
        pair.opt.step()
        assert torch.equal(pair.store.values, before) is not kept


@on(2)
def check_nan_on_one_rank(world: World) -> None:
    for mode in ("gather", "views"):
        pair = Pair(world, lambda store: adamw(store, skip_nonfinite=True), grads=mode)
        for step in range(2):
            grads = gradients(world.rank, step)
            if step == 0 and world.rank == 0:
                grads[1][3, 5] = torch.nan
            pair.backward(grads)
            pair.step()
            pair.assert_same(f"{mode}, step {step}")
        assert int(pair.opt.skipped) == 1


def in_groups(store: fv.VarStore) -> Optimizer:
    return fv.optim.AdamW([{"params": "p[0-2]", "lr": 0.1}, {"params": "*"}], store=store)


@on(2)
def check_formats_groups_and_matrices(world: World) -> None:
    kinds: list[tuple[Callable[[Any], Optimizer], dict[str, Any]]] = [
        (lambda store: adamw(store, state_format=FORMATS[1][1]), FORMATS[1][0]),
        (adamw, {"dtype": torch.bfloat16, "values": "stochastic"}),
        (fv.optim.Muon, {}),
        (fv.optim.Adafactor, {}),
        (lambda store: fv.optim.Prodigy(store, d0=0.01), {"grads": "views"}),
        (in_groups, {"grads": "views"}),
    ]
    for k, (make, options) in enumerate(kinds):
        pair = Pair(world, make, **options)
        for step in range(2):
            pair.backward(gradients(world.rank, step, ((0, 1),)))
            pair.step()
            pair.assert_same(f"kind {k}, step {step}")


@on(2)
def check_a_scaler_with_scales_that_differ(world: World) -> None:
    for mode in ("gather", "views"):
        pair = Pair(world, lambda store: adamw(store, max_norm=0.5), grads=mode)
        scalers = [torch.amp.GradScaler("cpu", init_scale=2.0 ** (4 + world.rank)) for _ in pair.opts]
        for step in range(3):
            grads = gradients(world.rank, step)
            if step == 1 and world.rank == 1:
                grads[0][0, 0] = torch.inf
            pair.backward(grads, scalers=scalers)
            for opt, scaler in zip(pair.opts, scalers, strict=True):
                scaler.step(opt)
                scaler.update()
                opt.zero_grad()
            pair.assert_same(f"{mode}, step {step}")
        assert int(pair.opt.skipped) == 1
        assert mode == "views" or scalers[0].get_scale() == scalers[1].get_scale()
