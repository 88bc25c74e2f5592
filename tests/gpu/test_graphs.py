"""A captured step replays to the same bits that eager steps give."""

from __future__ import annotations

import pytest
import torch

import flatvars as fv
from tests.support.stores import SHAPES, store_of
from tests.support.tolerances import assert_same_bits

MAKERS = {
    "sgd": lambda store: fv.optim.SGD(store, lr=0.1, momentum=0.9),
    "adamw": lambda store: fv.optim.AdamW(store, lr=0.01, weight_decay=0.1),
    "adamw-clip": lambda store: fv.optim.AdamW(store, lr=0.01, max_norm=0.5),
    "adamw-skip": lambda store: fv.optim.AdamW(store, lr=0.01, max_norm=0.5, skip_nonfinite=True),
    "lion": lambda store: fv.optim.Lion(store, lr=0.01),
}
WARMUP, REPLAYS = 3, 4


def trainer(make, device):
    """A store, its optimizer and static gradients; the same for the same seed."""
    torch.manual_seed(7)
    store = store_of(device=device)
    grads = [torch.zeros(shape, device=device) for shape in SHAPES]
    for variable, grad in zip(store.trainable_variables(), grads, strict=True):
        variable.param.grad = grad
    return store, make(store), grads


def fill(grads, k):
    for i, grad in enumerate(grads):
        grad.fill_(0.1 * (k + 1) - 0.05 * i)


def warm_up(optimizer, grads):
    """On a stream of its own, as torch's notes on capturing ask for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for k in range(WARMUP):
            fill(grads, k)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)


def capture(optimizer):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


def streams_of(store, optimizer):
    states = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    return [store.values, *(state for state in states if state.dim())]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_replay_equals_eager(make, device):
    store, optimizer, grads = trainer(make, device)
    warm_up(optimizer, grads)
    graph = capture(optimizer)
    eager_store, eager, eager_grads = trainer(make, device)
    warm_up(eager, eager_grads)
    assert_same_bits(store.values, eager_store.values)  # a capture runs nothing
    for k in range(REPLAYS):
        fill(grads, WARMUP + k)
        fill(eager_grads, WARMUP + k)
        graph.replay()
        eager.step()
    for actual, expected in zip(streams_of(store, optimizer), streams_of(eager_store, eager), strict=True):
        assert_same_bits(actual, expected)


def test_step_counts_live_in_the_graph(device):
    store, optimizer, grads = trainer(MAKERS["adamw"], device)
    warm_up(optimizer, grads)
    graph = capture(optimizer)
    for _ in range(REPLAYS):
        graph.replay()
    steps = [state["step"].item() for state in optimizer.state_dict()["state"].values()]
    assert steps == [WARMUP + REPLAYS] * len(store)


def test_a_schedule_reaches_the_replay(device):
    store, optimizer, grads = trainer(MAKERS["sgd"], device)
    optimizer.param_groups[0]["momentum"] = 0.5
    warm_up(optimizer, grads)
    graph = capture(optimizer)
    fill(grads, 0)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.upload_hyperparameters()
    before = store.values.clone()
    graph.replay()
    assert_same_bits(store.values, before)
    optimizer.param_groups[0]["lr"] = 0.3
    optimizer.upload_hyperparameters()
    graph.replay()
    assert not torch.equal(store.values, before)


def test_a_skipped_replay_changes_nothing(device):
    store, optimizer, grads = trainer(MAKERS["adamw-skip"], device)
    warm_up(optimizer, grads)
    graph = capture(optimizer)
    before = store.values.clone()
    grads[1][5] = torch.nan
    graph.replay()
    assert_same_bits(store.values, before)
    assert optimizer.skipped.item() == 1


def point(store, grads):
    for variable, grad in zip(store.trainable_variables(), grads, strict=True):
        variable.param.grad = grad


def test_eager_steps_between_replays(device):
    """Each reads its own gradients: neither the graph's addresses nor the eager ones may stay behind in the table."""
    store, optimizer, grads = trainer(MAKERS["sgd"], device)
    warm_up(optimizer, grads)
    graph = capture(optimizer)
    eager_store, eager, eager_grads = trainer(MAKERS["sgd"], device)
    warm_up(eager, eager_grads)
    other = [torch.full_like(grad, 2.0) for grad in grads]
    for replayed in (True, False, True, False, False, True):
        if replayed:
            graph.replay()
            point(eager_store, eager_grads)
        else:
            point(store, other)
            optimizer.step()
            point(eager_store, other)
        eager.step()
        assert_same_bits(store.values, eager_store.values)


def test_capture_among_other_gradients(device):
    """The graph is captured from gradients that were not those of the warm-up."""
    store, optimizer, grads = trainer(MAKERS["adamw-clip"], device)
    warm_up(optimizer, grads)
    static = [torch.full_like(grad, 0.5) for grad in grads]
    point(store, static)
    graph = capture(optimizer)
    eager_store, eager, eager_grads = trainer(MAKERS["adamw-clip"], device)
    warm_up(eager, eager_grads)
    point(eager_store, static)
    for _ in range(REPLAYS):
        graph.replay()
        eager.step()
    assert_same_bits(store.values, eager_store.values)


def test_accumulate_and_step_in_one_graph(device):
    """Two micro-batches, gathered one after the other from addresses of their own."""

    def cycle(store, optimizer, grads):
        store.accumulate(grads, scale=0.5)
        store.accumulate([grad * 2.0 for grad in grads], scale=0.5)
        optimizer.step()

    results = []
    for captured in (True, False):
        store, optimizer, grads = trainer(MAKERS["adamw-clip"], device)
        fill(grads, 1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                cycle(store, optimizer, grads)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                cycle(store, optimizer, grads)
        for k in range(REPLAYS):
            fill(grads, k)
            graph.replay() if captured else cycle(store, optimizer, grads)
        results.append(store.values)
    assert_same_bits(*results)


def test_changed_numbers_are_not_frozen_into_a_graph(device):
    _, optimizer, grads = trainer(MAKERS["adamw-clip"], device)
    warm_up(optimizer, grads)
    optimizer.param_groups[0]["lr"] = 0.7
    with pytest.raises(fv.FlatvarsError, match="upload_hyperparameters"):
        capture(optimizer)


def scheduled_run(device, captured):
    """Forward, backward and step of a model under OneCycle, which moves lr and the first beta; in one graph or not."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 4)).to(device)
    store = fv.VarStore.from_module(model)
    optimizer = fv.optim.AdamW(store, lr=0.01, max_norm=0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=40)
    inputs = torch.randn(8, 16, device=device)

    def whole_step():
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            whole_step()
            schedule.step()
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.upload_hyperparameters()
    graph = torch.cuda.CUDAGraph()
    if captured:
        optimizer.zero_grad()
        with torch.cuda.graph(graph):
            whole_step()
    for k in range(8):
        inputs.copy_(torch.randn(8, 16, generator=torch.Generator().manual_seed(k)))
        optimizer.upload_hyperparameters()
        graph.replay() if captured else whole_step()
        schedule.step()
    return streams_of(store, optimizer)


def test_a_scheduler_goes_on_after_capture(device):
    for actual, expected in zip(scheduled_run(device, True), scheduled_run(device, False), strict=True):
        assert_same_bits(actual, expected)
