"""Masked elements keep value and state bit for bit, and their gradient counts in no norm.

The state of a variable that begins is what its rule begins with, there too: it may train later."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support import reference
from tests.support.masks import MASKS
from tests.support.memory import in_poison
from tests.support.rig import Rig
from tests.support.rules import CASES, ONE_EACH
from tests.support.tolerances import assert_close, assert_norm, assert_same_bits

SHAPES = [(20,), (2060,), (7, 5), (3,), (33,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def masks_of(make, device, shapes=SHAPES):
    """The middle variable trains as a whole: it lies between masked ones."""
    return [None if i == 3 else make(shape).to(device) for i, shape in enumerate(shapes)]


def in_order(masks):
    return [None if mask is None else mask.reshape(-1) for mask in masks]


def poisoned(grads, masks, bad=math.nan):
    """The gradients with `bad` wherever they are masked."""
    return [
        grad if mask is None else torch.where(mask, grad, torch.full_like(grad, bad))
        for grad, mask in zip(grads, masks, strict=True)
    ]


def zeroed(grads, masks):
    return [
        None if grad is None else grad if mask is None else torch.where(mask, grad, torch.zeros_like(grad))
        for grad, mask in zip(grads, masks, strict=True)
    ]


def at_rest(rig, case):
    """What masked elements hold after a step, [numel] of each stream and variable: what they held before it.

    A variable that begins has no state yet, whatever lies in its memory: it holds what its rule begins with.
    """
    kept = [[span.clone() for span in rig.spans(guarded.stream)] for guarded in [rig.values, *rig.states]]
    row = rig.rule.row(case.group)
    for spans, start in zip(kept[1:], rig.rule.starts, strict=True):
        for i, steps in enumerate(rig.steps.tolist()):
            if start != -1 and steps == 0:
                spans[i] = kept[0][i].clone() if start == -2 else torch.full_like(spans[i], row[start])
    return kept


def check_step_beside_an_unmasked_twin(rig, masks, case, grads, **options):
    """One step of `rig`, beside one without masks from the same bits: masked elements rest, all others are equal."""
    twin = Rig(SHAPES, rig.dtype, rule=rig.rule, device=rig.device)
    twin.steps.copy_(rig.steps)
    for ours, theirs in zip(rig.own, twin.own, strict=True):
        theirs.copy_(ours)
    streams = [rig.values, *rig.states]
    for ours, theirs in zip(streams, [twin.values, *twin.states], strict=True):
        theirs.storage.copy_(ours.storage)
    before = at_rest(rig, case)
    rig.step(grads, [case.group], **options)
    twin.step(zeroed(grads, masks), [case.group], **options)
    for k, (ours, theirs) in enumerate(zip(streams, [twin.values, *twin.states], strict=True)):
        for i, (actual, expected) in enumerate(zip(rig.spans(ours.stream), twin.spans(theirs.stream), strict=True)):
            mask = in_order(masks)[i]
            kept = torch.ones_like(actual, dtype=torch.bool) if mask is None else mask
            assert_same_bits(actual[kept], expected[kept])
            assert_same_bits(actual[~kept], before[k][i][~kept])
    assert rig.steps.tolist() == twin.steps.tolist()
    for ours, theirs in zip(rig.own, twin.own, strict=True):
        assert_same_bits(ours, theirs)
    assert_norm(rig.norm, twin.norm.cpu(), rig.compute)
    rig.assert_clean()


# What is masked is no element of a variable to statistics: a twin with zeros in its place is another variable.
ALONE = [name for name in ONE_EACH if CASES[name].rule.statistics is None]


@pytest.mark.parametrize("name", ALONE)
def test_every_rule(name, device):
    case, masks = CASES[name], masks_of(MASKS["every-other"], device)
    rig = Rig(SHAPES, rule=case.rule, masks=masks, device=device)
    check_step_beside_an_unmasked_twin(rig, masks, case, poisoned(rig.random_grads(), masks))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1.0])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask(mask, bad, device):
    case, masks = CASES["amsgradw"], masks_of(MASKS[mask], device)
    rig = Rig(SHAPES, rule=case.rule, masks=masks, device=device)
    check_step_beside_an_unmasked_twin(rig, masks, case, poisoned(rig.random_grads(), masks, bad))


@pytest.mark.parametrize("options", [{"max_norm": 0.5}, {"max_norm": 0.5, "skip": True}], ids=["clip", "skip"])
@pytest.mark.parametrize(
    ("name", "dtype"), [*(("amsgradw", dtype) for dtype in DTYPES), ("momentum", torch.float32)], ids=str
)
def test_dtypes_clipping_and_skipping(name, dtype, options, device):
    """A masked NaN poisons no norm, and no step is skipped because of it."""
    case, masks = CASES[name], masks_of(MASKS["every-other"], device)
    rig = Rig(SHAPES, dtype, rule=case.rule, masks=masks, device=device)
    check_step_beside_an_unmasked_twin(rig, masks, case, poisoned(rig.random_grads(), masks), **options)
    assert rig.skipped.item() == 0
    assert rig.steps.tolist() == [1] * len(SHAPES)


@pytest.mark.parametrize("skip", [False, True])
def test_what_is_not_finite_elsewhere_still_counts(skip, device):
    case, masks = CASES["adamw"], masks_of(MASKS["every-other"], device)
    rig = Rig(SHAPES, rule=case.rule, masks=masks, device=device)
    grads = rig.random_grads()
    grads[1][0] = math.nan
    check_step_beside_an_unmasked_twin(rig, masks, case, grads, max_norm=1.0, skip=skip)
    assert math.isnan(rig.norm.item())
    assert rig.skipped.item() == skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_in_masked_values_keeps_its_bits(dtype, device):
    """A NaN that took the way through the rule's precision and back would come out as another."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    case, masks = CASES["adamw"], [MASKS["every-other"]((20,)).to(device)]
    rig = Rig([(20,)], dtype, rule=case.rule, masks=masks, device=device)
    odd = torch.tensor(-3, dtype=kind, device=device)  # a quiet NaN with a payload
    for guarded in (rig.values, *rig.states):
        guarded.stream[:20].view(kind)[~masks[0]] = odd
    rig.step(rig.random_grads(), [case.group])
    for guarded in (rig.values, *rig.states):
        assert bool((guarded.stream[:20].view(kind)[~masks[0]] == odd).all())
        assert bool(guarded.stream[:20][masks[0]].isfinite().all())


