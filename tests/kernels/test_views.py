"""Views of the gradient stream: which were written is found on the device, from the -0.0 that they start as."""

from __future__ import annotations

import pytest
import torch

from tests.support import reference
from tests.support.launches import count_launches
from tests.support.memory import Guarded
from tests.support.rig import Rig
from tests.support.rules import CASES
from tests.support.tolerances import assert_norm, assert_same_bits

# One unit and less, many tiles.
SHAPES = [(20,), (4100,), (3, 5), (2048,), (128,), (129,), (16,)]
# More units than one group holds; its end lies inside of a variable.
LARGE = [(20,), (140_000,), (3, 5)]
CASE = CASES["adamw"]


@pytest.fixture
def rig(device):
    rig = Rig(SHAPES, rule=CASE.rule, device=device)
    rig.grads.stream.fill_(-0.0)
    return rig


def norm_and_written(rig):
    sources = rig.plan.viewed(rig.grads.stream)
    rig.plan.norm_(sources)
    return sources, rig.plan.written(sources).tolist()


def step(rig, sources, **options):
    states = [state.stream for state in rig.states]
    given = {"steps": rig.steps, "norm": rig.norm, "max_norm": None, "skip": False, "skipped": rig.skipped, **options}
    rig.plan.step_(sources, CASE.rule, rig.values.stream, states, [CASE.group], **given)


def test_nothing_was_written(rig):
    before = rig.snapshot()
    sources, written = norm_and_written(rig)
    assert written == [False] * len(SHAPES)
    assert rig.norm.item() == 0.0
    step(rig, sources)
    for kept, now in zip(before, rig.snapshot(), strict=True):
        assert_same_bits(now, kept)


@pytest.mark.parametrize("value", [0.0, -1e-45, 3.0, torch.nan])
@pytest.mark.parametrize(("variable", "element"), [(0, 19), (1, 4099), (4, 0), (5, 128)])
def test_one_element_is_enough(variable, element, value, rig):
    """Also a zero, and one whose square is lost."""
    rig.spans(rig.grads.stream)[variable][element] = value
    _, written = norm_and_written(rig)
    assert [i for i, hit in enumerate(written) if hit] == [variable]
    expected = abs(value) if abs(value) > 1e-20 or value != value else 0.0
    assert_norm(rig.norm, expected, torch.float32)


def test_what_is_found_belongs_to_one_launch(rig):
    """Nothing is cleared between launches, and nothing stays behind."""
    spans = rig.spans(rig.grads.stream)
    for chosen in ([1, 3], [3], [], [0, 1, 2, 3, 4, 5, 6], [6]):
        rig.grads.stream.fill_(-0.0)
        for i in chosen:
            spans[i].copy_(torch.randn(spans[i].shape))
        _, written = norm_and_written(rig)
        assert [i for i, hit in enumerate(written) if hit] == chosen
        assert_norm(rig.norm, reference.norm_of(spans), torch.float32)


@pytest.mark.parametrize("element", [131_000, 131_072])
def test_more_than_one_group(element, device):
    rig = Rig(LARGE, device=device, fill=False)
    rig.grads.stream.fill_(-0.0)
    rig.spans(rig.grads.stream)[1][element] = 0.0
    assert norm_and_written(rig)[1] == [False, True, False]
    rig.grads.stream.fill_(-0.0)
    assert norm_and_written(rig)[1] == [False, False, False]


def test_a_step_of_what_was_written(rig):
    spans = rig.spans(rig.grads.stream)
    for i in (1, 2):
        spans[i].copy_(torch.randn(spans[i].shape))
    twin = Rig(SHAPES, rule=CASE.rule, device=rig.device, fill=False)
    for ours, theirs in zip([rig.values, *rig.states], [twin.values, *twin.states], strict=True):
        theirs.storage.copy_(ours.storage)
    sources, _ = norm_and_written(rig)
    step(rig, sources, max_norm=0.5)
    shaped = [span.view(SHAPES[i]) if i in (1, 2) else None for i, span in enumerate(spans)]
    twin.step(shaped, [CASE.group], max_norm=0.5)
    assert_same_bits(rig.norm, twin.norm)
    for ours, theirs in zip([rig.values, *rig.states], [twin.values, *twin.states], strict=True):
        assert_same_bits(ours.storage, theirs.storage)
    assert rig.steps.tolist() == [0, 1, 1, 0, 0, 0, 0]


def test_norms_of_variables(rig):
    spans = rig.spans(rig.grads.stream)
    spans[1].copy_(torch.randn(4100))
    sources, _ = norm_and_written(rig)
    norms = rig.plan.variable_norms(None, sources, 2.0)[:, 1]
    assert [i for i, norm in enumerate(norms.tolist()) if norm] == [1]
    assert_norm(norms[1], reference.norm_of([spans[1]]), torch.float32)


def test_scaled(rig):
    """A GradScaler's factor, even an infinite one, touches no view that was not written."""
    rig.spans(rig.grads.stream)[1].fill_(2.0)
    sources = rig.plan.viewed(rig.grads.stream)
    rig.plan.norm_(sources, torch.tensor(4.0, device=rig.device))
    assert_norm(rig.norm, 0.5 * 4100**0.5, torch.float32)
    assert rig.plan.written(sources).tolist() == [i == 1 for i in range(len(SHAPES))]
    rig.plan.norm_(sources, torch.tensor(0.0, device=rig.device))
    assert rig.norm.item() == torch.inf
    assert rig.plan.written(sources).tolist() == [i == 1 for i in range(len(SHAPES))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype, device):
    rig = Rig(SHAPES[:3], dtype, device=device)
    stream = torch.full((rig.numel,), -0.0, dtype=dtype, device=device)
    rig.spans(stream)[1][3000] = 2.0
    sources = rig.plan.viewed(stream)
    rig.plan.norm_(sources)
    assert rig.plan.written(sources).tolist() == [False, True, False]
    assert rig.norm.item() == 2.0


