"""What is measured on: lists of parameter shapes, by name.

`1000x1024` is a thousand tensors of 1,024 elements, `24x256x1024` are 24 matrices of 256 rows and 1,024 columns; the
names of models are those of `MODELS`. A model's list is that of the real architecture; where memory does not hold it,
fewer of its layers are taken or its width is divided, and the name says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from bench.architectures import ARCHITECTURES, shapes_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """A parameter list.

    Attributes:
        name: How it is asked for.
        shapes: Of every parameter, in order.
        frozen: Which are not trained.
        group_of: The param group of each parameter.
    """

    name: str
    shapes: tuple[Shape, ...]
    frozen: frozenset[int] = frozenset()
    group_of: tuple[int, ...] = ()

    @property
    def trained(self) -> list[int]:
        return [i for i in range(len(self.shapes)) if i not in self.frozen]

    @property
    def numel(self) -> int:
        """Elements that are trained."""
        return sum(math.prod(self.shapes[i]) for i in self.trained)

    @property
    def total(self) -> int:
        """Elements of all parameters."""
        return sum(map(math.prod, self.shapes))

    @property
    def groups(self) -> int:
        return max(self.group_of, default=0) + 1


def gpt2(layers: int) -> list[Shape]:
    """GPT-2 at width 768 with tied head; 12 layers are GPT-2 small, 124 million parameters."""
    d = 768
    block = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [(50257, d), (1024, d), *(block * layers), (d,), (d,)]


def llama3(layers: int, divide: int = 1) -> list[Shape]:
    """Llama-3 8B's shapes (32 layers, width 4096, 8 of 32 heads for keys), with every width divided."""
    d, kv, ffn, vocab = 4096 // divide, 1024 // divide, 14336 // divide, 128256 // divide
    block = [(d,), (d, d), (kv, d), (kv, d), (d, d), (d,), (ffn, d), (ffn, d), (d, ffn)]
    return [(vocab, d), *(block * layers), (d,), (vocab, d)]


def resnet101() -> list[Shape]:
    """ResNet-101: 314 tensors, 44.5 million parameters, most of them convolutions between batch norms."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    width_in = 64
    for blocks, width in ((3, 64), (4, 128), (23, 256), (3, 512)):
        for block in range(blocks):
            out = 4 * width
            for conv in ((width, width_in, 1, 1), (width, width, 3, 3), (out, width, 1, 1)):
                shapes += [conv, (conv[0],), (conv[0],)]
            if block == 0:
                shapes += [(out, width_in, 1, 1), (out,), (out,)]
            width_in = out
    return [*shapes, (1000, 2048), (1000,)]


def lora(layers: int, divide: int, rank: int) -> Workload:
    """Llama-3 shapes, frozen, with an adapter of two matrices beside every weight: about 99 % is not trained."""
    shapes: list[Shape] = []
    frozen = set()
    for shape in llama3(layers, divide):
        frozen.add(len(shapes))
        shapes.append(shape)
        if len(shape) == 2 and shape[0] != 128256 // divide:
            shapes += [(rank, shape[1]), (shape[0], rank)]
    return Workload("", tuple(shapes), frozenset(frozen))


def grouped(shapes: list[Shape], groups: int) -> Workload:
    """Every parameter in a group of its own, as layer-wise learning rates make them, up to `groups`."""
    return Workload("", tuple(shapes), group_of=tuple(i % groups for i in range(len(shapes))))


def plain(shapes: list[Shape]) -> Workload:
    return Workload("", tuple(shapes))


MODELS: dict[str, Callable[[], Workload]] = {
    "gpt2-small": lambda: plain(gpt2(12)),
    "gpt2-2layers": lambda: plain(gpt2(2)),
    "resnet101": lambda: plain(resnet101()),
    "llama3-8b-2layers": lambda: plain(llama3(2)),
    "llama3-8b-width/16": lambda: plain(llama3(32, 16)),
    "lora-llama3-8b-8layers": lambda: lora(8, 1, 16),
    "lora-llama3-8b-width/16": lambda: lora(32, 16, 1),
    "465-groups": lambda: grouped([(256, 64), (64,), (64, 64)] * 155, 465),
}


@cache
def workload(name: str) -> Workload:
    """A workload by name.

    Raises:
        KeyError: neither NxM, NxRxC nor the name of a model.
    """
    if re.fullmatch(r"\d+(x\d+){1,2}", name):
        count, *shape = map(int, name.split("x"))
        return Workload(name, (tuple(shape),) * count)
    if name in ARCHITECTURES:
        shapes = tuple(shapes_of(name))
        return Workload(name, shapes, group_of=(0,) * len(shapes))
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise KeyError(f"no workload {name!r}; give NxM (tensors x elements), NxRxC (matrices) or one of {known}")
    made = MODELS[name]()
    return Workload(name, made.shapes, made.frozen, made.group_of or (0,) * len(made.shapes))
