"""Adapted modules. Each keeps the base's parameter names and has the same verbs: wrap, forward, merge, unload."""

from __future__ import annotations

from torch import nn

from mmdora.errors import MmdoraError
from mmdora.layers.adapted import Adapted, DropoutMode, Method
from mmdora.layers.conv import AdaptedConv
from mmdora.layers.embedding import AdaptedEmbedding
from mmdora.layers.linear import AdaptedLinear

__all__ = ["KINDS", "Adapted", "AdaptedConv", "AdaptedEmbedding", "AdaptedLinear", "DropoutMode", "Method", "wrapper"]

KINDS: tuple[type[Adapted], ...] = (AdaptedLinear, AdaptedConv, AdaptedEmbedding)


def kind_of(module: nn.Module) -> type[Adapted] | None:
    """The kind that is made for a plain or adapted module, whether or not it can be adapted; None for other modules."""
    return next((kind for kind in KINDS if isinstance(module, (*kind.plain, kind))), None)


def wrapper(base: nn.Module, rank: int = 0) -> type[Adapted]:
    """The class that adapts this module.

    Raises:
        MmdoraError: none can, or not at this rank.
    """
    kind = kind_of(base)
    reason = kind.problem(base, rank) if kind else f"{type(base).__name__} is no linear, convolution or embedding"
    if kind is None or reason:
        raise MmdoraError(f"cannot adapt this module: {reason}")
    return kind
