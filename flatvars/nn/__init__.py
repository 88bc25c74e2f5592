"""Layers over a path: ordinary torch modules whose parameters and buffers are variables of the store.

Names, creation order and initial values are tch's, so that its checkpoints and recipes carry over; everything else is
torch's, whose modules they are: arguments, errors, forward, `state_dict()`.
"""

from .conv import conv1d, conv2d, conv3d
from .embedding import embedding
from .linear import linear
from .norm import batch_norm1d, batch_norm2d, batch_norm3d, group_norm, layer_norm
from .rnn import gru, lstm

__all__ = [
    "batch_norm1d",
    "batch_norm2d",
    "batch_norm3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "embedding",
    "group_norm",
    "gru",
    "layer_norm",
    "linear",
    "lstm",
]
