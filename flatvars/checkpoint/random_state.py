"""States of random number generators: torch's, on every device that is used, NumPy's, Python's, and the user's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .plain import decode, encode

PREFIX = "rng"


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
    needed = [f"{PREFIX}/{name}" for name in ("torch", *(["cuda"] if device.type == "cuda" else []))]
    needed += [f"{PREFIX}/generator/{name}" for name in (rng if isinstance(rng, Mapping) else ())]
    absent = [name for name in needed if name not in content["tensors"]]
    return [f"the file holds no state {name!r}; it holds {content['tensors']}" for name in absent]


def apply_random(
    content: Mapping[str, Any],
    device: torch.device,
    rng: bool | Mapping[str, torch.Generator],
    read: Callable[[str], Tensor],
) -> None:
    """Sets all generators to what they were."""
    torch.set_rng_state(read(f"{PREFIX}/torch"))
    if device.type == "cuda":
        torch.cuda.set_rng_state(read(f"{PREFIX}/cuda"), device)
    for name, generator in (rng if isinstance(rng, Mapping) else {}).items():
        generator.set_state(read(f"{PREFIX}/generator/{name}"))
    random.setstate(decode(content["python"]))
    kind, keys, *rest = decode(content["numpy"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
