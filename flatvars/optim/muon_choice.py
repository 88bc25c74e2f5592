"""Which variables Muon should step where nobody says: the matrices of hidden layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..variables.places import Place
from ..variables.variable import Variable

# Parts of names, between dots and underscores.
NO_HIDDEN = frozenset({"embed", "embedding", "embeddings", "wte", "wpe", "bias", "norm", "ln", "gate", "scale", "head"})
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class HiddenMatrices:
    """A predicate for selectors: matrices, but for embeddings, heads, and what is named as norm, bias, gate or scale.

    A head is the last Linear of the module that was adopted; whatever is tied to an embedding is one. Variables that no
    module holds are known by their names alone.
    """

    def __call__(self, variable: Variable) -> bool:
        return not_hidden(variable) is None


def not_hidden(variable: Variable) -> str | None:
    """Why a variable is no matrix of a hidden layer; None if it is one."""
    if not variable.is_parameter or len(variable.shape) != 2:
        return "no matrix"
    if any(isinstance(place.owner(), EMBEDDINGS) for place in variable.places):
        return "embedding"
    if any(_is_last_linear(place) for place in variable.places):
        return "the last Linear"
    words = {word for name in variable.names for part in name.split(".") for word in part.lower().split("_")}
    found = sorted(words & NO_HIDDEN)
    return f"named {found[0]!r}" if found else None


def _is_last_linear(place: Place) -> bool:
    root = place.root()
    if root is None:
        return False
    linears = [module for module in root.modules() if isinstance(module, nn.Linear)]
    return bool(linears) and place.owner() is linears[-1]