def test_masked_elements_count_as_written_but_in_no_norm(device):
    mask = torch.arange(40, device=device) % 2 == 0
    rig = Rig([(40,), (40,)], masks=[mask, mask], device=device)
    rig.grads.stream.fill_(-0.0)
    rig.spans(rig.grads.stream)[1][1] = torch.nan
    _, written = norm_and_written(rig)
    assert written == [False, True]
    assert rig.norm.item() == 0.0


def test_a_variable_without_elements_is_written_if_the_host_says_so(device):
    rig = Rig([(0,), (20,), (0,)], rule=CASE.rule, device=device)
    rig.grads.stream.fill_(-0.0)
    for told in (None, [True, True, False], [False, False, False]):
        sources = rig.plan.viewed(rig.grads.stream, told)
        rig.plan.norm_(sources)
        assert rig.plan.written(sources).tolist() == [bool(told and told[0]), False, False]
        step(rig, sources)
    assert rig.steps.tolist() == [1, 0, 0]


def test_the_sentinel_cannot_tell_a_gradient_of_minus_zeros(rig):
    """The one case that is missed, as `kernels/README.md` says."""
    rig.spans(rig.grads.stream)[1].fill_(-0.0)
    assert norm_and_written(rig)[1] == [False] * len(SHAPES)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_two_launches_and_one_upload(rig):
    norm_and_written(rig)
    rig.spans(rig.grads.stream)[1].fill_(1.0)
    step(rig, norm_and_written(rig)[0])
    with count_launches() as launches:
        sources = rig.plan.viewed(rig.grads.stream)
        rig.plan.norm_(sources)
        step(rig, sources)
    assert launches.kernels == ["accumulate_kernel", "step_kernel"]
    assert launches.operators == []
    assert rig.plan.addresses.uploads == 1


def test_gathered_says_itself_what_was_written(rig):
    sources = rig.plan.gathered(rig.grads.stream, [True, False] + [True] * 5)
    assert rig.plan.written(sources).tolist() == [True, False] + [True] * 5
    norm_and_written(rig)
    step(rig, rig.plan.gathered(rig.grads.stream, [True, False] + [True] * 5))
    assert rig.steps.tolist() == [1, 0, 1, 1, 1, 1, 1]


def mark(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(-0.0, dtype=dtype)


@pytest.mark.parametrize("how", ["step", "not finite", "found_inf"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_step_clears_what_was_written(dtype, masked, how, device):
    """To the end of its lines, which are nobody else's, masked or not, skipped or not; and steps as without."""
    masks = [torch.arange(numel, device=device).view(shape) % 2 > 0 for shape in SHAPES for numel in [_numel(shape)]]
    runs = []
    for clear in (False, True):
        torch.manual_seed(0)
        rig = Rig(SHAPES, dtype, rule=CASE.rule, masks=masks if masked else None, device=device)
        streams = Guarded(rig.numel, dtype, device)
        stream = streams.stream
        stream.fill_(-0.0)
        for i in (1, 2, 5):
            start, stop = rig.segments.starts[i], rig.segments.nexts[i]
            stream[start:stop] = torch.randn(stop - start)  # behind the variable, too
        if how == "not finite":
            rig.spans(stream)[1][3] = torch.nan
        sources = rig.plan.viewed(stream)
        rig.plan.norm_(sources)
        found = torch.tensor(float(how == "found_inf"), device=device)
        step(rig, sources, skip=True, found_inf=found, grad_scale=torch.ones((), device=device), clear=clear)
        streams.assert_intact()
        assert bool((stream != 0).any()) is not clear
        runs.append((rig, stream))
    (plain, _), (cleared, stream) = runs
    assert_same_bits(stream, mark(dtype).to(device).expand_as(stream))
    assert cleared.steps.tolist() == ([0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0] if how == "step" else [0.0] * len(SHAPES))
    for one, other in zip(cleared.snapshot(), plain.snapshot(), strict=True):
        assert_same_bits(one, other)


def _numel(shape):
    return torch.Size(shape).numel()


@pytest.mark.parametrize("name", ["stable-adamw", "lamb", "mars"])
def test_statistics_clear_nothing_that_the_step_reads_again(name, device):
    case, runs = CASES[name], []
    for clear in (False, True):
        torch.manual_seed(0)
        rig = Rig(SHAPES, rule=case.rule, device=device)
        rig.grads.stream.fill_(-0.0)
        for span in rig.spans(rig.grads.stream):
            span.copy_(torch.randn(span.shape))
        sources, _ = norm_and_written(rig)
        states = [state.stream for state in rig.states]
        given = {"steps": rig.steps, "norm": rig.norm, "max_norm": None, "skip": False, "skipped": rig.skipped}
        rig.plan.step_(sources, case.rule, rig.values.stream, states, [case.group], **given, own=rig.own, clear=clear)
        runs.append(rig)
    assert_same_bits(runs[1].grads.stream, torch.full_like(runs[1].grads.stream, -0.0))
    for one, other in zip([runs[1].values, *runs[1].states], [runs[0].values, *runs[0].states], strict=True):
        assert_same_bits(one.storage, other.storage)


def test_only_views_are_cleared(rig):
    rig.grads.stream.fill_(1.0)
    step(rig, rig.plan.gathered(rig.grads.stream, [True] * len(SHAPES)), clear=True)
    assert bool((rig.grads.stream == 1.0).all())
