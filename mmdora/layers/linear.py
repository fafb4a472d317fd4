"""A frozen `nn.Linear` with LoRA, DoRA or a magnitude on it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdora.layers import scales
from mmdora.layers.adapted import Adapted
from mmdora.ops import dropout, linear


class AdaptedLinear(Adapted):
    """y = c (W0 x + s B A d(x)) + bias, with x [..., I] and y [..., O] in x's dtype.

    `weight` [O, I], `bias` [O] or None, `lora_A` [R, I] (Kaiming-uniform), `lora_B` [O, R] (zeros), `magnitude` [O].
    """

    kind = "linear"
    plain = (nn.Linear,)
    in_features: int
    out_features: int
    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        return product(self, x, scales.current(self))

    @classmethod
    def shapes(cls, base: Any, rank: int) -> dict[str, tuple[int, ...]]:
        rows, columns = base.out_features, base.in_features
        return {"lora_A": (rank, columns), "lora_B": (rows, rank), "magnitude": (rows,)}


def product(module: Adapted, x: Tensor, scaled: linear.Scale | None, rows: slice | None = None) -> Tensor:
    """c (W0 x + s B A d(x)) + bias of an adapted module whose matrix [O, I] is its weight, or of some rows of it.

    Args:
        x: [..., I].
        scaled: of all rows: `scales.current(module)`.
        rows: which; None for all.

    Returns:
        [..., rows], in x's dtype or autocast's.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    weight, bias, lora_B, magnitude = module.base_weight, module.base_bias, module.lora_B, module.magnitude
    if rows is not None:
        weight = weight[rows]
        bias, lora_B, magnitude = (None if tensor is None else tensor[rows] for tensor in (bias, lora_B, magnitude))
        scaled = scaled and linear.Scale(scaled.factor[rows], scaled.inverse_norm[rows], scaled.keep)
    dropped, zeros, scaling, branch = None, None, module.scaling, module.dropout_mode == "branch"
    if module.drops and branch and x.device.type == "cpu" and not torch.compiler.is_compiling():
        zeros = dropout.zeros(x.numel(), module.dropout)
        scaling /= 1 - module.dropout
    elif module.drops:
        dropped = F.dropout(x, module.dropout)  # in reference mode, the very mask that PEFT draws
    low_rank = module.lora_A, lora_B, scaling, magnitude, scaled
    if dropped is None or scaled is None or branch:
        return linear.adapted_linear(x, weight, bias, *low_rank, dropped, zeros)
    # W0 (x - d(x)) + c (W0 d(x) + s B A d(x)) + bias: PEFT's three terms in two.
    rest = F.linear(x - dropped, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return rest + linear.adapted_linear(dropped, weight, None, *low_rank)
