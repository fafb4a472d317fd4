"""Sets weights of linears to zero: the smallest by magnitude, or by magnitude times the size of what they multiply.

Wanda (arXiv 2306.11695) scores a weight by |W_ij| ||X_j||, where ||X_j|| is the norm of input j over all tokens of some
rows, and compares scores within a row, that is, one output. The weights that are left are not changed. Here the inputs
are those of the dense model; the paper's code prunes layer by layer, and takes the inputs that the pruned layers
before give. "magnitude" is |W_ij|, compared within a row as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmdora.adapt.modality import ModelParts
from mmdora.adapt.targets import candidates_of
from mmdora.errors import MmdoraError
from mmdora.layers.dequantize import form_of

GROUP, KEPT = 4, 2
"""2:4, the pattern that NVIDIA's sparse tensor cores multiply: of 4 neighbours in a row, 2 are left."""
ROLES = ("attention", "mlp", "linear")
"""Roles of linears that are pruned: all but heads and routers, which choose a token or an expert."""


def prunable(model: nn.Module, parts: ModelParts, modalities: Iterable[str]) -> dict[str, nn.Linear]:
    """Name -> linear that is pruned, in the model's order: those that the target `all` would adapt.

    Raises:
        MmdoraError: a modality has none, or one of them is quantised.
    """
    found: dict[str, nn.Linear] = {}
    for modality in modalities:
        roles = candidates_of(model, parts, modality).roles
        own = {name: model.get_submodule(name) for name, role in roles.items() if role in ROLES}
        linears = {name: module for name, module in own.items() if isinstance(module, nn.Linear)}
        if not linears:
            raise MmdoraError(f"prune: the {modality} part has no linear layers; leave it out of --only")
        if packed := next((name for name, module in linears.items() if form_of(module)), None):
            raise MmdoraError(f"prune: {packed} is quantised; prune the base first, and quantise it afterwards")
        found |= linears
    return found


@contextmanager
def input_norms(linears: Mapping[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """Measure ||X_j|| [I] of every linear over all tokens that the model gets inside the block, in float64.

    The mapping is complete when the block ends. A linear that nothing reached has no entry.
    """
    norms: dict[str, Tensor] = {}
    hooks = []
    for name, linear in linears.items():

        def add(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            squares = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double().square().sum(0)
            norms[name] = norms[name] + squares if name in norms else squares

        hooks.append(linear.register_forward_pre_hook(add))
    try:
        yield norms
    finally:
        for hook in hooks:
            hook.remove()
    for name in norms:
        norms[name] = norms[name].sqrt()


@torch.no_grad()
def kept(weight: Tensor, norms: Tensor | None, sparsity: float, pattern: str) -> Tensor:
    """The mask [O, I] of the weights that are left.

    Args:
        weight: W [O, I].
        norms: ||X_j|| [I] for Wanda, or None for the magnitude alone.
        sparsity: the share of each row that goes, rounded down to whole weights; not used with 2:4.
        pattern: "row" or "2:4", for which I is a multiple of 4.
    """
    scores = weight.detach().abs().double()
    if norms is not None:
        scores = scores * norms.to(scores.device)
    if pattern == "2:4":
        scores = scores.unflatten(1, (-1, GROUP))
        count = GROUP - KEPT
    else:
        count = int(weight.shape[1] * sparsity)
    # A stable order makes the number that goes exact where scores are equal, and the same on every machine.
    smallest = scores.argsort(dim=-1, stable=True)[..., :count]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(-1, smallest, False).view(weight.shape)


@torch.no_grad()
def prune(
    linears: Mapping[str, nn.Linear], norms: Mapping[str, Tensor] | None, sparsity: float, pattern: str
) -> dict[str, float]:
    """Set weights to zero, in place, and give the share of zeros of each linear.

    Args:
        norms: as `input_norms` gives them, for Wanda; None for the magnitude alone.

    Raises:
        MmdoraError: no row reached a linear; or 2:4 does not fit one. Nothing is changed then.
    """
    if norms is not None and (missed := [name for name in linears if name not in norms]):
        raise MmdoraError(
            f"prune: no row reaches {missed[0]} ({len(missed)} of {len(linears)} layers); give rows with pictures, or "
            "leave its part out of --only"
        )
    if pattern == "2:4" and (odd := [name for name, own in linears.items() if own.in_features % GROUP]):
        raise MmdoraError(f"prune: --pattern 2:4: {odd[0]} has {linears[odd[0]].in_features} inputs, no multiple of 4")
    shares = {}
    for name, linear in linears.items():
        mask = kept(linear.weight, None if norms is None else norms[name], sparsity, pattern)
        linear.weight.mul_(mask)
        shares[name] = float((linear.weight == 0).double().mean())
    return shares
