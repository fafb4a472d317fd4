"""Adapted modules. Each keeps the base's parameter names and has the same verbs: wrap, forward, merge, unload."""

from __future__ import annotations

from torch import nn

from mmdora.errors import MmdoraError
from mmdora.layers.adapted import Adapted, DropoutMode, Method
from mmdora.layers.attention import AdaptedAttention
from mmdora.layers.conv import AdaptedConv
from mmdora.layers.embedding import AdaptedEmbedding
from mmdora.layers.expert_weight import SUFFIX, ExpertWeight, expert_weights, is_experts
from mmdora.layers.experts import AdaptedExperts, AdaptedExpertWeight
from mmdora.layers.linear import AdaptedLinear
from mmdora.layers.quantized import AdaptedQuantizedLinear

__all__ = [
    "BIASES",
    "BY_NAME",
    "KINDS",
    "WEIGHTS",
    "Adapted",
    "AdaptedAttention",
    "AdaptedConv",
    "AdaptedEmbedding",
    "AdaptedExpertWeight",
    "AdaptedExperts",
    "AdaptedLinear",
    "AdaptedQuantizedLinear",
    "DropoutMode",
    "ExpertWeight",
    "Method",
    "expert_weights",
    "is_experts",
    "kind_of",
    "place_of",
    "places",
    "wrapper",
]

KINDS: tuple[type[Adapted], ...] = (
    AdaptedQuantizedLinear,
    AdaptedLinear,
    AdaptedConv,
    AdaptedEmbedding,
    AdaptedAttention,
    AdaptedExpertWeight,
)
"""The kinds, of which the first that fits a module adapts it. A quantised linear is a linear too, so it comes first."""
BY_NAME = {kind.kind: kind for kind in KINDS}
"""Name in plans and files -> kind. One name stands for quantised and plain linears, whose adapters are the same."""
WEIGHTS = {kind.weight_name for kind in KINDS}
"""Names of the parameters of plain modules that are adapted."""
BIASES = {kind.bias_name for kind in KINDS}
"""Names of the biases that belong to these weights."""


def kind_of(module: nn.Module) -> type[Adapted] | None:
    """The class that adapts modules like this one, plain or adapted; None if no class does.

    Whether this very module can be adapted is another question, which `problem` answers.
    """
    return next((kind for kind in KINDS if kind.adapts(module)), None)


def places(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> what an adapter of this name is made for: the modules of a plain model, and the parameters of experts."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        found[name] = module
        found |= expert_weights(name, module)
    return found


def place_of(model: nn.Module, name: str) -> nn.Module:
    """What an adapter of this name is made for: a module, or a parameter of experts, beside which one may be adapted.

    Raises:
        AttributeError: the model has neither.
    """
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    own = owner._parameters.get(leaf + SUFFIX)
    if leaf not in owner._modules and own is not None and own.dim() == 3:
        return ExpertWeight(owner, leaf + SUFFIX)
    return model.get_submodule(name)


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