@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_untouched_variables_stay_as_they_are(name, device):
    case, masks = CASES[name], masks_of(MASKS["rows"], device)
    rig = Rig(SHAPES, rule=case.rule, masks=masks, device=device)
    grads = poisoned(rig.random_grads(), masks)
    grads[1] = grads[3] = None
    check_step_beside_an_unmasked_twin(rig, masks, case, grads, max_norm=1.0)
    assert rig.steps.tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 5.0])
def test_accumulate_stores_zeros_there(bad, source, device):
    """Also where the stream held something: gradients that came before the mask."""
    masks = masks_of(MASKS["every-other"], device)
    rig = Rig(SHAPES, torch.bfloat16, masks=masks, device=device)
    for span in rig.spans(rig.grads.stream):
        span.fill_(3.0)
    expected = [torch.zeros(span.shape) for span in rig.spans(rig.grads.stream)]
    for add in (False, True):
        grads = rig.random_grads(source)
        rig.accumulate([in_poison(grad) for grad in poisoned(grads, masks, bad)], 0.5, add=add)
        pairs = zip(expected, zeroed(grads, masks), strict=True)
        expected = [total + 0.5 * grad.float().flatten().cpu() for total, grad in pairs]
        for span, truth in zip(rig.spans(rig.grads.stream), expected, strict=True):
            assert_close(span, truth.double())
        assert_norm(rig.norm, reference.norm_of(expected), torch.float32)
        rig.assert_clean()


