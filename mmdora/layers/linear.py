"""A frozen `nn.Linear` with LoRA, DoRA or a magnitude on it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdora.layers import scales
from mmdora.layers.adapted import Adapted
from mmdora.ops import linear, passes


class AdaptedLinear(Adapted):
    """y = c (W0 x + s B A d(x)) + bias, with x [..., I] and y [..., O] in x's dtype.

    `weight` [O, I], `bias` [O] or None, `lora_A` [R, I] (Kaiming-uniform), `lora_B` [O, R] (zeros), `magnitude` [O].

    As one would write it down first, with d for dropout and LoRA at c = 1:

        direction = weight + scaling * lora_B @ lora_A
        norm = torch.linalg.vector_norm(direction, dim=1).detach()
        c = magnitude / norm
        z = F.linear(x, weight) + scaling * F.linear(F.linear(d(x), lora_A), lora_B)
        y = c * z
        y = y if bias is None else y + bias

    Read `mmdora/ops/reference.py` first; this computes the same without forming B A. `layers/scales.py` has c, and
    `ops/linear.py` has z and y with their gradients.
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
        # Inkling's tower computes its widths by torch, so they are tensors.
        rows, columns = int(base.out_features), int(base.in_features)
        return {"lora_A": (rank, columns), "lora_B": (rows, rank), "magnitude": (rows,)}


def product(module: Adapted, x: Tensor, scaled: linear.Scale | None, rows: slice | None = None) -> Tensor:
    """c (W0 x + s B A d(x)) + bias of an adapted module whose matrix [O, I] is its weight, or of some rows of it.

    Args:
        x: [..., I].
        scaled: `scales.current(module)`, for all rows.
        rows: the rows of the matrix to multiply by; None for all.

    Returns:
        [..., rows], in x's dtype or autocast's.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    weight, bias, magnitude = module.base_weight, module.base_bias, module.magnitude
    lora_A, lora_B = scales.factors(module, passes.low_rank_dtype(x))
    if rows is not None:
        weight = weight[rows]
        bias, lora_B, magnitude = (None if tensor is None else tensor[rows] for tensor in (bias, lora_B, magnitude))
        scaled = scaled and linear.Scale(scaled.factor[rows], scaled.inverse_norm[rows], scaled.keep)
    return with_dropout(module, x, weight, bias, (lora_A, lora_B, module.scaling, magnitude, scaled))


def with_dropout(module: Adapted, x: Tensor, weight: Tensor, bias: Tensor | None, adapter: tuple[Any, ...]) -> Tensor:
    """`ops.linear.adapted_linear` with the dropout of an adapted module, in the mode that it has.

    Args:
        x: [..., I], in the dtype to compute in.
        weight: W0 [O, I].
        bias: [O] or None.
        adapter: A, B, s, m and the scale, as that function takes them.
    """
    as_peft = module.dropout_mode == "reference"
    if not module.drops or adapter[-1] is None or not as_peft:
        p = module.dropout if module.drops else 0.0
        return linear.adapted_linear(x, weight, bias, *adapter, p=p, as_torch=as_peft)
    # PEFT's three terms in two, with the mask that PEFT draws: W0 (x - d(x)) + c (W0 d(x) + s B A d(x)) + bias.
    dropped = F.dropout(x, module.dropout)
    rest = F.linear(x - dropped, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return rest + linear.adapted_linear(dropped, weight, None, *adapter)
