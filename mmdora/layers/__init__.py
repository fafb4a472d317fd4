"""Adapted modules. Each keeps the base's parameter names and has the same verbs: wrap, forward, merge, unload."""

from __future__ import annotations

from torch import nn

from mmdora.errors import MmdoraError
from mmdora.layers.adapted import Adapted, DropoutMode, Method
from mmdora.layers.attention import AdaptedAttention
from mmdora.layers.conv import AdaptedConv
from mmdora.layers.embedding import AdaptedEmbedding
from mmdora.layers.linear import AdaptedLinear

__all__ = [
    "BIASES",
    "BY_NAME",
    "KINDS",
    "WEIGHTS",
    "Adapted",
    "AdaptedAttention",
    "AdaptedConv",
    "AdaptedEmbedding",
    "AdaptedLinear",
    "DropoutMode",
    "Method",
    "kind_of",
    "wrapper",
]

KINDS: tuple[type[Adapted], ...] = (AdaptedLinear, AdaptedConv, AdaptedEmbedding, AdaptedAttention)
BY_NAME = {kind.kind: kind for kind in KINDS}
WEIGHTS = {kind.weight_name for kind in KINDS}
"""Names of the parameters of plain modules that are adapted."""
BIASES = {kind.bias_name for kind in KINDS}
"""Names of the biases that belong to these weights."""


def kind_of(module: nn.Module) -> type[Adapted] | None:
    """The class that adapts modules like this one, plain or adapted; None if no class does.

    Whether this very module can be adapted is another question, which `problem` answers.
    """
    return next((kind for kind in KINDS if isinstance(module, (*kind.plain, kind))), None)


def wrapper(base: nn.Module, rank: int = 0) -> type[Adapted]:
    """The class that adapts this module.

    Raises:
        MmdoraError: none can, or not at this rank.
    """
    kind = kind_of(base)
    if kind is None:
        name = type(base).__name__
        raise MmdoraError(
            f"cannot adapt this module: {name} is no linear, convolution, embedding or nn.MultiheadAttention"
        )
    if reason := kind.problem(base) or kind.rank_problem(base, rank):
        raise MmdoraError(f"cannot adapt this module: {reason}")
    return kind
