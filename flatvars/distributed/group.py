"""The ranks that share a store's state, and what they agree on before anything is exchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import DisagreementError, GradientError
from ..memory.ranks import Ranks
from . import collectives

SAME = "Build the same model and optimizer, with the same numbers, on every rank; nothing was changed"
TOLD = 6  # differences that an error tells, of maybe thousands


class Group:
    """All processes of a 1-D mesh.

    Attributes:
        mesh: The `DeviceMesh`.
        process_group: Of the mesh.
        ranks: This process among them.
        bucket_bytes: The most that is averaged at once while a backward pass runs; None where all is, in the step.
        has_stepped: Whether the ranks have agreed on what an optimizer steps, and where it lies.
    """

    def __init__(self, mesh: Any, bucket_bytes: int | None = None) -> None:
        if not hasattr(mesh, "get_group") or not hasattr(mesh, "ndim"):
            raise TypeError(
                f"mesh= takes a torch.distributed.device_mesh.DeviceMesh, and a {type(mesh).__name__} was given; "
                "make one with init_device_mesh(device_type, (world_size,))"
            )
        if mesh.ndim != 1:
            names = f" ({', '.join(mesh.mesh_dim_names)})" if mesh.mesh_dim_names else ""
            raise ValueError(
                f"mesh= takes a mesh of one dimension, and this one has {mesh.ndim}{names}; pass the dimension that "
                'is data parallel, as mesh["dp"]'
            )
        self.mesh = mesh
        self.process_group = mesh.get_group()
        self.ranks = Ranks(mesh.get_local_rank(), mesh.size())
        self.bucket_bytes = bucket_bytes
        self.has_stepped = False

    def check_same(self, about: str, facts: Mapping[str, str], device: torch.device) -> None:
        """Raises DisagreementError on every rank if facts differ on one: what must be the same, by name.

        All ranks call it at the same place. One number of each is exchanged; the facts only where those differ.
        """
        digest = hashlib.sha256(repr(list(facts.items())).encode()).digest()
        number = torch.tensor(int.from_bytes(digest[:8], "little", signed=True), device=device)
        numbers = collectives.gather_numbers(number, self.process_group, self.ranks.world).tolist()
        if len(set(numbers)) > 1:
            self.explain(about, facts)

    def explain(self, about: str, facts: Mapping[str, str], advice: str = SAME, or_else: bool = True) -> None:
        """Raises DisagreementError, on every rank that calls it, with what differs and what to do.

        Args:
            or_else: Whether it also raises where nothing differs.
        """
        everyone = self.gather(dict(facts))
        names = list(dict.fromkeys(name for one in everyone for name in one))
        lines = [line for name in names if (line := _difference(name, [one.get(name) for one in everyone]))]
        orders = {tuple(one) for one in everyone}
        if not lines and len(orders) > 1:
            lines = ["they come in another order"]
        if not lines and not or_else:
            return
        more = f"; and {len(lines) - TOLD} more" if len(lines) > TOLD else ""
        raise DisagreementError(
            f"the {self.ranks.world} ranks of this store differ in {about}: {'; '.join(lines[:TOLD]) or 'nothing'}"
            f"{more}. {advice}"
        )

    def gather(self, value: Any) -> list[Any]:
        """A picklable object of every rank; all ranks call it."""
        return collectives.gather_objects(value, self.process_group, self.ranks.world)

    def tell(self, fault: str | None) -> None:
        """Raises GradientError on every rank, with what it says, if a rank has a fault; all ranks call it."""
        everyone = self.gather(fault)
        told = [f"rank {rank}: {word}" for rank, word in enumerate(everyone) if word]
        if told:
            raise GradientError(f"nothing was stepped. {'; '.join(told[:TOLD])}")

    def send_from_first(self, tensor: Tensor) -> None:
        """See `collectives.send_from_first`."""
        collectives.send_from_first(tensor, self.process_group)


def _difference(name: str, said: list[str | None]) -> str | None:
    """Which ranks say what of one fact, if they differ."""
    by_word: dict[str | None, list[int]] = {}
    for rank, word in enumerate(said):
        by_word.setdefault(word, []).append(rank)
    if len(by_word) == 1:
        return None
    words = [f"{'nothing' if word is None else word} on rank {_few(ranks)}" for word, ranks in by_word.items()]
    return f"{name}: {', '.join(words)}"


def _few(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:4]))
    return f"{shown} and {len(ranks) - 4} others" if len(ranks) > 4 else shown
