"""The peers by name. Each is imported in its own process alone: `load` is called there."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.peers.peer import Peer

# Name in tables -> module:attribute.
PEERS = {
    "copy": "bench.peers.copying:COPY",
    "flatvars": "bench.peers.flat:FLATVARS",
    "flatvars accumulate": "bench.peers.flat:ACCUMULATE",
    "flatvars views": "bench.peers.flat:VIEWS",
    "torch loop": "bench.peers.torch_optim:LOOP",
    "torch foreach": "bench.peers.torch_optim:FOREACH",
    "torch fused": "bench.peers.torch_optim:FUSED",
    "torch compiled": "bench.peers.torch_optim:COMPILED",
    "contiguous-params": "bench.peers.contiguous:CONTIGUOUS",
    "optimi": "bench.peers.optimi:OPTIMI",
    "lion-pytorch": "bench.peers.lion_pytorch:LION",
    "schedulefree": "bench.peers.schedule_free:SCHEDULE_FREE",
    "prodigyopt": "bench.peers.prodigyopt:PRODIGY",
    "heavyball": "bench.peers.heavyball:HEAVYBALL",
    "flashoptim": "bench.peers.flashoptim:FLASH",
    "flashoptim 8": "bench.peers.flashoptim:FLASH8",
    "bitsandbytes 32": "bench.peers.bitsandbytes:BNB32",
    "bitsandbytes 8": "bench.peers.bitsandbytes:BNB8",
    "torchao 8": "bench.peers.torchao:TORCHAO",
    "turboadam": "bench.peers.turboadam:TURBOADAM",
}
# Peers of `--quick`: those that do not compile for minutes; on a CPU those that matter there.
QUICK = {
    "cuda": (
        "copy",
        "flatvars",
        "torch foreach",
        "torch fused",
        "contiguous-params",
        "optimi",
        "lion-pytorch",
        "flashoptim",
        "bitsandbytes 32",
    ),
    "cpu": ("copy", "flatvars", "torch foreach", "torch fused"),
}
# Peers of a full run: on a CPU those that are made for one, and do not take minutes a row; others with --peer.
FULL = {
    "cuda": tuple(PEERS),
    "cpu": (
        "copy",
        "flatvars",
        "flatvars accumulate",
        "flatvars views",
        "torch foreach",
        "torch fused",
        "contiguous-params",
        "optimi",
        "schedulefree",
        "prodigyopt",
    ),
}
OURS = ("flatvars", "flatvars accumulate", "flatvars views")


def load(where: str) -> Peer:
    """Imports the peer at `module:attribute`."""
    module, attribute = where.split(":")
    peer: Peer = getattr(importlib.import_module(module), attribute)
    return peer
