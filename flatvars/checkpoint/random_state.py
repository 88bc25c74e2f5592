"""States of random number generators: torch's, on every device that is used, NumPy's, Python's, and the user's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .plain import decode, encode
from .rehearsal import words_of

PREFIX = "rng"

ReadTensor = Callable[[str], Tensor]
"""The tensor of a name in a file, on the CPU."""


def capture_random(
    device: torch.device, rng: bool | Mapping[str, torch.Generator]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The states of the global generators, and of those that are given by name: as JSON, and as tensors of bytes."""
    tensors = {f"{PREFIX}/torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors[f"{PREFIX}/cuda"] = torch.cuda.get_rng_state(device)
    named = dict(rng) if isinstance(rng, Mapping) else {}
    tensors.update({f"{PREFIX}/generator/{name}": generator.get_state() for name, generator in named.items()})
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    numpy_state = (str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(gauss))
    content = {"python": encode(random.getstate(), "random"), "numpy": encode(numpy_state, "numpy.random")}
    return {**content, "tensors": sorted(tensors)}, tensors


def random_problems(
    content: Mapping[str, Any] | None, device: torch.device, rng: bool | Mapping[str, torch.Generator]
) -> list[str]:
    """What keeps saved states from being applied here."""
    if content is None:
        return ["the file holds no random number generators: it was saved without rng=; leave rng out"]
    absent = [key for key in _wanted(device, rng) if key not in content["tensors"]]
    return [f"the file holds no state {name!r}; it holds {content['tensors']}" for name in absent]


def try_random(
    content: Mapping[str, Any], device: torch.device, rng: bool | Mapping[str, torch.Generator], read: ReadTensor
) -> Iterator[str]:
    """What generators of the same kinds do not take, in words; none that is in use is touched."""
    trials: list[tuple[str, Callable[[], object]]] = [
        (key, partial(lambda key, place: torch.Generator(place).set_state(read(key)), key, place))
        for key, place in _wanted(device, rng).items()
    ]
    trials.append(("python", lambda: random.Random().setstate(decode(content["python"]))))
    trials.append(("numpy", lambda: np.random.RandomState().set_state(_numpy_state(content))))
    for name, trial in trials:
        try:
            trial()
        except Exception as error:  # they raise what their parts raise
            yield f"the file holds no state of a random number generator under {name!r}: {words_of(error)}"


def apply_random(
    content: Mapping[str, Any], device: torch.device, rng: bool | Mapping[str, torch.Generator], read: ReadTensor
) -> None:
    """Sets all generators to what they were."""
    torch.set_rng_state(read(f"{PREFIX}/torch"))
    if device.type == "cuda":
        torch.cuda.set_rng_state(read(f"{PREFIX}/cuda"), device)
    for name, generator in (rng if isinstance(rng, Mapping) else {}).items():
        generator.set_state(read(f"{PREFIX}/generator/{name}"))
    random.setstate(decode(content["python"]))
    np.random.set_state(_numpy_state(content))


def _wanted(device: torch.device, rng: bool | Mapping[str, torch.Generator]) -> dict[str, torch.device]:
    """The tensors that are needed, with the devices of their generators."""
    found = {f"{PREFIX}/torch": torch.device("cpu")}
    if device.type == "cuda":
        found[f"{PREFIX}/cuda"] = device
    named = rng if isinstance(rng, Mapping) else {}
    return {**found, **{f"{PREFIX}/generator/{name}": generator.device for name, generator in named.items()}}


def _numpy_state(content: Mapping[str, Any]) -> Any:
    kind, keys, *rest = decode(content["numpy"])
    return (kind, np.array(keys, dtype=np.uint32), *rest)
