"""Streams of a format: what both compilers store is what the reference stores, bit for bit, and what others decode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from flatvars.init import name_key
from flatvars.kernels.formats import CORRECTED, LOG4, ROOT8, ROOT8_SQUARES, SPLIT, Stored, encode_log
from flatvars.kernels.lang import tl  # noqa: F401 - the interpreter looks for it here
from flatvars.kernels.rules import rule
from flatvars.kernels.segments import UNIT
from tests.support.draws import STATES, draws
from tests.support.rig import Rig, plan_of
from tests.support.rules import CASES
from tests.support.tolerances import assert_same_bits

SHAPES = [(), (0,), (17,), (128,), (3, 5), (129,), (2049,), (40, 40)]


@rule(states=("mean", "square"), hyper=(), nonnegative=("square",))
def keeping(p, g, state, hyper, step):
    """A value that grows by what its states were, which then are the gradient and its square."""
    return p + (state[0] + state[1]), (g, g * g)


@rule(states=("square",), hyper=(), stochastic=("square",), nonnegative=("square",))
def squaring(p, g, state, hyper, step):
    """A value that is what its state was, which then is the square of the gradient."""
    return state[0], (g * g,)


@rule(states=("before",), hyper=())
def swapping(p, g, state, hyper, step):
    """A value that is the gradient, and a state that is the value before."""
    return g, (p,)


def keys_of(names, device):
    words = np.array([42, *map(name_key, names)], dtype=np.uint64)
    return torch.from_numpy(words.view(np.int64)).to(device)


def draws_of(name, step, count, which=0):
    """What states in `log4` are rounded by, int32 [count], by NumPy."""
    random = draws(42, name_key(name), 0, STATES + which, count).astype(np.int32)
    return torch.from_numpy(random + step * 40503 & 0xFFFF)


class FormatRig:
    """A rig whose streams are of formats, with the reference of what they hold.

    Args:
        values: Their format, and their dtype is bfloat16 then; None for float32.
        states: The format of each state.
    """

    def __init__(self, backend, device, rule, values, states, shapes=SHAPES, masks=None, order=None):
        dtype = torch.bfloat16 if values else torch.float32
        self.rig = Rig(shapes, dtype, rule=rule, masks=masks, backend=backend, device=device)
        self.units = self.rig.segments.units
        total = sum(-(-numel // UNIT) for numel in self.rig.segments.numels)
        self.values = self._stream(values, total) if values else Stored(self.rig.values.stream)
        self.states = [self._stream(form, total) for form in states]

    def _stream(self, form, units):
        buffers = [
            torch.zeros(units if part.units else part.items(self.rig.numel), dtype=part.dtype, device=self.rig.device)
            for part in form.parts
        ]
        return Stored(buffers[0], form, tuple(buffers[1:]))

    def parts(self, stream):
        """Of each variable: its parts, or its elements in a plain stream."""
        found = []
        segments = self.rig.segments
        for start, numel, unit in zip(segments.starts, segments.numels, segments.units, strict=True):
            if stream.format is None:
                found.append([stream.buffer[start : start + numel]])
                continue
            pairs = zip(stream.format.parts, (stream.buffer, *stream.beside), strict=True)
            firsts = [(part, buffer, unit if part.units else start // part.each) for part, buffer in pairs]
            found.append([buffer[first : first + part.items(numel)] for part, buffer, first in firsts])
        return found

    def write(self, stream, tensors):
        for parts, tensor in zip(self.parts(stream), tensors, strict=True):
            items = [tensor] if stream.format is None else stream.format.encode(tensor)
            for part, item in zip(parts, items, strict=True):
                part.copy_(item)

    def read(self, stream):
        return [
            parts[0].clone() if stream.format is None else stream.format.numbers(parts, numel)
            for parts, numel in zip(self.parts(stream), self.rig.segments.numels, strict=True)
        ]

    def step(self, grads, group, **options):
        rig = self.rig
        given = {"max_norm": None, "skip": False, "skipped": rig.skipped, "steps": rig.steps, "norm": rig.norm}
        states = self.states or [state.stream for state in rig.states]
        rig.plan.step_(
            rig.plan.scattered(grads), rig.rule, self.values, states, [group], **given, own=rig.own, **options
        )


def odd(grads):
    """Puts numbers into gradients that no codec likes."""
    for grad in grads:
        numbers = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3.3e38, 1e-40, -1e-30], device=grad.device)
        grad.view(-1)[-8:] = numbers[: min(grad.numel(), 8)]
    return grads


def check_parts(rig, stream, tensors):
    """Fails unless a stream holds what the reference makes of these numbers, and zeros behind each variable."""
    for parts, tensor in zip(rig.parts(stream), tensors, strict=True):
        for part, item in zip(parts, stream.format.encode(tensor), strict=True):
            assert_same_bits(part, item)
    spans = rig.parts(Stored(torch.ones(len(stream.buffer), device=stream.buffer.device)))
    behind = torch.ones(len(stream.buffer), dtype=torch.bool, device=stream.buffer.device)
    for (span,), start in zip(spans, rig.rig.segments.starts, strict=True):
        behind[start : start + len(span)] = False
    assert not stream.buffer[behind].any()


def test_what_is_stored_is_what_the_reference_stores(backend, device):
    rig = FormatRig(backend, device, keeping, None, [ROOT8, ROOT8_SQUARES])
    torch.manual_seed(1)
    grads = odd(
        [torch.randn(shape, device=device) * 10.0 ** torch.randint(-6, 2, shape, device=device) for shape in SHAPES]
    )
    rig.step(grads, {})
    flat = [grad.flatten() for grad in grads]
    check_parts(rig, rig.states[0], flat)
    check_parts(rig, rig.states[1], [grad * grad for grad in flat])


def test_what_is_read_is_what_the_reference_reads(backend, device):
    rig = FormatRig(backend, device, keeping, None, [ROOT8, ROOT8_SQUARES])
    torch.manual_seed(2)
    for stream in rig.states:
        rig.write(stream, odd([torch.rand(numel, device=device) ** 8 for numel in rig.rig.segments.numels]))
    wanted = [p + (m + v) for p, m, v in zip(*map(rig.read, (rig.values, *rig.states)), strict=True)]
    rig.step([torch.zeros(shape, device=device) for shape in SHAPES], {})
    for found, sum_ in zip(rig.read(rig.values), wanted, strict=True):
        assert_same_bits(found, sum_)


def log_numbers(shape, device):
    """Over many powers of ten, over few, all alike, and some zeros."""
    exponent = torch.randint(-8, 1, shape, device=device) * (torch.rand(shape, device=device) < 0.5)
    numbers = torch.randn(shape, device=device) * 10.0**exponent
    numbers.view(-1)[128:256] = 0.25
    numbers.view(-1)[300:310] = 0.0
    return numbers


@pytest.mark.parametrize("random", [True, False])
def test_squares_in_4_bits_are_what_the_reference_makes(random, backend, device):
    """Stored by their draws, or to nearest; and read."""
    rig = FormatRig(backend, device, squaring, None, [LOG4])
    torch.manual_seed(1)
    grads = odd([log_numbers(shape, device) for shape in SHAPES])
    names = [f"v{i}" for i in range(len(SHAPES))]
    rig.step(grads, {}, keys=keys_of(names, device) if random else None)
    (stream,) = rig.states
    held = rig.read(stream)
    for name, grad, parts in zip(names, grads, rig.parts(stream), strict=True):
        x = grad.flatten().square()
        draws = draws_of(name, 1, len(x)) if random else torch.full((len(x),), 0x8000, dtype=torch.int32)
        for part, item in zip(parts, encode_log(x, draws.to(device)), strict=True):
            assert_same_bits(part, item)
    rig.step([torch.zeros(shape, device=device) for shape in SHAPES], {})
    for found, wanted in zip(rig.read(rig.values), held, strict=True):
        assert_same_bits(found, wanted)


def test_shards_store_the_units_of_the_whole(backend, device):
    """Of a variable of 650 elements, a launch has those from 384 on, which is where a unit begins."""
    rig = FormatRig(backend, device, squaring, None, [LOG4], shapes=[(40,), (266,)])
    segments = replace(rig.rig.segments, firsts=(0, 384), units=(0, 1 - 3))
    sums = torch.zeros(1, dtype=torch.float64, device=device)
    rig.rig.plan = plan_of(backend, segments, device, None, rig.rig.norm, sums, 0)
    torch.manual_seed(5)
    whole = log_numbers((650,), device)
    rig.step([torch.ones(40, device=device), whole[384:].clone()], {}, keys=keys_of(["v0", "v1"], device))
    codes, scales = encode_log(whole.square(), draws_of("v1", 1, 650).to(device))
    found = rig.parts(rig.states[0])[1]
    assert_same_bits(found[0], codes[384 // 2 :])
    assert_same_bits(found[1], scales[384 // UNIT :])


def values_that_no_codec_likes():
    """All upper halves, beside middles and where codes of 8 bits change; the borders of powers of two; NaN."""
    low = torch.tensor(
        [0, 1, 0x80, 0x82, 0x3FFF, 0x4000, 0x7F7E, 0x7F80, 0x7FFF, 0x8000, 0x8001, 0x80FE, 0xC000, 0xFFFF]
    )
    upper = torch.tensor(
        [0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x3F7F, 0x3F80, 0x3F81, 0x3FFF, 0x7F7E, 0x7F7F, 0x7F80, 0x7FC1]
    )
    words = (torch.cat([upper, upper + 0x8000])[:, None] << 16 | low).flatten()
    return (words - (words >> 31 << 32)).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("values", [SPLIT, CORRECTED], ids=["split", "corrected"])
def test_values_are_what_the_reference_makes(values, backend, device):
    """Stored, and read as the state of a step that stores others."""
    numbers = values_that_no_codec_likes().to(device)
    shapes = [(17,), tuple(numbers.shape), (129,)]
    rig = FormatRig(backend, device, swapping, values, [], shapes=shapes)
    rig.states = [Stored(torch.zeros(rig.rig.numel, device=device))]
    torch.manual_seed(6)
    first = [torch.randn(shapes[0], device=device), numbers, torch.randn(shapes[2], device=device)]
    rig.step(first, {})
    check_parts(rig, rig.values, first)
    held = rig.read(rig.values)
    rig.step([torch.randn(shape, device=device) for shape in shapes], {})
    for kept, wanted in zip(rig.read(rig.states[0]), held, strict=True):
        assert_same_bits(kept, wanted)


def test_split_values_train_as_float32(backend, device):
    """And what is stored is what the reference makes of the float32 numbers."""
    case = CASES["adamw"]
    torch.manual_seed(3)
    plain = Rig(SHAPES, rule=case.rule, backend=backend, device=device)
    rig = FormatRig(backend, device, case.rule, SPLIT, [])
    rig.write(rig.values, plain.spans(plain.values.stream))
    for mine, theirs in zip(rig.rig.states, plain.states, strict=True):
        theirs.stream.zero_()
        mine.stream = torch.zeros_like(theirs.stream)
    spans = {"split": rig.rig.segments.starts, "plain": plain.segments.starts}
    assert spans["split"] != spans["plain"]
    wide = [torch.zeros(rig.rig.numel, device=device) for _ in case.rule.states]
    rig.states = [Stored(stream) for stream in wide]
    for _ in range(3):
        grads = plain.random_grads()
        plain.step(grads, [case.group])
        rig.step(grads, case.group)
    check_parts(rig, rig.values, plain.spans(plain.values.stream))


@pytest.mark.parametrize("values", [SPLIT, CORRECTED], ids=["split", "corrected"])
def test_who_writes_a_value_has_written_it(values, backend, device):
    """Zeros over low bits that were large, pruning, in a unit beside others that nobody wrote to."""
    case, shape = CASES["sgd"], (300,)
    rig = FormatRig(backend, device, case.rule, values, [], shapes=[shape])
    torch.manual_seed(4)
    rig.write(rig.values, [torch.randn(shape, device=device)])
    (start,) = rig.read(rig.values)
    value = rig.values.buffer[: shape[0]]
    value[:64] = 0.0
    value[7], value[8] = -0.0, 2.5
    seen = value[:128].float()
    rig.step([torch.zeros(shape, device=device)], {**case.group, "lr": 0.0, "weight_decay": 0.0})
    (found,) = rig.read(rig.values)
    assert_same_bits(found[:128].abs(), seen.abs())
    assert_same_bits(found[128:], start[128:])


@pytest.mark.parametrize("values", [None, SPLIT, CORRECTED], ids=["plain", "split", "corrected"])
def test_masked_elements_stay(values, backend, device):
    torch.manual_seed(5)
    masks = [torch.rand(shape) < 0.5 for shape in SHAPES]
    rig = FormatRig(backend, device, keeping, values, [ROOT8, ROOT8_SQUARES], masks=masks)
    for stream in (rig.values, *rig.states):
        rig.write(stream, [torch.rand(numel, device=device) for numel in rig.rig.segments.numels])
    before = [rig.read(stream) for stream in (rig.values, *rig.states)]
    # No larger than what is there: the scale of a unit stays, and with it the bits of masked states.
    grads = [torch.rand(shape, device=device) * 1e-3 for shape in SHAPES]
    for state in rig.states:
        for parts, mask in zip(rig.parts(state), masks, strict=True):
            for first in range(0, mask.numel(), UNIT):
                parts[0].view(-1)[first] = 127 if parts[0].dtype == torch.int8 else 255
                mask.view(-1)[first] = False
    rig.rig.frozen.copy_(rig.rig._frozen(masks))
    before = [rig.read(stream) for stream in (rig.values, *rig.states)]
    rig.step(grads, {})
    for stream, old in zip((rig.values, *rig.states), before, strict=True):
        for now, was, mask in zip(rig.read(stream), old, masks, strict=True):
            keep = mask.flatten().to(device)
            assert_same_bits(now[~keep], was[~keep])
            assert not keep.any() or not torch.equal(now[keep], was[keep])


@pytest.mark.parametrize(("name", "values"), [("lamb", SPLIT), ("adamw", CORRECTED)], ids=["lamb", "adamw"])
def test_rules_store_the_same_bits_on_both_compilers(name, values, backend, device):
    """Of two layouts, and LAMB's states by the launch before its step."""
    if device.type != "cpu" or backend == "cpu":
        pytest.skip("once, on host memory, where both compilers work")
    shapes = [(17,), (3, 43), (2049,)]
    case, found = CASES[name], []
    forms = [LOG4 if state in case.rule.squares else ROOT8 for state in case.rule.states]
    names = [f"v{i}" for i in range(len(shapes))]
    for compiler, shift in (("triton", 0), ("cpu", 1)):
        rig = FormatRig(compiler, device, case.rule, values, forms, shapes=[(33,)] * shift + shapes)
        torch.manual_seed(0)
        rig.write(rig.values, [torch.ones(33)] * shift + [torch.randn(shape).flatten() for shape in shapes])
        for _ in range(2):
            grads = [torch.ones(33)] * shift + [torch.randn(shape) for shape in shapes]
            rig.step(grads, case.group, keys=keys_of(["other"] * shift + names, device))
        found.append([rig.parts(stream)[shift:] for stream in (rig.values, *rig.states)])
    for one, other in zip(*found, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert_same_bits(a, b)
