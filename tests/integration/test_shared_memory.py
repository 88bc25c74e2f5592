"""store.share_memory_(): one buffer for several processes, as for Hogwild training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.memory.layout import plan_layout
from flatvars.memory.spec import VarSpec
from flatvars.memory.streams import Stream

from .training import adopted, assert_same, backward, states, values


def train_in_a_child(module: nn.Module) -> None:
    """Runs in another process, where the parameters lie in no store; writes what the parent must see."""
    torch.set_num_threads(1)
    for adopt in (fv.VarStore.from_module, lambda module: fv.optim.SGD(module.parameters())):
        with pytest.raises(fv.SpecError, match=r"other processes may share.*deepcopy"):  # it would train a copy
            adopt(module)
    assert all(param.is_shared() for param in module.parameters())
    with torch.no_grad():
        for param in module.parameters():
            param.fill_(param.numel())


@pytest.mark.row("P-A-10")
@pytest.mark.process
def test_another_process_writes_the_values_of_the_store() -> None:
    module, store, opt = adopted()
    store.share_memory_()
    store.check()
    child = torch.multiprocessing.get_context("spawn").Process(target=train_in_a_child, args=(module,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert torch.equal(module.weight.detach(), torch.full((2, 3), 6.0))
    assert torch.equal(store["bias"].value, torch.full((2,), 2.0))
    assert store.values.sum() == 6 * 6 + 2 * 2
    backward(module)
    opt.step()
    assert not torch.equal(module.weight.detach(), torch.full((2, 3), 6.0))
    store.check()


def step_in_a_child(store: fv.VarStore, opt: torch.optim.Optimizer) -> None:
    """Never reached with shared memory: what it steps would be a copy."""
    store["weight"].param.grad = torch.ones(2, 3)
    opt.step()


@pytest.mark.process
@pytest.mark.parametrize("mode", ["gather", "views"])
def test_a_shared_store_is_not_copied_into_another_process(mode: str) -> None:
    module, store, opt = adopted(mode)
    before = values(module)
    context = torch.multiprocessing.get_context("spawn")
    store.share_memory_()
    for sent in ((store, opt), (store, store)):
        with pytest.raises(fv.FlatvarsError, match=r"shares its memory.*send the module"):
            context.Process(target=step_in_a_child, args=sent).start()
    assert_same(values(module), before)
    copy.deepcopy((module, store, opt))  # copies within a process are meant to be copies


def test_a_modules_own_call_is_noticed() -> None:
    module, store, opt = adopted()
    module.share_memory()
    backward(module)
    with pytest.raises(fv.AliasError, match=r"call store\.share_memory_\(\)"):
        opt.step()
    store.restore_aliases()
    store.share_memory_()
    opt.step()
    assert module.weight.is_shared()


@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("steps", [0, 2])
def test_training_goes_on_bit_for_bit(steps: int, mode: str) -> None:
    (module, store, opt), (twin, _, other) = adopted(mode, steps), adopted(mode, steps)
    store.share_memory_()
    module.share_memory()  # no more to do
    assert all(param.is_shared() for param in module.parameters())
    for net, optimizer in ((module, opt), (twin, other)):
        backward(net)
        optimizer.step()
    assert_same(values(module), values(twin))
    assert_same(states(opt), states(other))
    store.check()


def test_a_store_may_grow_afterwards() -> None:
    """The new buffer is shared as well, for the processes that start later; values and state stay."""
    module, store, opt = adopted(steps=2)
    store.share_memory_()
    before, before_states = values(module), states(opt)
    store.add("later", torch.ones(3))
    assert len(store.values) == 96  # asking carves
    assert_same(values(module), before)
    assert_same(states(opt), before_states)
    for name in (*dict(module.named_parameters()), "later"):
        assert store[name].param.is_shared(), name
        assert store[name].param.untyped_storage().data_ptr() == store.values.untyped_storage().data_ptr(), name
    store.double()
    assert module.weight.is_shared()
    store.check()


def test_pieces_of_a_shared_stream_are_plain_views() -> None:
    """Another process is told of a storage by its first address: one of a piece alone is not known on a GPU."""
    span = plan_layout([VarSpec("a", (2,), torch.float32, (1,)), VarSpec("b", (3,), torch.float32, (1,))]).spans[1]
    buffer = torch.zeros(64)
    shared, own = Stream(buffer, shared=True).piece(span), Stream(buffer).piece(span)
    assert shared.data_ptr() == own.data_ptr()
    assert shared.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
    assert own.untyped_storage().data_ptr() == own.data_ptr() != buffer.data_ptr()


def test_a_shared_module_is_not_taken_out_of_shared_memory() -> None:
    """Of whoever shares it: a process that has it already would train on in memory that this one does not see."""
    shared = nn.Linear(3, 2).share_memory()
    address = shared.weight.data_ptr()
    store = fv.VarStore()
    for adopt in (
        fv.VarStore.from_module,
        lambda module: store.add("weight", module.weight),
        lambda module: fv.optim.SGD(module.parameters()),
    ):
        with pytest.raises(fv.SpecError, match=r"other processes may share.*share_memory_\(\).*deepcopy"):
            adopt(shared)
    assert shared.weight.data_ptr() == address
    assert len(store) == 0
    store.add("copied", shared.weight.detach())  # of what is no leaf to be trained, the store takes a copy anyway
    module = copy.deepcopy(shared)
    store = fv.VarStore.from_module(module)
    opt = fv.optim.SGD(store, lr=0.1)
    before = module.weight.detach().clone()
    backward(module)
    opt.step()
    assert not torch.equal(module.weight, before)
    store.check()
