"""`state_format=`: states in 8 bits, in every place where state is looked at, written, moved, saved and put back."""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import flatvars as fv
from flatvars.kernels.formats import LOG4, ROOT8, ROOT8_SQUARES, encode_log

BOTH = {"exp_avg": "root8", "exp_avg_sq": "root8"}
SMALLEST = {"exp_avg": "root8", "exp_avg_sq": "log4"}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last), nn.Flatten(), nn.Linear(37, 9))  # type: ignore[call-overload]


def made(module: nn.Module, state_format: Any = "root8", **options: Any) -> tuple[Any, Any]:
    store = fv.VarStore.from_module(module)
    return store, fv.optim.AdamW(store, lr=0.01, state_format=state_format, **options)


def train(module: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in module.parameters():
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


def held(module: nn.Module, optimizer: Any) -> list[torch.Tensor]:
    names = ("exp_avg", "exp_avg_sq")
    return [*(optimizer.state[p][name].clone() for p in module.parameters() for name in names), *module.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, left, right))


def test_a_file_can_be_decoded_from_its_page_alone(tmp_path: Any) -> None:
    """By the strides of the description and the formulas of the page."""
    module = network()
    store, optimizer = made(module)
    train(module, optimizer, range(2))
    store.save(tmp_path / "run.safetensors", optimizer)
    tensors = safetensors.torch.load_file(tmp_path / "run.safetensors")
    for name, variable in store.variables().items():
        for state in BOTH:
            codes, scale = tensors[f"{state}/{name}"], tensors[f"{state}.scale/{name}"]
            assert codes.shape == variable.shape
            assert len(scale) == -(-variable.spec.numel // 128)
            ordered = torch.empty_strided(codes.shape, variable.spec.stride, dtype=codes.dtype).copy_(codes)
            flat = ordered.as_strided((codes.numel(),), (1,)).float()
            s = scale.repeat_interleave(128)[: codes.numel()]
            y = flat * torch.tensor(1 / (127 if state == "exp_avg" else 255))
            numbers = s * (y * y.abs()) if state == "exp_avg" else s * ((y * y) * (y * y))
            shown = optimizer.state[variable.param][state]
            assert torch.equal(numbers.as_strided(codes.shape, variable.spec.stride), shown)


def test_squares_in_4_bits_can_be_decoded_from_the_page(tmp_path: Any) -> None:
    module = network()
    store, optimizer = made(module, SMALLEST)
    train(module, optimizer, range(2))
    store.save(tmp_path / "run.safetensors", optimizer)
    tensors = safetensors.torch.load_file(tmp_path / "run.safetensors")
    for name, variable in store.variables().items():
        pairs, scale = tensors[f"exp_avg_sq/{name}"].tolist(), tensors[f"exp_avg_sq.scale/{name}"].tolist()
        numbers = []
        for i in range(variable.numel):
            code, (top, step) = pairs[i // 2] >> 4 * (i % 2) & 15, divmod(scale[i // 128], 1 << 16)
            numbers.append((top - (15 - code) * step) << 16 if code else 0)
        flat = torch.tensor(numbers, dtype=torch.int32).view(torch.float32)
        shown = optimizer.state[variable.param]["exp_avg_sq"]
        assert torch.equal(flat.as_strided(shown.shape, variable.spec.stride), shown)


@pytest.mark.parametrize("target", [None, {"exp_avg": "root8"}, SMALLEST])
def test_files_and_state_dicts_load_in_other_formats(target: Any, tmp_path: Any) -> None:
    module, origin = network(), SMALLEST if target == SMALLEST else BOTH
    store, optimizer = made(module, origin)
    train(module, optimizer, range(2))
    store.save(tmp_path / "run.safetensors", optimizer)
    for how in ("file", "state dict"):
        again = network()
        store_again, other = made(again, target)
        if how == "file":
            store_again.load(tmp_path / "run.safetensors", other)
        else:
            other.load_state_dict(optimizer.state_dict())
            store_again.copy_(store)
        assert same(held(again, other), held(module, optimizer))
    store_again.save(tmp_path / "plain.safetensors", other)
    fresh = network()
    store_fresh, third = made(fresh, origin)
    store_fresh.load(tmp_path / "plain.safetensors", third)
    assert same(held(fresh, third), held(module, optimizer))


def test_what_is_written_to_a_state_is_stepped_on() -> None:
    module = nn.Linear(40, 10)
    _, optimizer = made(module)
    train(module, optimizer, range(1))
    entry = optimizer.state[module.weight]
    assert entry["exp_avg"] is entry["exp_avg"]
    entry["exp_avg"].mul_(0.0)
    entry["exp_avg_sq"] = torch.ones(10, 40)
    module.weight.grad = torch.zeros(10, 40)
    optimizer.step()
    assert not entry["exp_avg"].any()
    torch.testing.assert_close(entry["exp_avg_sq"], torch.full((10, 40), 0.999))
    del optimizer.state[module.weight]
    module.weight.grad = torch.zeros(10, 40)
    optimizer.step()
    assert not optimizer.state[module.weight]["exp_avg_sq"].any()


def test_an_average_decays_as_in_float32() -> None:
    """Of a state that is stored in 8 bits with a scale that is rounded, it would stay where it is.

    In 4 bits it does by its logarithm, of which each draw keeps the mean, as the bits of floats have it.
    """
    found = []
    for state_format in (None, "root8", {"exp_avg_sq": "log4"}):
        module = nn.Linear(32, 32)
        _, optimizer = made(module, state_format)
        for number in [1.0] * 300 + [0.0] * 2000:
            for param in module.parameters():
                param.grad = torch.full_like(param, number)
            optimizer.step()
        found.append(float(optimizer.state[module.weight]["exp_avg_sq"].log().mean().exp()))
    assert found[1] == pytest.approx(found[0], rel=0.1)
    assert found[2] == pytest.approx(found[0], rel=0.1)


def test_bytes_of_a_parameter() -> None:
    """Beside the value and its gradient: 2.06 for both states of AdamW."""
    store = fv.VarStore()
    store.add("weight", torch.zeros(128, 1024))
    optimizer = fv.optim.AdamW(store, state_format="root8")
    store["weight"].param.grad = torch.ones(128, 1024)
    optimizer.step()
    states = [stream for name, stream in store.registry.streams.items() if name != "values"]
    assert sum(stream.nbytes for stream in states) == 2 * (1 + 1 / 32) * 128 * 1024


@pytest.mark.parametrize("state_format", ["root8", SMALLEST], ids=["root8", "log4"])
def test_the_largest_update_stays_small(state_format: Any) -> None:
    """Where scales mix in a unit, whoever lets an average of squares vanish beside a momentum divides by eps."""
    torch.manual_seed(0)
    scales = 10.0 ** (0.5 * torch.randn(64, 128))
    store = fv.VarStore()
    value = store.add("weight", torch.zeros(64, 128))
    optimizer = fv.optim.AdamW(store, lr=1.0, weight_decay=0.0, state_format=state_format)
    largest = 0.0
    for step in range(400):
        value.grad = scales * torch.randn(64, 128) * (1.0 if step < 200 else 0.1)
        value.data.zero_()
        optimizer.step()
        largest = max(largest, float(value.detach().abs().max()))
    assert largest < 3.0


def test_masked_squares_in_4_bits_keep_their_place() -> None:
    """They are rounded again with their unit, and stay within the grid; those of other units keep every bit."""
    module = nn.Linear(64, 64)
    store, optimizer = made(module, SMALLEST)
    train(module, optimizer, range(1))
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[0, ::2] = True
    store.set_trainable_mask("weight", mask)
    before = optimizer.state[module.weight]["exp_avg_sq"].clone()
    train(module, optimizer, range(1, 3))
    after = optimizer.state[module.weight]["exp_avg_sq"]
    assert torch.equal(after[2:], before[2:])
    ratio = after[:2][~mask[:2]] / before[:2][~mask[:2]]
    assert (ratio > 0.2).all()
    assert (ratio < 5.0).all()
    assert not torch.equal(after[0, ::2], before[0, ::2])


GOLDEN = [1e-3, -5e-4, 2.5e-4, -1e-4, 3e-5, -1e-5, 4e-6, -1.9e-6, 1e-8, 0.0]
GOLDEN_SQUARES = [9e-6, 2.25e-6, 5.625e-7, 9e-8, 8.1e-9, 9e-10, 1.44e-10, 3.25e-11, 1e-20, 0.0]


GOLDEN_CODES = [14, 12, 10, 8, 4, 1, 1, 1, 1, 0]
GOLDEN_DRAWN = [15, 13, 10, 8, 4, 1, 1, 1, 1, 0]


def test_golden_codes() -> None:
    codes, scale = ROOT8.encode(torch.tensor(GOLDEN))
    assert codes.tolist() == [127, -90, 64, -40, 22, -13, 8, -6, 0, 0]
    assert scale.view(torch.int32).tolist() == [0x3A83126F]
    codes, scale = ROOT8_SQUARES.encode(torch.tensor(GOLDEN_SQUARES))
    assert codes.tolist() == [255, 180, 128, 81, 44, 26, 16, 11, 1, 0]
    assert scale.view(torch.int32).tolist() == [0x3716FEB5]
    pairs, grid = LOG4.encode(torch.tensor(GOLDEN_SQUARES))
    assert [code for pair in pairs.tolist() for code in (pair & 15, pair >> 4)] == GOLDEN_CODES
    assert grid.tolist() == [0x37800080]
    draws = 63000 - 7000 * torch.arange(10, dtype=torch.int32)
    pairs, _ = encode_log(torch.tensor(GOLDEN_SQUARES), draws)
    assert [code for pair in pairs.tolist() for code in (pair & 15, pair >> 4)] == GOLDEN_DRAWN


@pytest.mark.parametrize("format_", [ROOT8, ROOT8_SQUARES], ids=["signed", "squares"])
def test_decoding_and_encoding_changes_nothing(format_: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(1 << 16, generator=generator) * torch.exp(3 * torch.randn(1 << 16, generator=generator))
    parts = format_.encode(numbers if format_ is ROOT8 else numbers.square())
    assert same(format_.encode(format_.decode(parts)), parts)


def test_squares_in_4_bits_come_back_number_for_number() -> None:
    """Whatever draws made them: a state that is read and written is the same, though its codes may be others."""
    generator = torch.Generator().manual_seed(0)
    numbers = (
        torch.randn(1 << 16, generator=generator) * torch.exp(torch.randn(1 << 16, generator=generator))
    ).square()
    numbers[:128] = 0.0
    numbers[128:256], numbers[256:300] = 0.25, 1e-40
    draws = torch.randint(0, 1 << 16, numbers.shape, generator=generator, dtype=torch.int32)
    decoded = LOG4.decode(encode_log(numbers, draws))
    assert torch.equal(LOG4.decode(LOG4.encode(decoded)), decoded)
    seen = decoded[300:] > 0.0
    # Between neighbors of the grid, of which each is twice the other at most; what is below it is raised.
    assert (decoded[300:][seen] / numbers[300:][seen]).min() > 0.49
    assert torch.equal(decoded == 0.0, numbers == 0.0)


@pytest.mark.parametrize(
    ("kind", "state_format", "words"),
    [
        (fv.optim.AdamW, "root9", "no format of states"),
        (fv.optim.AdamW, {"exp_avgs": "root8"}, "has no state 'exp_avgs'; it has exp_avg, exp_avg_sq"),
        (fv.optim.Adagrad, "root8", "no averages"),
        (fv.optim.AdamW, "log4", "such as {'exp_avg': 'root8', 'exp_avg_sq': 'log4'}"),
        (fv.optim.AdamW, {"exp_avg": "log4"}, "which 'exp_avg' of AdamW is not; of its states, exp_avg_sq may"),
        (fv.optim.ScheduleFreeAdamW, {"z": "root8"}, "a value, a sum or a step size"),
    ],
)
def test_what_cannot_be_is_refused(kind: Any, state_format: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(fv.VarStore.from_module(nn.Linear(2, 2)), state_format=state_format)


def test_float64_is_refused_before_anything_changed() -> None:
    module = nn.Linear(3, 2).double()
    _, optimizer = made(module)
    module.weight.grad = torch.ones(2, 3, dtype=torch.float64)
    before = module.weight.clone()
    with pytest.raises(fv.FlatvarsError, match="variables are float64"):
        optimizer.step()
    assert torch.equal(module.weight, before)
