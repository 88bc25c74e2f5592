"""Checkpoints: safetensors files with one tensor per variable, verified, atomic, and snapshots in host memory."""

from .reader import Checkpoint
from .save import SHARD_SIZE
from .snapshot import Snapshot, SnapshotRing

__all__ = ["SHARD_SIZE", "Checkpoint", "Snapshot", "SnapshotRing"]