def test_accumulate_takes_old_numbers_back(device):
    """What a mask that was set in the middle of a cycle finds in the stream is no gradient any more."""
    masks = masks_of(MASKS["rows"], device)
    rig = Rig(SHAPES, masks=masks, device=device)
    for span in rig.spans(rig.grads.stream):
        span.fill_(torch.nan)
    for i, mask in enumerate(in_order(masks)):
        kept = slice(None) if mask is None else mask
        rig.spans(rig.grads.stream)[i][kept] = 1.0
    rig.accumulate([torch.ones(shape, device=device) for shape in SHAPES], add=True)
    for span, mask in zip(rig.spans(rig.grads.stream), in_order(masks), strict=True):
        assert_same_bits(span, torch.full_like(span, 2.0) if mask is None else 2.0 * mask)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, 0.5, math.inf])
@pytest.mark.parametrize("gathered", [False, True], ids=["scattered", "flat"])
def test_norms_of_variables(gathered, order, device):
    """Of gradients without masked elements, of values with them."""
    # The interpreter takes a third of a second for each maximum over a tile.
    shapes = SHAPES[:1] if order == math.inf else SHAPES
    masks = masks_of(MASKS["every-other"], device, shapes)
    rig = Rig(shapes, masks=masks, device=device)
    grads = rig.random_grads()
    bad = poisoned(grads, masks)
    if gathered:
        for span, grad in zip(rig.spans(rig.grads.stream), bad, strict=True):
            span.copy_(grad.flatten())
        sources = rig.plan.gathered(rig.grads.stream, [True] * len(shapes))
    else:
        sources = rig.plan.scattered(bad)
    norms = rig.plan.variable_norms(rig.values.stream, sources, order)
    values, truth = rig.copies(rig.values.stream), zeroed(grads, masks)
    for i in range(len(shapes)):
        assert_norm(norms[i, 0], reference.norm_of([values[i]], order), torch.float32, 1e-5)
        assert_norm(norms[i, 1], reference.norm_of([truth[i]], order), torch.float32, 1e-5)


def test_memory_order_of_a_transposed_variable(device):
    """The mask lies in the variable's memory order, not in that of its axes."""
    case, mask = CASES["sgd"], MASKS["rows"]((9, 4)).to(device)
    rig = Rig([(9, 4)], rule=case.rule, strides=[(1, 9)], masks=[mask], device=device)
    value = rig.values.stream.as_strided((9, 4), (1, 9))
    before = value.clone()
    rig.step([torch.ones(9, 4, device=device)], [case.group])
    moved = (value != before).all(dim=1)
    assert torch.equal(moved, mask[:, 0])
    assert bool((value == before)[~mask].all())


@pytest.mark.parametrize("name", [name for name in ONE_EACH if name not in ALONE])
def test_statistics_are_of_what_trains(name, device):
    """A masked variable steps as one that has its trained elements alone; what is masked may be NaN."""
    case = CASES[name]
    mask = torch.rand(500) < 0.6
    rig = Rig([(17,), (500,)], rule=case.rule, masks=[None, mask], device=device)
    few = Rig([(17,), (int(mask.sum()),)], rule=case.rule, device=device)
    chosen = [torch.ones(17, dtype=torch.bool), mask]
    for ours, theirs in zip([rig.values, *rig.states], [few.values, *few.states], strict=True):
        for target, span, which in zip(few.spans(theirs.stream), rig.spans(ours.stream), chosen, strict=True):
            target.copy_(span[which])
    grads = rig.random_grads()
    few.step([grad[which].clone() for grad, which in zip(grads, chosen, strict=True)], [case.group])
    before = rig.spans(rig.values.stream)[1][~mask].clone()
    rig.step(poisoned(grads, [None, mask]), [case.group])
    for span, expected, which in zip(rig.spans(rig.values.stream), few.spans(few.values.stream), chosen, strict=True):
        torch.testing.assert_close(span[which], expected, rtol=1e-5, atol=1e-6)
    assert_same_bits(rig.spans(rig.values.stream)[1][~mask], before)
    rig.assert_clean()
