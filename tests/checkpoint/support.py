"""Training runs whose every byte is compared, and files made by hand."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import flatvars as fv
from tests.support.stores import Net, backward, batch


def filled(module: nn.Module, seed: int = 1) -> nn.Module:
    """The module with other values than its initializer's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in module.parameters():
            param.copy_(torch.randn(param.shape, generator=generator))
    return module


def values(store: fv.VarStore) -> dict[str, Tensor]:
    return {name: v.value.clone() for name, v in store.variables().items()}


def assert_values(store: fv.VarStore, expected: Mapping[str, Tensor]) -> None:
    found = values(store)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file from a header (JSON, or bytes as they are) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def forged(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Gives the file another description, and checksums that fit."""
    header, data = parts(path.read_bytes())
    metadata = header["__metadata__"]
    content = json.loads(metadata["flatvars"])
    change(content)
    metadata["flatvars"] = json.dumps(content)
    rows = "".join(
        f"{name}\t{row['dtype']}\t{','.join(map(str, row['shape']))}\t{row['data_offsets'][0]}\n"
        for name, row in sorted(header.items())
        if name != "__metadata__"
    )
    metadata["flatvars.crc32"] = f"{zlib.crc32((metadata['flatvars'] + rows).encode()):08x}"
    path.write_bytes(raw(header, data))


def trained(path: Path | None = None, steps: int = 2) -> tuple[Net, fv.VarStore, fv.optim.AdamW]:
    """A small net after some steps, and its training checkpoint at `path`."""
    torch.manual_seed(0)
    net = Net()
    store = fv.VarStore.from_module(net)
    optimizer = fv.optim.AdamW(store, lr=1e-2)
    for _ in range(steps):
        backward(net, batch())
        optimizer.step()
        optimizer.zero_grad()
    if path is not None:
        store.save(path, optimizer)
    return net, store, optimizer


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
